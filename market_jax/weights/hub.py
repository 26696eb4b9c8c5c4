"""Files on the Hugging Face Hub, each downloaded once: "hf:OWNER/NAME/FILE"."""

from pathlib import Path

from market_jax.errors import InputError

__all__ = ["PREFIX", "download"]

PREFIX = "hf:"


def download(source: str) -> Path:
    """Downloads a file of a repository, unless it was downloaded before.

    Args:
      source: "hf:OWNER/NAME/FILE".

    Returns:
      Where it lies, in the folder of the package huggingface_hub.

    Raises:
      InputError: it is written otherwise, the package huggingface_hub is not installed, or the file
        cannot be downloaded.
    """
    owner, name, file = [*source.removeprefix(PREFIX).split("/", 2), "", ""][:3]
    if not file:
        raise InputError(f"{source}: it must be hf:OWNER/NAME/FILE")
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{source} needs: pip install huggingface_hub") from None
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{name}", file))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source} cannot be downloaded ({reason}); where there is no network, fetch "
            f"https://huggingface.co/{owner}/{name}/resolve/main/{file} elsewhere and name the file"
        ) from None
