"""--task=index: describes pictures once, for a gallery that `--task=search` searches."""

from absl import logging

from market_jax.api import Model
from market_jax.errors import InputError
from market_jax.galleries.gallery import Gallery
from market_jax.runs import Run
from market_jax.tasks import inputs

NEEDS = "reid"


def run(
    run: Run,
    *,
    gallery: str | None = None,
    images: str | None = None,
    annotations: str | None = None,
    remove: str | None = None,
    flip: bool = False,
    skip_bad: bool = False,
    index: str = "",
) -> str:
    """Adds the pictures of a folder to a gallery, or removes some; none is described twice.

    Args:
      run: the run, or a published network.
      gallery: The gallery: a folder, or the address of a Milvus server, http://HOST:19530.
      images: The folder with the pictures that are added.
      annotations: A CSV that lists them: name, and camid, sequence, frame, time where known.
      remove: Pictures or folders, with commas between, that leave the gallery, not the disk.
      flip: Describe each picture by the mean with its mirror image; a gallery of its own.
      skip_bad: Leave bad pictures and rows out and list them.
      index: Milvus's kind of index, of a new gallery: FLAT is exact, and the usual one; HNSW,
        IVF_FLAT and IVF_PQ are faster.

    Returns:
      The text for the terminal.

    Raises:
      InputError: a flag is missing, or the gallery or the pictures are not as they should be.
    """
    if not gallery or bool(images) == bool(remove):
        raise InputError("--task=index needs --gallery, and either --images or --remove")
    if remove:
        inputs.refuse("with --remove", annotations=annotations, skip_bad=skip_bad)
    with Gallery(gallery, model_of(run), flip=flip, index=index, create=bool(images)) as opened:
        if remove:
            text = f"{opened.remove(remove.split(','))} pictures removed"
        else:
            text = _added(opened, images, annotations, skip_bad)
        return f"{text}; {len(opened)} in the gallery {opened.place}"


def model_of(run: Run) -> Model:
    """The network of a run, as galleries take it.

    Args:
      run: the run.

    Raises:
      InputError: it has no network.
    """
    if run.predict is None:
        raise InputError("a gallery needs a network: --workdir or --model, not --config")
    return Model(run)


def _added(gallery: Gallery, images: str, annotations: str | None, skip_bad: bool) -> str:
    added = gallery.add(images, table=annotations, skip_bad=skip_bad)
    for message in added.skipped:
        logging.warning("skipped: %s", message)
    further = {name: getattr(added, name) for name in ("moved", "updated", "replaced")}
    further["skipped"] = len(added.skipped)
    shown = [f"{count} {what}" for what, count in further.items() if count]
    return ", ".join([f"{added.described} pictures described, {added.known} known", *shown])
