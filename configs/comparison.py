"""The systems of both reports on equal terms: the same pictures, backbone and number of epochs.

python train.py --config=configs/comparison.py:apr --workdir=runs/apr \
    --config.data.name=unitn --config.data.dir=DIR
python train.py --config=configs/comparison.py:jcm,ctc=0.5 --workdir=runs/jcm ...
python evaluate.py --task=reid --workdir=runs/apr --checkpoint=latest

After the colon stand the name of a file in configs/ and the arguments that it takes itself. Its
network, losses, augmentation, optimizer and the shape of its schedule stay as they are. Pictures
are 256x128, the training has 20 epochs, in which a warm-up has its share, and the last network is
judged, so that nothing is selected.
"""

import importlib

from ml_collections import ConfigDict

EPOCHS, IMAGE_SIZE = 20, (256, 128)


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
    config = make(rest) if rest else make()
    share = EPOCHS / config.epochs
    for key in ("warmup_epochs", "freeze_epochs"):
        config.optimizer[key] = share * config.optimizer[key]
    config.epochs, config.evaluate_every, config.patience = EPOCHS, 5, 0
    config.data.image_size = IMAGE_SIZE
    config.stages = {}
    return config
