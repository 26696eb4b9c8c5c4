"""The systems of both reports on equal terms: the same pictures, backbone and number of epochs.

python train.py --config=configs/comparison.py:apr --workdir=runs/apr \
    --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/comparison.py:jcm,ctc=0.5 --workdir=runs/jcm ...
python evaluate.py --task=reid --workdir=runs/apr --checkpoint=latest

After the colon stand the name of a file in configs/ and the arguments that it takes itself. Its
network, losses and augmentation stay as they are. How long and at which rate it is trained is
small.py's, for all: at their papers' rates none of them is trained out in so few epochs, and the
comparison would be one of rates. Pictures grow in the same way to 256x128 (a sequence of rows
needs twelve, and begins at 192x96), and the last network is judged, so that nothing is selected.
Source A's networks (attributes_cnn, vae, infovae), which stand on no backbone and are learned from
nothing, keep their pictures and their optimizer.
"""

import importlib

from ml_collections import ConfigDict

from configs import small

EPOCHS = 20


def get_config(arguments: str = "bot") -> ConfigDict:
    """The experiment.

    Args:
      arguments: "source_b,identity".
    """
    name, _, rest = arguments.partition(",")
    try:
        make = importlib.import_module(f"configs.{name}").get_config
    except (ImportError, AttributeError):
        raise ValueError(f"{name!r} is no experiment in configs/") from None
    if name in ("ablation", "comparison"):
        raise ValueError(f"{name!r} is a comparison itself, with pictures of its own")
    config = make(rest) if rest else make()
    usual = small.get_config()
    if "backbone" in config.model:
        config.optimizer, config.stages = usual.optimizer, usual.stages
        config.optimizer.warmup_epochs *= EPOCHS / usual.epochs
        config.batch_size, config.data.image_size = usual.batch_size, usual.data.image_size
    if config.model.name == "jcm":
        del config.stages.first
    config.epochs, config.evaluate_every, config.patience = EPOCHS, 5, 0
    return config
