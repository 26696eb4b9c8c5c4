"""Trainings that clusters teach, stopped and gone on with."""

import functools
import os
import signal

import numpy as np
import pytest

from configs import cluster_contrast, spcl
from market_jax import scripts
from market_jax.errors import InputError
from market_jax.recipes import cluster_contrast as recipe
from market_jax.retrieval import pseudo_labels
from market_jax.training import checkpoints, loop
from tests.recipes.test_cluster_contrast import read_clusters, rounds_of, shrunk, variables
from tests.recipes.test_interrupted import heeded as heeded


@pytest.fixture
def stop(monkeypatch):
    """(config, folder, strike) trains until a signal comes after that many steps."""
    push = loop._Window.push

    def train(config, folder, strike):
        def signalled(self, step, metrics):
            push(self, step, metrics)
            if step + 1 == strike:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Window, "push", signalled)
            with pytest.raises(scripts.Stopped):
                recipe.fit(config, folder)
        assert checkpoints.steps(folder / "checkpoints")[-1] == strike

    return train


def assert_same(first, second):
    """Both runs have ended with the same parameters, rounds and clusters."""
    for a, b in zip(*map(variables, (first, second)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rounds_of(first) == rounds_of(second)
    whole, gone_on = map(read_clusters, (first, second))
    assert whole.keys() == gone_on.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(value, gone_on[key])


@pytest.mark.parametrize("strike", [3, 4, 6])
def test_a_stopped_run_ends_with_the_same_parameters(synthetic, tmp_path, stop, strike):
    """Within a round, at its border, and in the next one."""
    config = shrunk(spcl, synthetic)
    recipe.fit(config, tmp_path / "whole")
    stop(config, tmp_path / "run", strike)
    recipe.fit(config, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert read_clusters(tmp_path / "run").keys() == {"name", "digest", "0", "1", "2"}


def test_averages_and_the_hard_update_go_on_across_a_border(synthetic, tmp_path, stop):
    changes = {"ema_decay": 0.9, "hooks.memory.hard": True, "data.in_memory": False}
    config = shrunk(cluster_contrast, synthetic, epochs=2, **changes)
    recipe.fit(config, tmp_path / "whole")
    stop(config, tmp_path / "run", 6)
    recipe.fit(config, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_round_goes_on_with_the_clusters_that_it_began_with(
    synthetic, tmp_path, stop, monkeypatch
):
    """Even where the same features would be clustered otherwise now."""
    config = shrunk(spcl, synthetic, epochs=2)
    recipe.fit(config, tmp_path / "whole")
    stop(config, tmp_path / "run", 6)
    cluster = pseudo_labels.jaccard_dbscan

    @functools.wraps(cluster)
    def shuffled(*arguments, **settings):
        found = cluster(*arguments, **settings)
        return found._replace(labels=np.random.default_rng(0).permutation(found.labels))

    monkeypatch.setattr(pseudo_labels, "jaccard_dbscan", shuffled)
    recipe.fit(config, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_clusters_that_are_lost_are_told(synthetic, tmp_path, stop):
    config, file = shrunk(spcl, synthetic, epochs=2), tmp_path / "run" / recipe.FILE
    stop(config, tmp_path / "run", 6)
    kept = read_clusters(tmp_path / "run")
    for change, message in (
        (
            {"1": kept["1"][1:]},
            "is of other pictures than round 1, which goes on; remove the check",
        ),
        ({"digest": kept["digest"][::-1]}, "is of other pictures than round 1"),
        ({"digest": np.array(["x"])}, "is of other pictures than round 1"),
    ):
        np.savez(file, **kept | change)
        with pytest.raises(InputError, match=message):
            recipe.fit(config, tmp_path / "run")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"clusters.npz: cannot be read \(.*\), or has no round 1,"
    ):
        recipe.fit(config, tmp_path / "run")
    file.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        recipe.fit(config, tmp_path / "run")
