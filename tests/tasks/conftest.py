"""A run that the tests of tasks share."""

import shutil

import pytest

from market_jax import runs


@pytest.fixture
def trained(workdir, tmp_path):
    """A run of its own, restored."""
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/evaluation", ignore_errors=True)
    return runs.restore(tmp_path / "run")
