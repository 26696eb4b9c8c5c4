"""The HTTP interface: a crop -> its embedding, its attributes, who of the gallery is like it.

Pictures come as the body of a request. Of the gallery's pictures those are read that it names, as
long as their content is what was described; no other file is. The interface is described at
/openapi.json.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from market_jax import files
from market_jax.api import Attributes, Model
from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.galleries import records
from market_jax.galleries.gallery import Gallery, Hit
from market_jax.report.answers import SURE, wears
from market_jax.report.pictures import jpeg

MOST_BYTES = 16_000_000  # of a picture that is sent
MOST_PIXELS = 10_000_000  # of the same
MOST_ANSWERS = 1000
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"
_PICTURE = {
    "requestBody": {
        "required": True,
        "description": f"A JPEG, PNG, WebP or BMP of at most {MOST_BYTES} bytes "
        f"and {MOST_PIXELS} pixels",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Label(pydantic.BaseModel):
    """A label of a picture: its most likely class, and the probability of every class."""

    name: str
    probability: float
    probabilities: dict[str, float]


class Description(pydantic.BaseModel):
    """What the network says of a picture."""

    embedding: list[float]
    attributes: dict[str, Label]


class Answer(pydantic.BaseModel):
    """A picture of the gallery; `same` says whether it is taken for the same person.

    `name` is its path in the folder that /about names; one from the root where it lies elsewhere.
    """

    id: str
    name: str
    distance: float | None
    same: bool | None
    camid: int
    sequence: int
    frame: int
    time: float
    wears: str


class Found(pydantic.BaseModel):
    """The query's labels, and the answers in their order; `id` is a digest of the query's file."""

    id: str
    attributes: dict[str, Label]
    answers: list[Answer]


class Service:
    """What the interface does, one request at a time at the network.

    Args:
      model: the network.
      gallery: the gallery; None has none.
      images: the folder in which names are paths; None takes the one that has all pictures.

    Raises:
      InputError: the gallery has no picture in the folder.
    """

    def __init__(self, model: Model, gallery: Gallery | None, images: str | None = None):
        self.model, self.gallery = model, gallery
        self._busy = threading.Lock()
        same = gallery.calibration() if gallery is not None else None
        self.threshold = same.threshold if same else None
        labels = gallery.labels if gallery is not None else {}
        self._root = _folder(gallery, images) if gallery is not None else Path("/")
        self._about = {
            "network": model.run.extra.get("name", str(model.run.workdir)),
            "gallery": gallery.place if gallery is not None else None,
            "folder": str(self._root),
            "labels": {k: list(v) for k, v in labels.items()},
            "sure": SURE,
            "same_person": same._asdict() if same else None,
        }

    def about(self) -> dict[str, Any]:
        """The network, the gallery, its number of pictures now, and how it is read."""
        with self._busy:
            count = 0 if self.gallery is None else len(self.gallery)
        return self._about | {"pictures": count}

    def describe(self, content: bytes) -> tuple[np.ndarray, dict[str, Label]]:
        """The embedding float32 [D] and the labels of a picture's file."""
        with self._busy:
            picture = decoding.decode(content, "the picture", MOST_PIXELS)
            embeddings, attributes = self.model.describe([picture], flip=self._flip)
        return embeddings[0], _labels(attributes)

    @property
    def _flip(self) -> bool:
        return self.gallery is not None and self.gallery.flip

    def search(self, vector: np.ndarray, where: str, top_k: int, rerank: bool) -> list[Answer]:
        """The answers to an embedding."""
        words = ["k_reciprocal"] if rerank else []
        with self._busy:
            hits = self._gallery.search(vector, where=where, top_k=top_k, rerank=words)
        limit = None if rerank else self.threshold
        return [self._answer(hit, limit) for hit in hits]

    def some(self, where: str, count: int) -> list[Answer]:
        """Pictures of the gallery that hold a condition."""
        with self._busy:
            return [
                self._answer(h, None) for h in itertools.islice(self._gallery.all(where), count)
            ]

    def of_gallery(self, id: str) -> tuple[np.ndarray, dict[str, Label]]:
        """The embedding and the labels of one of its pictures, as it was described."""
        with self._busy:
            hit, vector = self._gallery.find(id)
        labels = {
            label: Label(name=name, probability=value, probabilities={name: value})
            for label, (name, value) in hit.attributes.items()
        }
        return vector, labels

    def picture(self, id: str) -> bytes:
        """One of its pictures as a JPEG, if the file is what was described."""
        with self._busy:
            hit, _ = self._gallery.find(id)
        content = files.read_bytes(hit.path)
        if records.digest(content) != hit.id:
            raise InputError("the file is another one than the gallery has described")
        with self._busy:
            return jpeg(decoding.decode(content, "the picture"))

    @property
    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise InputError("there is no gallery: --task=serve --gallery=DIR")
        return self.gallery

    def _answer(self, hit: Hit, limit: float | None) -> Answer:
        known = hit._asdict()
        path = Path(known.pop("path"))
        is_within = path.is_relative_to(self._root)
        known["name"] = str(path.relative_to(self._root) if is_within else path)
        known["wears"] = wears(known.pop("attributes"))
        distance = None if math.isnan(hit.distance) else hit.distance
        same = None if limit is None else hit.distance <= limit
        return Answer(**known | {"distance": distance, "same": same})


