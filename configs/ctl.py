"""Centroid triplets ("CTL": Wieczorek, Rychalska & Dabrowski 2021), on any backbone.

python train.py --config=configs/ctl.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/ctl.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. As in the paper: configs/bot.py with a margin of 0.5, and a second triplet loss
in which each image of a person is compared with the mean of the others.

Published (ResNet-50): 98.3 mAP with centroids of the true persons, 85.4 by single images. The first
knows whom the gallery shows; `evaluate.py --task=oracle` says what that is worth. By
configs/comparison.py, 45 minutes on one core, 79.4 mAP by single images on the course release.
"""

from ml_collections import ConfigDict

from configs import bot, common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = bot.learn(common.persons_only(arguments, last_stride=1))
    config.losses.triplet.margin = 0.5
    config.losses.centroids = {"name": "centroid_triplet", "weight": 1.0, "margin": 0.5}
    return config
