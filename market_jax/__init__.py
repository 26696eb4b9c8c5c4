"""Pedestrian attributes and person re-identification on Market-1501, in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from market_jax.api import Model
    from market_jax.galleries.gallery import Gallery

__all__ = ["gallery", "load"]


def load(run: "str | Path", *, checkpoint: str = "best", allow_imports: bool = False) -> "Model":
    """Loads a trained network; see `market_jax.api.Model` for what it can do.

    Args:
      run: the folder of a run: "runs/source_b-identity"; or a published network, by its name,
        "small" (`pip install ./weights`), by its .safetensors file, or by that on the Hugging Face
        Hub, "hf:OWNER/NAME/FILE.safetensors". A folder goes first.
      checkpoint: "best", "latest" or a step; a published network has one.
      allow_imports: whether the run may name code outside market_jax, which is imported then.

    Returns:
      A `market_jax.api.Model`.

    Raises:
      InputError: there is no such run, checkpoint or network, or it names code outside market_jax.

    >>> model = market_jax.load(run)
    >>> model.embed(folder).shape
    (6, 12)
    """
    from market_jax import api  # JAX and all else is imported when it is needed

    return api.load(run, checkpoint=checkpoint, allow_imports=allow_imports)


def gallery(
    place: "str | Path",
    model: "str | Path" = "small",
    *,
    flip: bool = False,
    create: bool = False,
) -> "Gallery":
    """Opens a gallery; see `market_jax.galleries.gallery.Gallery` for what it can do.

    Args:
      place: a folder, or the address of a Milvus server (`pip install "market_jax[gallery]"`).
      model: the network that describes its pictures, as for `load`.
      flip: describe a picture by the mean with its mirror image.
      create: make the gallery if it is not there.

    Returns:
      A `market_jax.galleries.gallery.Gallery`.

    Raises:
      InputError: there is no such gallery or network, or it cannot be opened.

    >>> with market_jax.gallery(place, run, create=True) as gallery:
    ...     added = gallery.add(folder)
    ...     hits = gallery.search(pictures[0], where="hat <= 1.0", top_k=3)
    >>> added.described, len(hits), hits[0].path == str(folder / pictures[0].name)
    (6, 3, True)
    """
    from market_jax.galleries.gallery import Gallery

    return Gallery(place, load(model), flip=flip, create=create)
