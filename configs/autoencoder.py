"""The autoencoder of Facchinetti & Bellumat, with max-unpooling: its error is a score of junk.

python train.py --config=configs/autoencoder.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/autoencoder.py --config.model.switches=False
python train.py --config=configs/autoencoder.py --config.model.bottleneck=64

On the course release it takes 2.8 GiB of memory in training.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The experiment."""
    config = common.get_config()
    config.tasks = ("junk", "reid")
    config.batch_size = 32
    config.epochs = 30
    config.patience = 20
    config.optimizer.schedule.name = "constant"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 1e-5
    config.optimizer.plateau_factor = 0.8
    config.model = {
        "name": "autoencoder",
        "widths": (64, 128, 256),
        "switches": True,  # the decoder is told where each maximum was
        "bottleneck": 0,  # dimensions; 0 has none
    }
    config.losses = {"reconstruction": {"name": "squared_error", "weight": 1.0, "reduce": "mean"}}
    config.evaluators.reconstructions = {"name": "reconstructions"}  # pictures
    # the target is the augmented image, as the authors have it; noise of variance 10 to 50 of 255
    config.augmentation = {
        "flip": {"probability": 0.6},
        "rotate": {"degrees": 10.0, "probability": 1.0},
        "jitter": {
            "brightness": 0.2,
            "contrast": 0.0,
            "saturation": 0.0,
            "probability": 0.4,
        },
        "noise": {"std": 0.021, "probability": 1.0},
    }
    return config
