"""LightMBN (Herzog et al. 2021): the whole person, stripes and channels, on any backbone.

python train.py --config=configs/lightmbn.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/lightmbn.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. As in the paper: seven features of 512, each with a BNNeck; smoothed
cross-entropy on each, multi-similarity on three raw features; Adam at 6e-4, a warm-up of 10 epochs
and then half a cosine, 130 epochs; the features side by side, each of length 1.

It differs in the backbone (OSNet there: `configs/lightmbn.py:osnet,dense=False`), whose last stage
alone is copied here, in 16 persons of 4 pictures instead of 6 of 8, in 256x128 instead of 384x128,
and in padding and cropping instead of enlarging by a twentieth; in training the BatchNorm that both
halves of the channels share sees them together, and there one after the other.
"""

from ml_collections import ConfigDict

from configs import common

PARTS = ("global", "global_max", "part_max", "part1", "part2", "channel1", "channel2")
COMPARED = ("global", "global_max", "part_max")  # by multi-similarity


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = common.persons_only(arguments, last_stride=1)
    config.epochs = 130
    config.optimizer.learning_rate = 6e-4
    learn_parts(config)
    return config


def learn_parts(config: ConfigDict) -> None:
    """Makes the network one of parts, and gives each part its losses.

    Args:
      config: of `common.persons_only`, which is changed.
    """
    config.model.update(
        name="parts", branches=("global", "part", "channel"), stripes=2, width=512, drop=0.33
    )
    smoothed = {"name": "cross_entropy", "weight": 0.5, "label_smoothing": 0.1}
    config.losses = common.for_parts(smoothed, PARTS) | {
        f"similarity_{part}": {
            "name": "multi_similarity",
            "features": f"feature_{part}",
            "weight": 0.5,
        }
        for part in COMPARED
    }
