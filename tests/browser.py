"""Speaks WebDriver to a headless Chromium, for the tests of pages."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request


class Browser:
    """Speaks WebDriver to a headless Chromium."""

    def __init__(self, driver, binary, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rsplit(":")[-1]
        self.process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        switches = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking")
        options = {
            "binary": binary,
            "args": [f"--{s}" for s in switches] + [f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(folder)},
        }
        for _ in range(100):
            try:
                self.session = ""
                answer = self.call(
                    "session",
                    {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}},
                )
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        self.session = f"session/{answer['sessionId']}/"

    def call(self, what, value=None, method="POST"):
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(
            f"{self.address}/{self.session}{what}".rstrip("/"),
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script):
        return self.call("execute/sync", {"script": script, "args": []})

    def wait(self, script, seconds=20):
        """Until a script returns something that is true, which is returned."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return found

    def saved(self, path, seconds=10):
        """Until a file that the page saves is there; returns its text."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, f"never saved: {path}"
            time.sleep(0.1)
        return path.read_text()

    def send(self, selector, text):
        """Keys to an element, or the path of a file to one that takes files."""
        found = self.call("element", {"using": "css selector", "value": selector})
        self.call(f"element/{next(iter(found.values()))}/value", {"text": str(text)})

    def close(self):
        self.call("", None, "DELETE")
        self.process.terminate()
        self.process.wait()
