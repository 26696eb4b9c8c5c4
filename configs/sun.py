"""Attributes and persons together, with attention and parts: after Sun et al. (2018).

python train.py --config=configs/sun.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/sun.py:resnet,depth=50 --config.model.pretrained=resnet50.pth \
    --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights.

"A Unified Framework for Attributes and Person Re-identification" (ICANN 2018) could be read in its
abstract alone, which says: one network for both, attention, and parts. This is no reproduction but
what the project's own parts make of these words: the whole person and two stripes, with five
classifiers of persons (on the mean and the maximum of the whole map, on the maximum of the parts'
map, and on each stripe); masks between the backbone's stages (as `source_b.py:stacked`); a head for
the attributes of two classes and one for each other; the losses are added. APR's re-weighting is
left out, which the abstract does not tell of.

By configs/comparison.py, two hours on one core without AVX-512, 91.4 rank 1 and 79.6 mAP on the
course release, and 85.3 % of the 12 attributes (multi-class).
"""

from ml_collections import ConfigDict

from configs import common, source_b

PARTS = ("global", "global_max", "part_max", "part1", "part2")


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = common.persons_only(arguments, last_stride=1)
    config.model.update(name="parts", branches=("global", "part"), stripes=2, width=256, drop=0.0)
    config.epochs = 60
    config.optimizer.schedule = {"name": "cosine", "flat": 0.0, "end": 0.002}
    smoothed = {"name": "cross_entropy", "weight": 1 / len(PARTS), "label_smoothing": 0.1}
    triplet = config.losses.triplet
    config.losses = common.for_parts(smoothed, PARTS) | {"triplet": triplet}
    backbone = config.model.backbone
    if "attention" in backbone:
        backbone.attention = source_b.masked_stages(backbone.name)
    head = {"name": "normalized", "width": 256}
    loss = {"name": "cross_entropies", "weight": 1.0}
    common.learn_attributes(config, loss, head=head, dropout={})
    return config
