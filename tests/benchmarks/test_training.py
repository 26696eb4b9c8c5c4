import numpy as np
import pytest

from benchmarks import training, training_jax


@pytest.mark.parametrize("network", ["attributes_cnn", "vae"])
def test_a_case_trains_and_is_counted(network):
    run = training_jax.make_step(network, "float32", "jax", (4, 64, 64, 3))
    losses = [run() for _ in range(3)]
    assert np.isfinite(losses).all()
    assert run.count() > 1e6
    assert run.parameters > 1e6


def test_every_case_is_a_network_of_both_sides():
    text = (training.Path(training.__file__).parent / "networks_torch.py").read_text()
    for network, shape in training.CASES.values():
        assert network in training_jax.NETWORKS
        assert f'"{network}": (' in text
        assert len(shape) == 4


def test_the_ratio_is_to_the_faster_peer_of_the_same_round():
    taken = {"peak_memory": 900.4, "start_memory": 300.0, "faults": 12.3}
    ours = {"seconds": [1.0, 2.0, 4.0], "flops": 4e9, "peak": 1e9} | taken
    eager = {"seconds": [2.0, 2.0, 2.0], "peak": 2e9} | taken
    compiled = {"seconds": [3.0, 3.0, 3.0], "peak": 2e9} | taken
    lines = training.rows("vae", "float32", {"jax": ours, "eager": eager, "compiled": compiled})
    assert lines[0][:7] == ("vae", "float32", "jax", "2000", "32.0", "1.00", "100 %")
    assert lines[0][7:] == ("900", "600", "12")
    assert [line[5] for line in lines] == ["1.00", "1.00", "1.50"]
