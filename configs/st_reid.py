"""Persons by six stripes, and by where they can be when ("st-ReID": Wang et al. 2019).

python train.py --config=configs/st_reid.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/st_reid.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=market1501 --config.data.dir=DIR
python evaluate.py --task=reid --flip --rerank="spatio_temporal lengths=market1501"

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. As in the authors' program, but for its second dropout, of the stripes' means
before the narrow layers: PCB with 6 stripes of 256 units; 384x192, mirrored,
erased to gray; gradient descent with Nesterov's momentum at 0.01, new layers at 0.1, a tenth of it
from epoch 40 of 60 on, after a first epoch of warm-up; 32 pictures; compared by the six means side
by side, each of length 1 (before the mirror image's are added, there after).

The score by travel times is a re-ranker of its own, for any network. It needs the camera and the
frame of every picture, which the course release does not have. Published (ResNet-50, with them):
98.1 rank 1, 87.6 mAP; a query's camera and frame are not known to other systems. The network alone,
by configs/comparison.py, 51 minutes on one core, has 89.7 and 78.9 on the course release.
"""

from ml_collections import ConfigDict

from configs import common

STRIPES = 6


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = common.persons_only(arguments, last_stride=1)
    config.model.update(name="pcb", stripes=STRIPES, width=256, stripe_dropout=0.5)
    config.data.image_size = (384, 192)
    config.batch_size, config.num_instances = 32, 0
    config.epochs = 60
    parts = [f"part{number}" for number in range(1, STRIPES + 1)]
    config.losses = common.for_parts({"name": "cross_entropy", "weight": 1.0}, parts)
    config.augmentation = {
        "flip": {"probability": 0.5},
        "erase": {"probability": 0.5, "area": (0.02, 0.4), "aspect": 0.3},
    }
    common.descend(config, at=(2 / 3,))
    config.optimizer.nesterov = True
    return config
