"""What every experiment shares. Plain data: names, numbers, tuples."""

from ml_collections import ConfigDict

# attribute -> number of classes; a test holds it equal to market_jax.data.attributes.CLASSES
ATTRIBUTES = {
    "age": 4,
    "backpack": 2,
    "bag": 2,
    "handbag": 2,
    "clothes": 2,
    "down": 2,
    "up": 2,
    "hair": 2,
    "hat": 2,
    "gender": 2,
    "up_color": 9,
    "down_color": 10,
}


def get_config() -> ConfigDict:
    """The settings that an experiment starts from."""
    return ConfigDict(
        {
            "seed": 0,
            "dtype": "float32",  # of the computation, or bfloat16; parameters are float32
            "convolution": "auto",  # on a CPU: onednn where installed, else jax; or lax
            "remat": False,  # keep less for the backward pass, compute it again
            "profile": False,  # write where a step's time goes to profile/
            "data": {
                "name": "synthetic",  # synthetic, unitn or market1501
                "dir": "",  # a prepared dataset or the raw folder; "" draws the synthetic one
                "image_size": (128, 64),  # height, width
                "val_fraction": 0.2,  # of the training identities
                "split_seed": 0,
                "in_memory": True,
            },
            "retrieval": {
                "name": "ranking",  # or through clusters: "agglomerative", "kmeans soft=0.5", ...
                "metric": "cosine",  # or euclidean
                "stages": (),  # in order, each "name key=value ...": "k_reciprocal k1=20"
                "flip": False,  # average the features of an image and its mirror image
            },
            "batch_size": 64,
            "images_per_identity": 0,  # in a batch, of each of its persons; 0 draws images alone
            "accumulate": 1,  # parts of a batch whose gradients are averaged
            "epochs": 30,
            "evaluate_every": 1,  # epochs
            "patience": 10,  # evaluations without a better validation loss; 0 never stops
            "log_every": 10,  # steps
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup_epochs": 1.0,
                "weight_decay": 5e-4,
                "clip_norm": 0.0,
                "rates": (),  # ((regular expression, factor of the rate), ...) of parameters
                "plateau_factor": 1.0,  # below 1: of the rate, after so many evaluations
                "plateau_every": 8,  # without a better validation loss
            },
        }
    )