def _folder(gallery: Gallery, images: str | None) -> Path:
    """The folder in which the names of a gallery's pictures are paths."""
    if images is None:
        return gallery.folder()
    if not gallery.holds(images):
        raise InputError(f"--images={images}: the gallery has no picture there")
    return records.absolute(images)


def _labels(attributes: Attributes) -> dict[str, Label]:
    """Of one picture."""
    found = {}
    for label, prediction in attributes.items():
        values = prediction.probabilities[0].tolist()
        name = str(prediction.names[0])
        shares = dict(zip(prediction.classes, values, strict=True))
        found[label] = Label(name=name, probability=shares[name], probabilities=shares)
    return found


async def _body(request: Request) -> bytes:
    """The body of a request, as long as it is not too large."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"the picture is larger than {MOST_BYTES} bytes")
    if not size:
        raise HTTPException(400, "the picture is the body of the request, which is empty")
    return b"".join(parts)


Where = Annotated[str, Query(max_length=2000, description="\"gender = 'female' and camid = 3\"")]
Count = Annotated[int, Query(ge=1, le=MOST_ANSWERS)]
Id = Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="of a picture of the gallery")]


def make(
    model: Model, gallery: Gallery | None, hosts: tuple[str, ...], images: str | None = None
) -> FastAPI:
    """The application.

    Args:
      model: the network.
      gallery: the gallery that is searched; None has none.
      hosts: names of this machine by which it may be called; "*" takes any.
      images: see `Service`.

    Raises:
      InputError: as `Service`.
    """
    service = Service(model, gallery, images)
    app = FastAPI(title="market_jax", description=__doc__, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.exception_handler(InputError)(_refuse)
    app.middleware("http")(_protect)
    _add_page(app)

    @app.get("/about")
    def about() -> dict[str, Any]:
        """The network, the gallery, the labels and their classes, and the calibration."""
        return service.about()

    @app.post("/describe", openapi_extra=_PICTURE)
    async def describe(request: Request) -> Description:
        """The embedding and the attributes of a picture."""
        content = await _body(request)
        vector, labels = await run_in_threadpool(service.describe, content)
        return Description(embedding=vector.tolist(), attributes=labels)

    @app.post("/search", openapi_extra=_PICTURE)
    async def search(
        request: Request, where: Where = "", top_k: Count = 20, rerank: bool = False
    ) -> Found:
        """The pictures of the gallery that are most like a picture, and hold a condition."""
        content = await _body(request)
        ask = functools.partial(_find, service, service.describe, content)
        return await run_in_threadpool(ask, where, top_k, rerank)

    @app.get("/search")
    def search_by_id(id: Id, where: Where = "", top_k: Count = 20, rerank: bool = False) -> Found:
        """The same for a picture of the gallery."""
        return _find(service, service.of_gallery, id, where, top_k, rerank)

    @app.get("/pictures")
    def pictures(where: Where = "", count: Count = 60) -> list[Answer]:
        """Some pictures of the gallery that hold a condition, in no order."""
        return service.some(where, count)

    @app.get("/picture")
    def picture(id: Id) -> Response:
        """A picture of the gallery, as a JPEG."""
        cache = {"Cache-Control": "private, max-age=86400"}
        return Response(service.picture(id), media_type="image/jpeg", headers=cache)

    return app


def _add_page(app: FastAPI) -> None:
    """Adds the page for people."""
    page = (Path(__file__).parent / "page.html").read_text()
    script = (Path(__file__).parent / "page.js").read_text()

    @app.get("/", include_in_schema=False)
    def show() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/page.js", include_in_schema=False)
    def code() -> Response:
        return Response(script, media_type="text/javascript")


def _find(
    service: Service, describe: Callable, query: bytes | str, where: str, top_k: int, rerank: bool
) -> Found:
    vector, labels = describe(query)
    id = query if isinstance(query, str) else records.digest(query)
    answers = service.search(vector, where, top_k, rerank)
    return Found(id=id, attributes=labels, answers=answers)


def _refuse(_: Request, error: InputError) -> JSONResponse:
    """A user's error, as the other endpoints' errors look."""
    return JSONResponse({"detail": str(error)}, 400)


async def _protect(request: Request, answer: Callable) -> Response:
    """Says to the browser that nothing but this page may use what it gets."""
    response = await answer(request)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response
