import jax
import pytest


@pytest.fixture(autouse=True)
def optimized():
    """Kernels are compiled as they are outside the tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
