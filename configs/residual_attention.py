"""The Residual Attention Network (Wang et al. 2017) as a backbone for attributes.

python train.py --config=configs/residual_attention.py --config.data.name=unitn \
    --config.data.dir=DIR
python train.py --config=configs/residual_attention.py:depth=92 --config.data.name=unitn \
    --config.data.dir=DIR

After the colon stand the backbone's arguments. Attention-56, whose masks go down and up again on
each of three stages; source B's attention heads take their name from it. Heads, losses and pictures
are those of `configs/source_b.py:heads`; no published weights fit, so that all of it is trained at
one rate. Beside a ResNet of its size: `configs/source_b.py:heads,resnet,depth=50` with
`--config.model.pretrained="" --config.optimizer.lr_multipliers="()"`. Blocks activate after their
sum, as ResNet's first version; the authors' do before their convolutions.

On the course release 20 epochs (--config.epochs=20 --config.patience=0) take 3.3 hours of a core
with AVX-512 and end at 81.1 % of the 12 attributes (multi-class) on new identities; the ResNet has
81.0, from 60 % of the hours.
"""

from ml_collections import ConfigDict

from configs import source_b


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: the backbone's: "depth=92,width=32".
    """
    config = source_b.get_config(f"heads,residual_attention,{arguments}")
    config.optimizer.lr_multipliers = ()
    return config
