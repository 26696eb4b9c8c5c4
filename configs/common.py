"""What every experiment shares. Plain data: names, numbers, tuples.

A thing with arguments is a dict with a "name", of this package or "package.module:Attribute", and
its arguments by name.
"""

import ast
from collections.abc import Collection

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


BACKBONES = {  # name -> its arguments, so that each is a flag
    "alexnet": {"dense": True, "dropout": 0.5, "attention": ()},
    "densenet": {"attention": ()},
    "efficientnet_lite": {
        "variant": 0,
        "same_padding": True,
        "last_stride": 2,
        "attention": (),
        "non_local": (),
    },
    "mobilenet_v2": {
        "width": 1.0,
        "build": "torchvision",
        "last_stride": 2,
        "attention": (),
        "non_local": (),
    },
    "osnet": {
        "width": 1.0,
        "instance_norm": "none",  # or ibn, ain
        "dense": True,
        "attention": (),
    },
    "residual_attention": {"depth": 56, "width": 64, "last_stride": 2},
    "resnet": {
        "depth": 50,
        "last_stride": 2,
        "ibn": "",
        "stem": "torchvision",
        "attention": (),
        "non_local": (),
        "non_local_width": 0,
    },
    "swin": {"size": "tiny", "window": 7, "drop_path": 0.0},
    "vit": {
        "size": "small",
        "depth": 12,
        "family": "augreg",
        "registers": 0,
        "patch_stride": 0,
        "pooling": "class",
        "projection": 0,
        "drop_path": 0.0,
        "cameras": (),  # whose numbers have embeddings; (-1,) are those of the training
        "lora_rank": 0,
    },
}


def backbone(name: str, values: dict) -> dict:
    """The spec of a backbone.

    Args:
      name: a file of market_jax/models/backbones.
      values: its arguments, where they differ from the usual ones.
    """
    usual = {"name": name, "pooling": "average"}  # or max, gem
    return usual | BACKBONES.get(name, {}) | values


def learn_persons(config: ConfigDict) -> None:
    """Person re-identification as BoT trains it (Luo et al. 2019), but for the optimizer.

    256x128, four pictures of each person in a batch; cross-entropy after the BNNeck, with label
    smoothing, and batch-hard triplets before it; mirrored, cropped and erased at random.

    Args:
      config: of the experiment, which is changed.
    """
    config.data.image_size = (256, 128)
    config.num_instances = 4
    config.evaluators.reid = {"name": "reid"}
    config.losses = {
        "identity": {
            "name": "cross_entropy",
            "logits": "identity",
            "weight": 1.0,
            "label_smoothing": 0.1,
        },
        "triplet": {"name": "triplet", "weight": 1.0, "margin": 0.3},
    }
    config.augmentation = {
        "flip": {"probability": 0.5},
        "crop": {"padding": 10},
        "erase": {"probability": 0.5, "area": (0.02, 0.4), "aspect": 0.3},
    }


def for_parts(loss: dict, parts: Collection[str]) -> dict:
    """A loss of persons for each part of the network: "identity_<part>" -> its spec.

    Args:
      loss: the spec, without the names of the output and of the labels.
      parts: the names of the parts.
    """
    return {
        f"identity_{part}": loss | {"logits": f"identity_{part}", "labels": "identity"}
        for part in parts
    }


def learn_attributes(config: ConfigDict, loss: dict, **model) -> None:
    """Adds attributes to an experiment that learns persons.

    Args:
      config: of the experiment, which is changed.
      loss: the spec of their loss, without the names of the outputs.
      **model: fields of the model: head, dropout, attention.
    """
    names = (*ATTRIBUTES,)
    config.tasks = ("reid", "attributes")
    config.model.update(classes=ATTRIBUTES, **model)
    config.losses.attributes = loss | {"logits": names}
    config.evaluators.attributes = {"name": "attributes"}
    config.metrics.accuracy = {"name": "accuracy", "logits": names}


def learn_clusters(
    config: ConfigDict, pictures: str, *, batch_size: int, momentum: float, **clusters
) -> None:
    """Adds pictures without labels to an experiment, which clusters teach: by a memory of them.

    Args:
      config: of the experiment, which is changed. A round of clustering is an epoch, so
        `steps_per_epoch` is the number of steps in a round.
      pictures: the split without labels, see market_jax/recipes/cluster_contrast.py.
      batch_size: how many of a batch are of these pictures.
      momentum: how much of the memory is kept when a picture moves it.
      **clusters: arguments of the clustering, where they differ from the usual ones.
    """
    config.recipe = "cluster_contrast"
    config.unlabelled = {"pictures": pictures, "batch_size": batch_size, "instances": False}
    usual = {"name": "jaccard_dbscan", "k1": 30, "k2": 6, "eps": 0.6, "min_samples": 4, "gap": 0.0}
    config.clusters = usual | clusters
    config.losses.memory = {"name": "memory", "weight": 1.0, "temperature": 0.05}
    config.hooks.memory = {"name": "memory", "momentum": momentum, "hard": False, "slots": -1}
    config.steps_per_epoch = 200
    config.evaluate_every = 1


def descend(config: ConfigDict, at: tuple[float, ...]) -> None:
    """Gradient descent with momentum, a tenth of the rate for the backbone, instead of Adam.

    New layers begin at a rate of 0.1.

    Args:
      config: of the experiment, which is changed.
      at: the shares of the training after which the rate is a tenth of what it was.
    """
    config.optimizer = get_config().optimizer
    config.optimizer.update(
        name="sgd", learning_rate=0.1, warmup_epochs=1.0, lr_multipliers=(("^backbone", 0.1),)
    )
    config.optimizer.schedule = {"name": "multistep", "at": at, "factor": 0.1}


