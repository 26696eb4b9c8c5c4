"""Several data sets and tasks on one trunk (Pfeiffer et al. 2019), on any backbone.

python train.py --config=configs/pfeiffer.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/pfeiffer.py:joined,separate --config.data.name=unitn,synthetic \
    --config.data.dir=DIR,OTHER

After the colon stand, in any order, the backbone, its arguments, and

joined      attributes from the first of two data sets, persons from the second
separate    attributes on another copy of the last stage ("multi-head")
uncertain   a learned weight for each of the two tasks

As in the paper: TriNet's head, 128 wide, with soft-margin triplets; attributes on the maximum of
the map, each with BatchNorm, ReLU and a dense layer, by the mean of their cross-entropies; last
stride 1; 18 persons of 4 pictures; mirrored; Adam at 3e-4. With `joined` each data set fills half
of a batch, so that 9 of the persons are the second one's. Published (ResNet-50): 80.31 rank 1,
65.06 mAP.

It differs in that there is no head for poses or body parts, whose data are not here, in that an
attribute that is not labelled has no say (the authors' program takes it for the first class), in
that TriNet's head is that of its own paper, on the mean of the map and of two layers (the authors'
program has one, on the maximum), and in the schedule: 60 epochs, a warm-up of 10, then a cosine,
with weight decay in the gradient. The paper joins Market-1501 with DukeMTMC, LIP and MPII. No
second set of real people is at hand here: the figures are of the course release and drawn people,
whose attributes are the same twelve, but drawn from other frequencies.

By configs/comparison.py, all of it from the course release, 1.7 hours on one core without AVX-512:
85.0 rank 1 and 74.2 mAP, and 85.6 % of the 12 attributes (multi-class). At that file's rate
`joined` with drawn people fails, 1.3 mAP: its triplets collapse. At 3e-4 it has 82.8 % of the
attributes, and 23.6 mAP of real people, whose persons it has not learned (`separate` 82.8 and 13.7,
`uncertain` 82.9 and 23.1); 1.3 to 1.6 hours with AVX-512.
"""

from ml_collections import ConfigDict

from configs import common

WORDS = ("joined", "separate", "uncertain")


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: "joined,separate,uncertain,resnet,depth=50", in any order.
    """
    words, rest = common.take_words(arguments, WORDS)
    config = common.persons_only(rest, last_stride=1)
    config.batch_size, config.num_instances = 72, 4
    config.epochs = 60
    config.optimizer.learning_rate = 3e-4
    config.losses = {"persons": {"name": "triplet", "weight": 1.0, "margin": 0.0}}
    config.augmentation = {"flip": {"probability": 0.5}}
    common.learn_attributes(config, {"name": "cross_entropies", "weight": 1.0})
    config.model = {
        "name": "multitask",
        "classes": common.ATTRIBUTES,
        "backbone": config.model.backbone,
        "pretrained": config.model.pretrained,
        "separate": "separate" in words,
        "hidden": 1024,
        "width": 128,
        "uncertainty": "uncertain" in words,
    }
    for number, task in enumerate(("attributes", "persons")):
        if "joined" in words:
            config.losses[task].dataset = number
        if "uncertain" in words:
            config.losses[task].uncertainty = task
    return config
