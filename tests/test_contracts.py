"""The import contracts of setup.cfg, and what the project promises about its own files."""

import ast
import re
import subprocess

import pytest
from importlinter.cli import lint_imports

from tests.conftest import ROOT


def test_import_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_logo=True, is_debug_mode=False) == 0, "run lint-imports"


def test_no_picture_or_weight_is_tracked():
    """Images of people may not be distributed; those in docs/pictures are drawn.

    Published networks lie in a package of their own, from which no picture can be made again.
    """
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    ends = (".jpg", ".jpeg", ".png", ".npz", ".npy", ".pth", ".safetensors", ".array_record")
    found = [name for name in listed.stdout.splitlines() if name.lower().endswith(ends)]
    allowed = re.compile(r"docs/pictures/|weights/market_jax_weights/\w+\.safetensors$")
    assert not [name for name in found if not allowed.match(name)]


def test_no_function_is_longer_than_60_lines():
    """Docstring included; and few are longer than 40."""
    lengths = {}
    for folder in ("market_jax", "data_prep", "configs", "benchmarks", "."):
        pattern = "*.py" if folder == "." else "**/*.py"
        for path in (ROOT / folder).glob(pattern):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    name = f"{path.relative_to(ROOT)}: {node.name}"
                    lengths[name] = node.end_lineno - node.lineno + 1
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert sum(length > 40 for length in lengths.values()) < 0.05 * len(lengths)
