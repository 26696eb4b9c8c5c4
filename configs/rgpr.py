"""Grayscale pictures and patches (Gong, "RGT and RGPR", 2021), on the baseline or the best recipe.

python train.py --config=configs/rgpr.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/rgpr.py:small,patches --config.data.name=unitn \
    --config.data.dir=DIR
python train.py --config=configs/rgpr.py:bot,pictures,resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand, in any order, what it is added to, `bot` (as without) or `small`; `pictures`
for whole pictures in gray, one in 20 (RGT), or `patches` for a rectangle, in two of 5 (RGPR), or
`none`, and without any of them both; the backbone and its arguments. Colours are not to be trusted:
cameras and light change them. Published: BoT's ResNet-50 with patches 95.1 rank 1, 87.2 mAP; SBS's
ResNet-101-ibn with pictures 96.5, 91.2. By configs/comparison.py, two hours each on one core
without AVX-512, BoT has 78.3 mAP with patches, 77.4 with pictures and 79.5 with neither on the
course release, `small` 84.7 with patches and 84.0 with pictures.

The authors' program compares a patch's width with the picture's height and the other way round;
here patches fit into the picture. It draws height over width uniformly from 0.3 to 3.3 and again
until the patch fits, so that four of five are taller than wide; here its logarithm is uniform, and
a side that is too long is cut.
"""

from ml_collections import ConfigDict

from configs import bot, common, small

BASES = {"bot": bot, "small": small}
GRAY = {
    "pictures": {"grayscale": {"probability": 0.05}},
    "patches": {"gray_patch": {"probability": 0.4, "area": (0.02, 0.4), "aspect": 0.3}},
    "none": {},
}


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: "small,patches,efficientnet_lite,variant=1", in any order.
    """
    bases, rest = common.take_words(arguments, BASES)
    chosen, rest = common.take_words(rest, GRAY)
    config = BASES[(bases or ["bot"])[0]].get_config(rest)
    chosen = chosen or ["pictures", "patches"]
    if len(bases) > 1 or ("none" in chosen and len(chosen) > 1):
        raise ValueError(f"{arguments!r} must name one of bot and small, and none alone")
    gray = {name: fields for word in chosen for name, fields in GRAY[word].items()}
    config.augmentation = gray | config.augmentation.to_dict()
    return config
