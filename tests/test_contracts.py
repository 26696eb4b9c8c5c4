"""The import contracts of setup.cfg, and what the project promises about its own files."""

import subprocess

import pytest
from importlinter.cli import lint_imports

from tests.conftest import ROOT


def test_import_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_logo=True, is_debug_mode=False) == 0, "run lint-imports"


def test_no_picture_or_weight_is_tracked():
    """Images of people may not be distributed."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    ends = (".jpg", ".jpeg", ".png", ".npz", ".npy", ".pth", ".safetensors", ".array_record")
    assert not [name for name in listed.stdout.splitlines() if name.lower().endswith(ends)]
