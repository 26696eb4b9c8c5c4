"""AGW (Ye et al. 2021): BoT with non-local blocks, learned pooling and weighted triplets.

python train.py --config=configs/agw.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/agw.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. The paper's blocks stand after the last two of stage 2 and the last three of
stage 3 of a ResNet; here on EfficientNet-Lite, after the last of stages 3, 4 and 5. All else is as
in configs/bot.py.
"""

from ml_collections import ConfigDict

from configs import bot, common

NON_LOCAL = {"resnet": (0, 2, 3, 0), "efficientnet_lite": (0, 0, 1, 1, 1, 0, 0)}


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = bot.learn(common.persons_only(arguments, last_stride=1, pooling="gem"))
    backbone = config.model.backbone
    if not backbone.get("non_local"):
        backbone.non_local = NON_LOCAL[backbone.name]
    config.losses.triplet = {"name": "weighted_triplet", "weight": 1.0}
    return config
