"""A small network for a CPU that knows persons and what they wear: the one to start from.

python train.py --config=configs/small.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/small.py:efficientnet_lite,variant=1 --config.data.name=unitn \
    --config.data.dir=DIR
python train.py --config=configs/small.py:unlabelled --config.model.pretrained=runs/small \
    --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/small.py:continued --config.model.pretrained=runs/small \
    --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. Persons are learned as in configs/bot.py, but without centers, with circle
softmax on cosines, at sixteen times the rate, and with half a cosine for it after 5 epochs of
warm-up: configs/ablation.py finds what most of it is worth. Pictures grow from 128x64 over 192x96
to 256x128. Attributes of two classes share a head, the others have one each, and rare classes count
more. With `unlabelled`, pictures of the split "test" are clustered every round and learned beside
these, as in configs/spcl.py. With `continued` they are not, and as many steps at the same rate, of
as many pictures of the same size, are those of known persons alone: what the pictures without
labels are worth is the difference of the two.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "unlabelled,efficientnet_lite,variant=1".
    """
    words, rest = common.take_words(arguments, ("unlabelled", "continued"))
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is more than one word of this file: {arguments!r}")
    config = common.persons_only(rest, last_stride=1)
    config.epochs = 60
    config.stages = {
        "first": {"until": 0.66, "image_size": (128, 64)},
        "second": {"until": 0.86, "image_size": (192, 96)},
    }
    config.optimizer.schedule = {"name": "cosine", "flat": 0.0, "end": 0.002}
    config.optimizer.update(learning_rate=5.6e-3, warmup_epochs=5.0)
    config.model.classifier = "cosine"
    circle = {"name": "circle_softmax", "logits": "identity", "margin": 0.35, "scale": 64.0}
    config.losses.identity = circle | {"weight": 1.0}
    loss = {"name": "weighted_cross_entropies", "weight": 0.3, "sigma": 1.0}
    head = {"name": "normalized", "width": 256}
    common.learn_attributes(config, loss, head=head, dropout={})
    if words:
        config.stages = {}
        config.batch_size, config.epochs, config.steps_per_epoch = 128, 20, 200
        config.evaluate_every = 1
        config.optimizer.update(learning_rate=3.5e-4, warmup_epochs=1.0)
    if words == ["unlabelled"]:
        common.learn_clusters(config, "test", batch_size=64, momentum=0.2, gap=0.02)
        config.unlabelled.instances, config.losses.memory.weight = True, 2.0  # as in spcl.py
    return config
