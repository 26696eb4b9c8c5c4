"""AGW (Ye et al. 2021): BoT with non-local blocks, learned pooling and weighted triplets.

python train.py --config=configs/agw.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/agw.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. The paper's blocks stand after the last two of stage 2 and the last three of
stage 3 of a ResNet (the last nine of ResNet-101, as in fast-reid); here on EfficientNet-Lite and
MobileNetV2, after the last of stages 3, 4 and 5. All else is as in configs/bot.py.
"""

from ml_collections import ConfigDict

from configs import bot, common

NON_LOCAL = {
    "resnet": (0, 2, 3, 0),
    "efficientnet_lite": (0, 0, 1, 1, 1, 0, 0),
    "mobilenet_v2": (0, 0, 1, 1, 1, 0, 0),
}


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = bot.learn(common.persons_only(arguments, last_stride=1, pooling="gem"))
    add_non_local(config)
    config.losses.triplet = {"name": "weighted_triplet", "weight": 1.0}
    return config


def add_non_local(config: ConfigDict) -> None:
    """Adds the usual non-local blocks to the backbone, where the arguments name none.

    Args:
      config: of `common.persons_only`, which is changed.
    """
    backbone = config.model.backbone
    if backbone.name not in NON_LOCAL:
        known = ", ".join(NON_LOCAL)
        raise ValueError(f"{backbone.name!r} has no non-local blocks; those that have: {known}")
    usual = NON_LOCAL[backbone.name]
    if backbone.get("depth") == 101:
        usual = (0, 2, 9, 0)
    backbone.non_local = backbone.non_local or usual
