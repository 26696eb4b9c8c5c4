"""The HTTP interface as its clients use it, and as those who mean harm do."""

import hashlib
import io
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from market_jax.data import decoding
from market_jax.errors import InputError
from market_jax.galleries.gallery import Gallery
from market_jax.tasks import serve
from tests.conftest import ROOT
from tests.galleries.conftest import Network, calibrate, draw
from tests.serving.conftest import LOCAL

pytest.importorskip("fastapi")
pytest.importorskip("pymilvus")
testclient = pytest.importorskip("fastapi.testclient")

from market_jax.serving import app


@pytest.fixture
def client(gallery):
    with testclient.TestClient(app.make(gallery.model, gallery, LOCAL)) as opened:
        yield opened


def content(crops, number=0):
    return sorted(crops.iterdir())[number].read_bytes()


def test_a_crop_gets_its_embedding_and_attributes(client, crops, gallery):
    found = client.post("/describe", content=content(crops)).json()
    expected = gallery.model.embed(sorted(crops.iterdir())[0])[0]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    assert sum(found["attributes"]["gender"]["probabilities"].values()) == pytest.approx(1)


def test_a_crop_finds_who_is_like_it(client, crops, gallery):
    found = client.post("/search", content=content(crops), params={"top_k": 4}).json()
    hits = gallery.search(sorted(crops.iterdir())[0], top_k=4)
    assert [answer["id"] for answer in found["answers"]] == [hit.id for hit in hits]
    assert found["id"] == hits[0].id == hashlib.sha256(content(crops)).hexdigest()
    assert found["answers"][0]["name"] == sorted(crops.iterdir())[0].name
    assert found["answers"][0]["distance"] == pytest.approx(0, abs=1e-6)
    again = client.get(
        "/search", params={"id": hits[0].id, "top_k": 4, "where": "camid = 2"}
    ).json()
    assert {answer["camid"] for answer in again["answers"]} == {2}
    ranked = client.post("/search", content=content(crops), params={"rerank": True}).json()
    assert ranked["answers"][0]["same"] is None


def test_who_is_near_enough_is_said(gallery, crops):
    hits = gallery.search(sorted(crops.iterdir())[0], top_k=5)
    calibrate(gallery.model, hits[2].distance + 1e-6)
    with testclient.TestClient(app.make(gallery.model, gallery, LOCAL)) as client:
        assert client.get("/about").json()["same_person"]["precision"] == 0.9
        settings = {"top_k": 5, "rerank": False}
        found = client.post("/search", content=content(crops), params=settings).json()
        assert [answer["same"] for answer in found["answers"]] == [True] * 3 + [False] * 2
        assert client.get("/pictures").json()[0]["same"] is None


def test_what_is_added_is_counted(client, gallery, tmp_path):
    assert client.get("/about").json()["pictures"] == 12
    gallery.add(draw(tmp_path / "more", 2, first=80))
    assert client.get("/about").json()["pictures"] == 14


def test_a_picture_is_served_as_long_as_it_is_what_was_described(client, crops, gallery):
    hit = next(gallery.all())
    found = client.get("/picture", params={"id": hit.id})
    assert found.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(found.content)).size == (8, 16)
    Path(hit.path).write_bytes(content(crops, 0) + b"x")
    found = client.get("/picture", params={"id": hit.id})
    assert found.status_code == 400
    assert "another one than the gallery has described" in found.json()["detail"]
    Path(hit.path).unlink()
    assert client.get("/picture", params={"id": hit.id}).status_code == 400


def test_no_other_file_is_read(client, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret)
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    assert client.get("/picture", params={"id": digest}).status_code == 400
    for id in ("../secret.png", str(secret), "' or true or id == '", "0" * 63, ""):
        assert client.get("/picture", params={"id": id}).status_code == 422, id
    for path in ("/../secret.png", "/%2e%2e/secret.png", "/page.js/../../app.py", "/app.py"):
        assert client.get(path).status_code == 404, path


def bomb(width, height):
    """A PNG of a few kilobytes with many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def animated():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 16), color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def half(kind):
    """The first half of a picture's file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()[: buffer.tell() // 2]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body of the request, which is empty"),
        (b"x" * (app.MOST_BYTES + 1), 413, "larger than 16000000 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "none of JPEG, PNG, WEBP, BMP"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, 400, "the picture cannot be decoded"),
        (half("PNG"), 400, "the picture cannot be decoded"),
        (half("JPEG"), 400, "the picture cannot be decoded"),
        (bomb(10_000, 10_000), 400, "pixels"),
        (bomb(4000, 2501), 400, "has 4000x2501 pixels; 10000000 are the most"),
        (animated(), 400, "none of JPEG, PNG, WEBP, BMP"),
    ],
)
def test_hostile_pictures_are_refused(client, body, status, message):
    for path in ("/describe", "/search"):
        found = client.post(path, content=body)
        assert found.status_code == status
        assert message in found.json()["detail"]


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"where": "gendr = 'x'"}, 400, "did you mean 'gender'"),
        ({"where": "true or id like '%'"}, 400, "unknown name"),
        ({"where": "camid = 1" + " and camid = 1" * 200}, 422, "at most 2000"),
        ({"top_k": 0}, 422, "greater than or equal to 1"),
        ({"top_k": 10**9}, 422, "less than or equal to 1000"),
        ({"rerank": "perhaps"}, 422, "valid boolean"),
    ],
)
def test_bad_settings_are_named(client, crops, settings, status, message):
    found = client.post("/search", content=content(crops), params=settings)
    assert found.status_code == status
    assert message in str(found.json()["detail"])


