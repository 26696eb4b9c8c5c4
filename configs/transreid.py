"""TransReID (He et al. 2021): a Vision Transformer with overlapping patches and a jigsaw of them.

python train.py --config=configs/transreid.py --config.data.name=unitn --config.data.dir=DIR \
    --config.model.pretrained=vit_base_patch16_224.pth
python train.py --config=configs/transreid.py:vit,size=small,family=deit \
    --config.model.pretrained=deit_small_patch16_224.pth \
    --config.data.name=unitn --config.data.dir=DIR

After the colon stand "vit" and its arguments; without, it is ViT-B/16. The files are timm's. As in
the paper: 256x128, patches of 16 pixels every 12, mirrored, padded by 10 and cropped,
erased; 16 persons of 4 pictures; stochastic depth up to 0.1; descent with momentum at 0.008, twice
that for biases, weight decay of 1e-4, a warm-up of 5 epochs from a hundredth, then half a cosine,
120 epochs; cross-entropy and triplets with the soft margin, half of their weight on the class
token, half together on four groups of patches, which a copy of the last block reads.

Each camera has an embedding, and pictures whose cameras are not those of the training have the mean
of all; with `any_camera`, which may stand anywhere after the colon, there are none.

It differs from the paper in that erased pixels have one colour; in that weight decay leaves biases
and norms alone; and in that pictures are compared after the BNNecks. Four patches are shifted, as
by the public code (whose five count the class token); the paper says five. Its networks are read
and written (naming TransReID). It is for an accelerator: no figure on real data was taken yet;
docs/results.md has those of ViT-Ti on synthetic people.
"""

from ml_collections import ConfigDict

from configs import common

GROUPS = 4


def get_config(arguments: str = "") -> ConfigDict:
    """The experiment.

    Args:
      arguments: "vit" and its arguments, and "any_camera": "vit,size=tiny".
    """
    any_camera, rest = common.take_words(arguments, ("any_camera",))
    name = "" if rest.split(",")[0] == "vit" else "vit,"
    config = common.persons_only(name + rest, size="base", patch_stride=12, drop_path=0.1)
    config.model.backbone.cameras = () if any_camera else (-1,)
    config.epochs = 120
    descend(config)
    learn_groups(config)
    return config


def descend(config: ConfigDict) -> None:
    """Gradient descent with momentum instead of Adam.

    Args:
      config: of `common.persons_only`, which is changed.
    """
    config.optimizer = common.get_config().optimizer
    config.optimizer.schedule = {"name": "cosine", "end": 0.002}
    config.optimizer.update(
        name="sgd",
        learning_rate=0.008,
        weight_decay=1e-4,
        warmup_epochs=5.0,
        warmup_from=0.01,
        lr_multipliers=(("/bias$", 2.0),),
    )


def learn_groups(config: ConfigDict) -> None:
    """Makes the network one with a jigsaw, and gives each of its features its losses.

    Args:
      config: of `common.persons_only`, which is changed.
    """
    config.model.update(name="transreid", groups=GROUPS, shift=4, shuffle=2)
    groups = {f"jigsaw{number}": 0.5 / GROUPS for number in range(1, GROUPS + 1)}
    config.losses = {}
    for part, weight in ({"global": 0.5} | groups).items():
        config.losses[f"identity_{part}"] = {
            "name": "cross_entropy",
            "logits": f"identity_{part}",
            "labels": "identity",
            "weight": weight,
        }
        config.losses[f"triplet_{part}"] = {
            "name": "triplet",
            "features": f"feature_{part}",
            "weight": weight,
            "margin": 0.0,
        }
