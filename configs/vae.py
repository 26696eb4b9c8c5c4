"""The variational autoencoder of Facchinetti & Bellumat: a latent space to cluster in.

python train.py --config=configs/vae.py
python train.py --config=configs/vae.py --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/vae.py --config.losses.kl.weight=4. --config.model.latent=64

On the course release it takes 1.6 GiB of memory at the most.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The experiment."""
    config = common.get_config()
    config.tasks = ("reid",)
    config.epochs = 60
    config.data.image_size = (64, 64)  # the height is halved; (128, 64) keeps the proportions
    config.optimizer.schedule.name = "exponential"
    config.optimizer.weight_decay = 0.0
    config.model = {
        "name": "vae",
        "classes": {},
        "widths": (32, 64, 128, 256),
        "latent": 128,
    }
    config.losses = {
        "reconstruction": {"name": "squared_error", "weight": 1.0, "reduce": "sum"},
        # schedule.name may be logistic, linear or cyclical; share 0 is the whole weight at once
        "kl": {"name": "kl", "weight": 1.0, "schedule": {"name": "logistic", "share": 0.25}},
    }
    config.metrics.mmd = {"name": "mmd"}
    config.metrics.active = {"name": "active_dimensions", "threshold": 0.01}
    config.evaluators.reconstructions = {"name": "reconstructions"}  # pictures
    config.augmentation = {"flip": {"probability": 0.5}}
    return config