def test_other_pages_of_the_browser_get_nothing(client):
    assert client.get("/about", headers={"host": "evil.example"}).status_code == 400
    found = client.get("/")
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert found.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in found.headers


def test_without_a_gallery_a_picture_is_described_alone(crops):
    with testclient.TestClient(app.make(Network(), None, LOCAL)) as client:
        assert client.get("/about").json()["gallery"] is None
        assert client.post("/describe", content=content(crops)).status_code == 200
        found = client.post("/search", content=content(crops))
        assert "there is no gallery" in found.json()["detail"]


def test_the_interface_describes_itself(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/about", "/describe", "/search", "/pictures", "/picture"}
    assert "image/*" in paths["/describe"]["post"]["requestBody"]["content"]


def test_several_ask_at_once(client, crops, gallery):
    expected = [hit.id for hit in gallery.search(sorted(crops.iterdir())[0], top_k=3)]
    found = []

    def ask():
        answers = client.post("/search", content=content(crops), params={"top_k": 3}).json()
        found.append([answer["id"] for answer in answers["answers"]])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_pictures_are_decoded_one_at_a_time(client, crops, monkeypatch):
    """A large one takes up much memory."""
    at_once, busiest, decode = [], [], decoding.decode

    def slow(*args):
        at_once.append(1)
        busiest.append(len(at_once))
        time.sleep(0.05)
        at_once.pop()
        return decode(*args)

    monkeypatch.setattr(decoding, "decode", slow)
    id = hashlib.sha256(content(crops)).hexdigest()
    threads = [
        threading.Thread(
            target=client.post, args=("/describe",), kwargs={"content": content(crops)}
        )
        for _ in range(4)
    ]
    threads += [threading.Thread(target=client.get, args=(f"/picture?id={id}",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert busiest == [1] * 6


def test_names_are_paths_in_the_folder_that_is_given(gallery, tmp_path):
    gallery.add(draw(tmp_path / "elsewhere" / "yard", 1, first=50))
    for images, folder, start in (
        (None, tmp_path, "elsewhere/yard/"),
        (tmp_path / "elsewhere", tmp_path / "elsewhere", "yard/"),
        (tmp_path / "crops", tmp_path / "crops", f"{tmp_path}/elsewhere/yard/"),
    ):
        with testclient.TestClient(app.make(gallery.model, gallery, LOCAL, images)) as client:
            assert client.get("/about").json()["folder"] == str(folder)
            (found,) = client.get("/pictures", params={"where": "frame = 50"}).json()
            assert found["name"] == f"{start}0050_c3s1_000050_00.png"
    for images in ("/nowhere", str(tmp_path / "else")):
        with pytest.raises(InputError, match=f"--images={images}: the gallery has no picture"):
            app.make(gallery.model, gallery, LOCAL, images)


def test_paths_with_two_slashes_have_a_folder(tmp_path):
    for part in ("crops/a", "crops/b"):
        draw(tmp_path / part, 1, first=len(part) + ord(part[-1]))
    with Gallery(tmp_path / "gallery", Network(), create=True) as gallery:
        gallery.add(f"/{tmp_path}/crops")
        assert gallery.folder() == tmp_path / "crops"
        assert gallery.holds(f"/{tmp_path}/crops/b")


def test_an_empty_gallery_is_one(tmp_path, crops):
    with (
        Gallery(tmp_path / "empty", Network(), create=True) as gallery,
        testclient.TestClient(app.make(gallery.model, gallery, LOCAL)) as client,
    ):
        about = client.get("/about").json()
        assert (about["pictures"], about["folder"]) == (0, "/")
        assert about["gallery"] == str(gallery.place)
        assert client.post("/search", content=content(crops)).json()["answers"] == []


def test_the_program_serves_this_machine_alone_until_it_is_stopped(workdir, synthetic_raw):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "evaluate.py", "--task=serve", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, f"--port={port}"], cwd=ROOT, **pipes) as process:
        try:
            lines = iter(process.stdout.readline, "")
            assert any(f"http://127.0.0.1:{port} (Ctrl-C stops)" in line for line in lines)
            picture = next((synthetic_raw / "query").iterdir()).read_bytes()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/describe", picture)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert len(json.load(answer)["embedding"]) == 12
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port))
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, text
    assert "stopped" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 0}, "--port is 0; it must be 1 to 65535"),
        ({"gallery": "/none"}, "no gallery"),
        ({"images": "crops"}, "--images does nothing without --gallery"),
        ({"flip": True}, "--flip does nothing without --gallery"),
    ],
)
def test_the_task_refuses_what_it_cannot_serve(settings, message, monkeypatch):
    monkeypatch.setattr(serve, "model_of", lambda run: Network())
    with pytest.raises(InputError, match=message):
        serve.run(None, **settings)


def test_a_port_that_is_taken_is_named(monkeypatch):
    monkeypatch.setattr(serve, "model_of", lambda run: Network())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened at"):
            serve.run(None, port=port)


def test_a_picture_that_never_ends_is_stopped(served):
    """Sent in pieces, without a length."""
    host, port = served.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            b"POST /describe HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        while not select.select([client], [], [], 0)[0] and sent < 10 * app.MOST_BYTES:
            client.sendall(b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n")
            sent += 0xFFFFF
        assert b" 413 " in client.recv(4096)