def decay_layers(depth: int, factor: float) -> tuple[tuple[str, float], ...]:
    """Learning rates that fall from a Vision Transformer's last block to its first (ELECTRA, BEiT).

    For `optimizer.lr_multipliers`: what comes after the blocks has the full rate, each block
    `factor` times the rate of what comes after it, and so have the patches, tokens and positions
    before the first one. Copies of the last block learn as it does.

    Args:
      depth: the number of blocks.
      factor: 0 to 1; 0.65 to 0.75 is usual.
    """
    embedding = "patch_embed|cls_token|class_position|pos_embed|camera_embed|reg_token|norm_pre"
    blocks = [
        (rf"^(backbone|branch_\w+)/block{number}/", factor ** (depth - number))
        for number in reversed(range(depth))
    ]
    return (*blocks, (rf"^backbone/({embedding})\b", factor ** (depth + 1)))


def persons_only(arguments: str, **usual) -> ConfigDict:
    """The experiment that bot.py and those after it begin with: a classifier of persons.

    Adam and its warm-up are BoT's, with weight decay in the gradient. Checkpoints are chosen by the
    market mAP of new persons, never by the loss.

    Args:
      arguments: the backbone and its arguments, "efficientnet_lite,variant=1"; without a name
        EfficientNet-Lite0.
      **usual: arguments of the backbone that the arguments may still change; those that it does not
        have are left out, and of a backbone from outside all but `pooling`.
    """
    name, values = read_backbone(arguments)
    known = BACKBONES.get(name, {})
    usual = {key: value for key, value in usual.items() if key in ("pooling", *known)}
    config = get_config()
    config.tasks = ("reid",)
    config.model = {
        "name": "classifier",
        "classes": {},  # attribute -> number of classes, to learn attributes too
        "backbone": backbone(name, usual | values),
        "pretrained": "auto" if name == "efficientnet_lite" else "",
        "identities": -1,  # those of the training split
        "classifier": "linear",
    }
    learn_persons(config)
    config.optimizer.update(
        learning_rate=3.5e-4, coupled=True, warmup_epochs=10.0, warmup_from=0.01
    )
    config.select = {"metric": "val/market/mAP", "mode": "max"}
    config.patience = 0
    config.evaluate_every = 5
    return config


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


def take_words(text: str, known: Collection[str]) -> tuple[list[str], str]:
    """The words of a config file's arguments that it knows itself, and the rest.

    Args:
      text: words and KEY=VALUE between commas.
      known: the words to take out.

    Returns:
      The known words in their order, and all else between commas.
    """
    words = list(filter(None, text.split(",")))
    rest = ",".join(word for word in words if word not in known)
    return [word for word in words if word in known], rest


def read_backbone(text: str) -> tuple[str, dict]:
    """The backbone that the arguments of a config file name, and its arguments.

    Args:
      text: "efficientnet_lite,variant=1"; without a name EfficientNet-Lite.
    """
    words, values = read_arguments(text)
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is more than a backbone and its arguments: {text!r}")
    return (words or ["efficientnet_lite"])[0], values


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
                "val_fraction": 0.2,  # of the training identities, to choose checkpoints by
                "holdout_fraction": 0.0,  # and to judge in the end, by --split=holdout
                "split_seed": 0,
                "in_memory": True,
            },
            # training in stages: {"small": {"until": 0.5, "image_size": (192, 96)}} trains on
            # smaller pictures for the first half; "last_stride" is the other field
            "stages": {},
            "batch_size": 64,
            "num_instances": 0,  # images of each identity in a batch; 0 draws images alone
            "grad_accum_steps": 1,  # parts of a batch whose gradients are averaged
            "epochs": 30,
            "steps_per_epoch": 0,  # 0: as many batches as the training images fill
            "evaluate_every": 1,  # epochs
            "patience": 10,  # evaluations without a better value of select; 0 never stops
            "log_every": 10,  # steps
            "select": {"metric": "val/loss", "mode": "min"},  # what the best checkpoint is best in
            "evaluators": {},  # run at each evaluation, files of market_jax/evaluators
            "report_every": 1,  # evaluations until pictures are drawn again; 0: in the end alone
            # beside metrics.jsonl, see market_jax/training/trackers.py; one without a name is off
            "writers": {
                "tensorboard": {"name": "tensorboard"},
                "wandb": {"name": "", "project": "market_jax", "entity": "", "group": ""},
                "mlflow": {"name": "", "experiment": "market_jax", "uri": ""},
            },
            "metrics": {},  # reported beside the loss
            "ema_decay": 0.0,  # of an average of the parameters, which is then evaluated
            "hooks": {},  # after each update, see market_jax/training/hooks.py
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "schedule": {"name": "cosine"},
                "warmup_epochs": 1.0,
                "warmup_from": 0.0,  # the first rate of the warm-up over the full one
                "weight_decay": 5e-4,
                "clip_norm": 0.0,
                "lr_multipliers": (),  # ((regular expression, factor of the rate), ...)
                "freeze_epochs": 0.0,  # first epochs in which the backbone is not changed
                "plateau_factor": 1.0,  # below 1: of the rate, after so many evaluations
                "plateau_every": 8,  # without a better value of select
            },
        }
    )
