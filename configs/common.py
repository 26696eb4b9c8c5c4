"""What every experiment shares. Plain data: names, numbers, tuples.

A thing with arguments is a dict with a "name", of this package or "package.module:Attribute", and
its arguments by name.
"""

import ast

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


def read_arguments(text: str) -> tuple[list[str], dict]:
    """The arguments of a config file: "heads,depth=50" -> (["heads"], {"depth": 50}).

    Args:
      text: words and KEY=VALUE between commas; a value is a Python literal, or else a text.
    """
    words, values = [], {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if not equals:
            words.append(word)
            continue
        try:
            values[key] = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            values[key] = value
    return words, values


def get_config() -> ConfigDict:
    """The settings that an experiment starts from."""
    return ConfigDict(
        {
            "recipe": "supervised",  # a file of market_jax/recipes
            "seed": 0,
            "dtype": "float32",  # of the computation, or bfloat16; parameters are float32
            "convolution": "auto",  # on a CPU: onednn where installed, else jax; or lax
            "remat": False,  # keep less for the backward pass, compute it again
            "profile": False,  # write where a step's time goes to profile/
            "data": {
                # synthetic, unitn or market1501; several with commas between, and as many folders
                "name": "synthetic",
                "dir": "",  # a prepared data set or the raw folder; "" draws the synthetic one
                "image_size": (128, 64),  # height, width
                "val_fraction": 0.2,  # of the training identities
                "split_seed": 0,
                "in_memory": True,
            },
            "batch_size": 64,
            "num_instances": 0,  # images of each identity in a batch; 0 draws images alone
            "grad_accum_steps": 1,  # parts of a batch whose gradients are averaged
            "epochs": 30,
            "evaluate_every": 1,  # epochs
            "patience": 10,  # evaluations without a better value of select; 0 never stops
            "log_every": 10,  # steps
            "select": {"metric": "val/loss", "mode": "min"},  # what the best checkpoint is best in
            "evaluators": {},  # run at each evaluation, files of market_jax/evaluators
            "metrics": {},  # reported beside the loss
            "ema_decay": 0.0,  # of an average of the parameters, which is then evaluated
            "hooks": {},  # after each update, see market_jax/training/hooks.py
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "schedule": {"name": "cosine"},
                "warmup_epochs": 1.0,
                "weight_decay": 5e-4,
                "clip_norm": 0.0,
                "lr_multipliers": (),  # ((regular expression, factor of the rate), ...)
                "plateau_factor": 1.0,  # below 1: of the rate, after so many evaluations
                "plateau_every": 8,  # without a better value of select
            },
        }
    )
