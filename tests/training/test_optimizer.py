import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import attributes_cnn, source_b
from market_jax import build
from market_jax.errors import InputError
from market_jax.training import checkpoints, optimizer
from market_jax.training.state import init_state

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0, 1.0])}
GRADIENTS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([0.5, -0.5])}


def follow(tx, steps=5):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adam_is_adamw_with_decay_on_kernels():
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    ours = follow(optimizer.adam(schedule, weight_decay=0.01))
    mask = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    theirs = follow(optax.adamw(schedule, weight_decay=0.01, mask=mask))
    for key in PARAMS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)


def test_sgd_has_momentum_and_coupled_decay():
    tx = optimizer.sgd(optax.constant_schedule(0.1), weight_decay=0.5)
    first = follow(tx, 1)
    np.testing.assert_allclose(
        first["kernel"],
        PARAMS["kernel"] - 0.1 * (GRADIENTS["kernel"] + 0.5 * PARAMS["kernel"]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(first["bias"], PARAMS["bias"] - 0.1 * GRADIENTS["bias"], rtol=1e-6)


def test_clipping_bounds_the_step():
    tx = optimizer.make_optimizer(optimizer.sgd(optax.constant_schedule(1.0)), clip_norm=0.01)
    moved = jax.tree.map(lambda a, b: a - b, follow(tx, 1), PARAMS)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


def adam_of_torch(parameter, gradients, rate, decay):
    """torch.optim.Adam in NumPy: decay goes into the gradient, before the moments."""
    first, second = np.zeros_like(parameter), np.zeros_like(parameter)
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient + decay * parameter
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        parameter = parameter - rate * first / (1 - 0.9**t) / scale
    return parameter


def three_steps(coupled):
    gradients = [jax.tree.map(lambda g, n=n: (1 - n) * g + 0.1, GRADIENTS) for n in range(3)]
    tx = optimizer.adam(optax.constant_schedule(0.1), weight_decay=0.5, coupled=coupled)
    params, state = PARAMS, tx.init(PARAMS)
    for gradient in gradients:
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return gradients, params


def test_coupled_adam_is_that_of_pytorch_on_kernels():
    gradients, found = three_steps(coupled=True)
    for key, decay in (("kernel", 0.5), ("bias", 0.0)):
        start, each = np.float64(PARAMS[key]), [np.float64(g[key]) for g in gradients]
        np.testing.assert_allclose(found[key], adam_of_torch(start, each, 0.1, decay), rtol=1e-5)
    assert np.abs(found["kernel"] - three_steps(coupled=False)[1]["kernel"]).max() > 1e-3


def test_coupled_adam_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    gradients, found = three_steps(coupled=True)
    for key, decay in (("kernel", 0.5), ("bias", 0.0)):
        parameter = torch.nn.Parameter(torch.tensor(np.array(PARAMS[key])))
        theirs = torch.optim.Adam([parameter], lr=0.1, weight_decay=decay)
        for gradient in gradients:
            parameter.grad = torch.tensor(np.array(gradient[key]))
            theirs.step()
        np.testing.assert_allclose(found[key], parameter.detach().numpy(), rtol=1e-5)


def test_values_out_of_range_are_refused():
    plain = optimizer.adam(optax.constant_schedule(0.1))
    for settings, message in (
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be 0 or more"),
        ({"lr_multipliers": [("(", 1.0)]}, r"lr_multipliers: '\(' \("),
        ({"freeze_steps": -1}, "steps of optimizer.freeze_epochs is -1; it must be 0 or more"),
        ({"clip_norm": float("nan")}, "clip_norm is nan; it must be a finite number"),
        (
            {"lr_multipliers": [("kernel", -1.0)]},
            "factor of 'kernel' is -1.0; it must be 0 or more",
        ),
        ({"lr_multipliers": [("kernel", float("nan"))]}, "factor of 'kernel' is nan; it must be"),
    ):
        with pytest.raises(InputError, match=message):
            optimizer.make_optimizer(plain, **settings)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_a_lowered_rate_moves_by_as_much_less(name):
    make = optimizer.OPTIMIZERS[name]

    def moved(lowered):
        tx = optimizer.make_optimizer(make(optax.constant_schedule(0.1)), plateau=True)
        state = tx.init(PARAMS)
        for _ in range(lowered):
            state = optimizer.lower(state, 0.8)
        return tx.update(GRADIENTS, state, PARAMS)[0]

    for key in PARAMS:
        np.testing.assert_allclose(moved(2)[key], 0.64 * moved(0)[key], rtol=1e-6)
    tx = make(optax.constant_schedule(0.1))
    plain = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(moved(0)["kernel"], plain["kernel"])


def test_multipliers_are_factors_and_the_first_fitting_pattern_counts():
    plain = optimizer.adam(optax.constant_schedule(0.1), weight_decay=0.5)
    with pytest.raises(InputError, match=r"lr_multipliers: 'neck' finds no parameter"):
        optimizer.make_optimizer(plain, lr_multipliers=[("neck", 1.0)]).init(PARAMS)
    multipliers = [("bi.s", 0.0), ("^kern", 0.25), ("s|k", 7.0)]
    found = follow(optimizer.make_optimizer(plain, lr_multipliers=multipliers), 1)
    np.testing.assert_array_equal(found["bias"], PARAMS["bias"])
    expected = PARAMS["kernel"] + 0.25 * (follow(plain, 1)["kernel"] - PARAMS["kernel"])
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)


def test_a_multiplier_of_0_keeps_weight_decay_away_too():
    plain = optimizer.adam(optax.constant_schedule(0.1), weight_decay=0.5)
    found = follow(optimizer.make_optimizer(plain, lr_multipliers=[("kernel", 0.0)]), 3)
    np.testing.assert_array_equal(found["kernel"], PARAMS["kernel"])


TWO = {"backbone": PARAMS, "head": PARAMS}
MAKERS = {
    "adam": optimizer.adam,
    "coupled": lambda *args, **settings: optimizer.adam(*args, coupled=True, **settings),
    "sgd": optimizer.sgd,
}


def falling(step):
    return 0.1 / (1 + step)


def freezing(make, freeze_steps=3, **settings):
    """An optimizer that freezes "backbone", and its jitted step: (params, state) -> both."""
    plain = make(falling, weight_decay=0.5)
    tx = optimizer.make_optimizer(plain, freeze_steps=freeze_steps, **settings)

    @jax.jit
    def step(params, state):
        gradients = jax.tree.map(lambda p: 0.3 * p + 0.1, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return tx, step


def assert_same(found, expected, assertion=np.testing.assert_array_equal):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(assertion, found, expected)


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_parameters_and_their_moments_stay_and_then_move(name):
    tx, step = freezing(MAKERS[name])
    params, state = TWO, tx.init(TWO)
    for _ in range(3):
        params, state = step(params, state)
        assert_same(params["backbone"], TWO["backbone"])
        moments = [x for x in jax.tree.leaves(state[0].inner["late"]) if x.ndim]
        assert moments
        assert not any(x.any() for x in moments)
        assert all(x.any() for x in jax.tree.leaves(state[0].inner["free"]))
    params, state = step(params, state)
    for before, after in zip(*map(jax.tree.leaves, (TWO, params)), strict=True):
        assert (before != after).all()


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_parameters_begin_like_new_ones_at_the_rate_of_their_step(name):
    tx, step = freezing(MAKERS[name])
    params, state = TWO, tx.init(TWO)
    for _ in range(5):
        params, state = step(params, state)
    later, _ = freezing(lambda rate, **k: MAKERS[name](lambda s: rate(s + 3), **k), 0)
    always, _ = freezing(MAKERS[name], 0)
    for part, plain, steps in (("backbone", later, 2), ("head", always, 5)):
        expected, plain_state = PARAMS, plain.init(PARAMS)
        for _ in range(steps):
            gradients = jax.tree.map(lambda p: 0.3 * p + 0.1, expected)
            updates, plain_state = plain.update(gradients, plain_state, expected)
            expected = optax.apply_updates(expected, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params[part], expected
        )


def test_frozen_gradients_do_not_count_in_the_norm_and_may_be_anything():
    tx = optimizer.make_optimizer(
        optimizer.sgd(optax.constant_schedule(1.0)), clip_norm=0.01, freeze_steps=1
    )
    broken = jax.tree.map(lambda g: g * jnp.nan, GRADIENTS)
    updates, state = tx.update({"backbone": broken, "head": GRADIENTS}, tx.init(TWO), TWO)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.01, rel=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("stop", [2, 4])
def test_a_frozen_training_goes_on_bit_for_bit(tmp_path, stop):
    tx, step = freezing(optimizer.adam, plateau=True, lr_multipliers=[("^head", 0.5)])
    first = init_state({"params": TWO}, tx, seed=0)
    params, opt_state = first.params, first.opt_state
    for done in range(6):
        if done == stop:
            state = first.replace(params=params, opt_state=opt_state)
            checkpoints.save(tmp_path, done, state, score=None, round_start=0, extra={})
        params, opt_state = step(params, opt_state)
    found = checkpoints.read_state(tmp_path, stop, first)
    again, again_state = found.params, found.opt_state
    for _ in range(stop, 6):
        again, again_state = step(again, again_state)
    assert_same((again, again_state), (params, opt_state))


def test_without_a_backbone_nothing_is_frozen():
    tx = optimizer.make_optimizer(optimizer.sgd(falling), freeze_steps=1)
    with pytest.raises(
        InputError, match=r"freeze_epochs: '\^\(backbone/\|branch_\)' finds no parameter"
    ):
        tx.init(PARAMS)
    config = attributes_cnn.get_config()
    config.optimizer.freeze_epochs = 1.0
    tx = build.optimizer(config, build.model(config.model), 10)
    with pytest.raises(InputError, match=r"optimizer.freeze_epochs: .* finds no parameter"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_epochs": 16}, "optimizer.freeze_epochs is 16; it must be 0 to 15"),
        ({"freeze_epochs": -0.5}, "optimizer.freeze_epochs is -0.5; it must be 0 to 15"),
        ({"freeze_epochs": float("nan")}, "optimizer.freeze_epochs is nan; it must be a finite"),
        ({"warmup_epochs": 15.5}, "optimizer.warmup_epochs is 15.5; it must be 0 to 15"),
        ({"warmup_from": 1.5}, "optimizer.warmup_from is 1.5; it must be 0 to 1"),
        (
            {"schedule": {"name": "tests.training.test_optimizer:of_two"}},
            "schedule: too many positional arguments",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    config = source_b.get_config()
    config.unlock()
    for key, value in settings.items():
        del config.optimizer[key]
        config.optimizer[key] = value
    with pytest.raises(InputError, match=message):
        build.optimizer(config, build.model(config.model), 10)


def of_two(learning_rate, total_steps, /):
    """A schedule from outside, of too few arguments."""


def test_the_settings_reach_the_optimizer():
    config = source_b.get_config()
    config.epochs = 6
    config.optimizer = {
        **config.optimizer.to_dict(),
        **{"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr_multipliers": ()},
        **{"learning_rate": 0.1, "warmup_epochs": 1.0, "warmup_from": 0.5, "freeze_epochs": 0.5},
        "schedule": {"name": "multistep", "at": (0.5,)},
    }
    tx = build.optimizer(config, build.model(config.model), 10)
    params = {"backbone": {"bias": jnp.ones(1)}, "head": {"bias": jnp.ones(1)}}
    state, step, moved = tx.init(params), jax.jit(tx.update), []
    for _ in range(32):
        updates, state = step(params, state, params)
        moved.append([-float(updates[part]["bias"][0]) for part in ("backbone", "head")])
    backbone, head = np.array(moved).T
    np.testing.assert_allclose(head[[0, 5, 10, 29, 30]], [0.05, 0.075, 0.1, 0.1, 0.01], rtol=1e-5)
    np.testing.assert_array_equal(backbone, [0.0] * 5 + list(head[5:]))
