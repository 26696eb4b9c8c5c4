"""The stronger baseline of fast-reid ("SBS": He et al. 2020), on any backbone.

python train.py --config=configs/sbs.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/sbs.py:resnet,depth=50 \
    --config.model.pretrained=resnet50.pth --config.data.name=unitn --config.data.dir=DIR

After the colon stand the backbone and its arguments; without, EfficientNet-Lite0 begins with
ImageNet's weights. As in fast-reid: 384x128, learned pooling, non-local blocks, 16 pictures of each
person in a batch, circle softmax on cosines, soft triplets after the BNNeck, colour policies for a
tenth of the pictures, smoothed labels; 60 epochs, the backbone's weights kept in the first ones,
the full rate until epoch 30 and then half a cosine.

It differs in that the non-local blocks of EfficientNet-Lite stand where configs/agw.py puts them,
in that freezing and warm-up are counted in epochs (5 and 10) and not in steps, and in that the
policies change colours alone. While the backbone is kept, its BatchNorms see the batch and their
running means move; there they are as pretrained.
"""

from ml_collections import ConfigDict

from configs import agw, common


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone and its arguments: "resnet,depth=50".
    """
    config = common.persons_only(arguments, last_stride=1, pooling="gem")
    agw.add_non_local(config)
    config.model.classifier = "cosine"
    config.data.image_size = (384, 128)
    config.num_instances = 16
    config.epochs = 60
    config.optimizer.schedule = {"name": "cosine", "flat": 0.5, "end": 0.002}
    config.optimizer.update(warmup_from=0.1, freeze_epochs=5.0)
    config.losses = {
        "identity": {
            **{"name": "circle_softmax", "weight": 1.0, "margin": 0.35, "scale": 64.0},
            "label_smoothing": 0.1,
        },
        "triplet": {"name": "triplet", "features": "embedding", "weight": 1.0, "margin": 0.0},
    }
    config.augmentation.color_policy = {"probability": 0.1}
    return config
