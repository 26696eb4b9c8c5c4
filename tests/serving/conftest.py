"""A gallery of drawn people, and a server that shows it."""

import contextlib
import threading
import time

import pytest

from market_jax.galleries.gallery import Gallery
from tests.galleries.conftest import Network, draw

LOCAL = ("127.0.0.1", "localhost", "testserver")


@pytest.fixture
def crops(tmp_path):
    return draw(tmp_path / "crops", 12)


@pytest.fixture
def gallery(tmp_path, crops):
    with Gallery(tmp_path / "gallery", Network(), create=True) as opened:
        opened.add(crops)
        yield opened


@contextlib.contextmanager
def serving(gallery, images=None):
    """The address of a server in a thread."""
    import uvicorn

    from market_jax.serving import app

    application = app.make(gallery.model, gallery, LOCAL, images)
    config = uvicorn.Config(application, port=0, log_level="error")
    server = uvicorn.Server(config)
    found = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{found.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        found.close()


@pytest.fixture
def served(gallery):
    with serving(gallery) as address:
        yield address
