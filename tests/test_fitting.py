from market_jax import devices, fitting


def test_what_the_first_step_has_left_is_given_back_once(monkeypatch):
    released = []
    monkeypatch.setattr(devices, "release_memory", lambda: released.append(True))
    step = fitting.settle(lambda state, batch: (state + batch, {"loss": state}))
    assert [step(i, 10) for i in range(3)] == [(10 + i, {"loss": i}) for i in range(3)]
    assert len(released) == 1
