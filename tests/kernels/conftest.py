import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def optimized():
    """Kernels are compiled as they are outside the tests."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
