"""Attributes that help to tell persons apart ("APR": Lin et al. 2019), on any backbone.

python train.py --config=configs/apr.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/apr.py:resnet,depth=50 --config.model.pretrained=resnet50.pth \
    --config.data.name=unitn --config.data.dir=DIR
python evaluate.py --task=attribute_filter

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. `--config.model.reweighting=False` leaves the re-weighting module out, and
`persons`, after the colon, the attributes.

As in the paper: 256x128; persons by a cross-entropy that weighs 8 times the mean of the
attributes'; gradient descent with momentum at 0.01, new layers at 0.1, a tenth of it from epoch 40
of 60 on, after a first epoch of warm-up; no triplets. The weight 8 was read in a summary.
Published (ResNet-50): 87.04 rank 1, 66.89 mAP. By configs/comparison.py, half an hour on one core,
85.6 and 69.4 on the course release.

It differs in that the probabilities of all classes are weighed, not one score for an attribute, and
in that a linear layer tells all attributes of two classes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments, and `persons`: "persons,resnet,depth=50".
    """
    words = arguments.split(",")
    persons = "persons" in words
    config = common.persons_only(",".join(word for word in words if word != "persons"))
    config.model.update(name="apr", reweighting=True)
    config.num_instances = 0
    config.epochs = 60
    config.losses = {"identity": {"name": "cross_entropy", "logits": "identity", "weight": 8.0}}
    config.augmentation = {"flip": {"probability": 0.5}}
    common.descend(config, at=(2 / 3,))
    if not persons:
        common.learn_attributes(config, {"name": "cross_entropies", "weight": 1.0})
    return config
