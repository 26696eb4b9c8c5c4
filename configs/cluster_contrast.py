"""Cluster Contrast (Dai et al. 2022): re-identification without any label.

python train.py --config=configs/cluster_contrast.py --config.data.name=unitn \
    --config.data.dir=DIR
python train.py --config=configs/cluster_contrast.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.hooks.memory.hard=True

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. Every round clusters the pictures of the split "train" and learns from the
clusters for 200 steps: cross-entropy over a memory of their means, temperature 0.05, momentum 0.1;
16 pictures of 16 clusters in a batch, from different cameras first; Adam at 3.5e-4 for 50 rounds,
a tenth every 20. It begins with a run with --config.model.pretrained=runs/x, to move to another
data set; where that run pools by the average, as those of bot.py and small.py do, the power of GeM
begins at 3.

Labels say who is held out, choose the best checkpoint by the persons held out (--checkpoint=latest
is chosen by nobody), and judge the clusters in the log: NMI and ARI are of the pictures in clusters
alone, and "coverage" says how many these are. Nothing is learned from them. Pictures of whom
nothing is known go into the split "test" (--config.unlabelled.pictures=test). Those of the course
release have no cameras either, so that a cluster's pictures are drawn alike.

It differs from the paper in the backbone, and in that a cluster left with one picture is none.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = begin(arguments)
    common.learn_clusters(config, "train", batch_size=256, momentum=0.1)
    config.batch_size, config.num_instances = 256, 16
    return config


def begin(arguments: str) -> ConfigDict:
    """The network and the schedule that SpCL and Cluster Contrast share, without a loss.

    Args:
      arguments: the backbone and its arguments.
    """
    config = common.persons_only(arguments, last_stride=1, pooling="gem")
    config.model.update(identities=0, classifier="none")
    config.losses = {}
    config.epochs = 50
    config.optimizer.update(learning_rate=3.5e-4, warmup_epochs=0.0)
    config.optimizer.schedule = {"name": "multistep", "at": (0.4, 0.8), "factor": 0.1}
    return config
