"""How long until the first step? Cold, and from the persistent cache.

python -m benchmarks.compile --config=configs/attributes_cnn.py [--config.KEY=VALUE ...]

Runs the start of a training twice in new processes with the same new cache folder, and prints
seconds: importing, making the state (parameters drawn), tracing and compiling the step, the step
itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

CHILD = "BENCHMARK_CHILD"


def start() -> dict[str, float]:
    """The seconds of each part of this process's start."""
    begin = time.perf_counter()
    import jax
    import numpy as np
    from absl import flags
    from ml_collections import config_flags

    from market_jax import build, devices
    from market_jax.training.state import init_state, init_variables
    from market_jax.training.step import make_train_step

    config = config_flags.DEFINE_config_file("config")
    flags.FLAGS(sys.argv)
    devices.start()
    config, times = config.value, {"import": time.perf_counter() - begin}

    def lap(name, function, *arguments):
        begin = time.perf_counter()
        result = function(*arguments)
        times[name] = time.perf_counter() - begin
        return result

    model = build.model(config.model, config.dtype)
    tx = build.optimizer(config, model, steps_per_epoch=10)

    def make_state():
        variables = init_variables(model, config.data.image_size, seed=config.seed)
        return jax.block_until_ready(init_state(variables, tx, seed=config.seed))

    state = lap("state", make_state)
    objective, augment = build.objective(config), build.augment(config)
    step = make_train_step(build.apply(config, model), objective, augment, tx)
    n = config.batch_size
    batch = {name: np.zeros(n, np.int64) for name in config.model.get("classes", {})}
    batch["image"] = np.zeros((n, *config.data.image_size, 3), np.uint8)
    batch = jax.device_put(batch | {"mask": np.ones(n, bool)})
    compiled = lap("trace and compile", lambda: step.lower(state, batch).compile())
    lap("step", lambda: jax.block_until_ready(compiled(state, batch)))
    return times


def main() -> None:
    """Runs this module twice, as a child."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {CHILD: "1", "JAX_COMPILATION_CACHE_DIR": cache}
        for name in ("cold", "from the cache"):
            command = [sys.executable, "-m", "benchmarks.compile", *sys.argv[1:]]
            output = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            times = json.loads(output.splitlines()[-1])
            print(f"{name}: " + ", ".join(f"{k} {v:.1f} s" for k, v in times.items()))


if __name__ == "__main__":
    if os.environ.get(CHILD):
        print(json.dumps(start()))
    else:
        main()
