"""--task=serve: a page and an HTTP interface for a network and a gallery."""

import contextlib
import socket

from market_jax.errors import InputError
from market_jax.galleries.gallery import Gallery
from market_jax.runs import Run
from market_jax.tasks import inputs
from market_jax.tasks.index import model_of

NEEDS = "reid"


def run(
    run: Run,
    *,
    gallery: str | None = None,
    images: str | None = None,
    flip: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> str:
    """Serves a page that finds people in a gallery, until it is stopped by Ctrl-C.

    Args:
      run: the run or published network that has described the gallery.
      gallery: The gallery that --task=index has made; without, pictures are described alone.
      images: The folder in which the names of marks are paths, as it is given to other tasks; by
        default the one that has all pictures of the gallery.
      flip: The gallery that --flip has described.
      host: The address that is listened at; whoever reaches it sees the gallery. By default this
        machine alone.
      port: The port, 1 to 65535.

    Returns:
      The text for the terminal, at the end.

    Raises:
      InputError: FastAPI is not installed, the gallery cannot be opened or has no picture
        in --images, or the port is taken.
    """
    try:
        import uvicorn

        from market_jax.serving import app
    except ImportError:
        raise InputError("--task=serve needs: pip install 'market_jax[serve]'") from None
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}; it must be 1 to 65535")
    if not gallery:
        inputs.refuse("without --gallery", images=images, flip=flip)
    model = model_of(run)
    opened = Gallery(gallery, model, flip=flip) if gallery else None
    try:
        local = host in ("127.0.0.1", "localhost", "::1")
        names = ("127.0.0.1", "localhost", "[::1]") if local else ("*",)
        application = app.make(model, opened, names, images)
        with _listen(host, port) as listening:
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{port} (Ctrl-C stops)", flush=True)
            server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
            with contextlib.suppress(KeyboardInterrupt):  # raised again once it has stopped
                server.run([listening])
    finally:
        if opened is not None:
            opened.close()
    return "stopped"


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host}:{port} cannot be listened at ({reason})") from None
