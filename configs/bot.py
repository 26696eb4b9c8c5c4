"""The strong baseline for person re-identification ("BoT": Luo et al. 2019), on any backbone.

python train.py --config=configs/bot.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/bot.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. As in the paper: 256x128, mirrored, padded by 10 and cropped, erased; 16 persons
of 4 pictures; Adam at 3.5e-4, weight decay in the gradient, a warm-up of 10 epochs from a
hundredth, a tenth of the rate from epochs 40 and 70 of 120 on; label smoothing, batch-hard triplets
before the BNNeck, centers; last stride 1; ranked by cosine after it. Published (ResNet-50): 94.5
rank 1, 85.9 mAP. By configs/comparison.py, 45 minutes on one core, 91.8 and 79.0 on the course
release.

It differs from the paper in that weight decay leaves biases and BatchNorms alone, in that the crop
repeats the border, in that what is erased is as often wide as tall and cut to fit (theirs is drawn
again, and is mostly tall), in that centers move as in Wen et al. (2016): a step is divided by a
person's pictures in the batch, not by the batch, and centers begin at 0. From the authors' program
it differs in that half of the squared distance to them counts, as in the paper's formula.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    return learn(common.persons_only(arguments, last_stride=1))


def learn(config: ConfigDict) -> ConfigDict:
    """Adds the schedule and the centers.

    Args:
      config: of `common.persons_only`, which is changed.
    """
    config.epochs = 120
    config.optimizer.schedule = {"name": "multistep", "at": (1 / 3, 7 / 12), "factor": 0.1}
    config.losses.center = {"name": "center", "weight": 5e-4}
    config.hooks.centers = {"name": "centers", "rate": 0.5}
    return config
