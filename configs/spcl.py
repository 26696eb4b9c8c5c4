"""SpCL (Ge et al. 2020): known persons, and beside them pictures without labels.

python train.py --config=configs/spcl.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/spcl.py --config.data.name=synthetic,unitn \
    --config.data.dir=DIR1,DIR2 --config.unlabelled.pictures=train/unitn

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. The pictures without labels are those of the split "test", or, to move from one
data set to another, those of "train" of the other one. Every round clusters them, and trusts
clusters that hardly change with the density asked for; a picture in no such cluster is a class of
its own. Known persons, clusters and single pictures are classes of one memory: cross-entropy,
temperature 0.05, momentum 0.2; 64 pictures of known persons and 64 others in a batch, 4 of each;
Adam at 3.5e-4 for 50 rounds of 400 steps, a tenth every 20.

On the official split the pictures of "test" are the gallery that is judged: a figure there is
transductive, and evaluate.py marks it so. Of two data sets the best checkpoint is chosen by the
held-out persons of both, which asks for labels of the second: judge the last one,
--checkpoint=latest.

It differs from the paper in the backbone; in that the authors' networks average and have no GeM,
and have BatchNorms of their own for each of two data sets, which ours share; in that features are
computed, and the memory filled, anew for each clustering; in that single pictures are drawn four
different ones at a time instead of one alone, and known persons' whatever their cameras; and in
that a cluster left with one picture is none. A cluster's pictures come from different cameras
first, as theirs do; but in the course release those of "test" have no cameras, so that they are
drawn alike.
"""

from ml_collections import ConfigDict

from configs import cluster_contrast, common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = cluster_contrast.begin(arguments)
    common.learn_clusters(config, "test", batch_size=64, momentum=0.2, gap=0.02)
    config.unlabelled.instances = True
    config.losses.memory.weight = 2.0  # the sum of the means of both halves of a batch
    config.batch_size, config.steps_per_epoch = 128, 400
    return config
