"""Programs that run once: compiled quickly, not well."""

import functools

import jax
import pytest

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` without LLVM's optimisations, which take most of the time of such a test."""


@pytest.fixture(scope="module", autouse=True)
def everything():
    """Compiles all programs of a test file so, the library's own among them.

    A file that imports this fixture has it. All programs of the file are compiled alike,
    so that two of them may still be compared bit for bit.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
