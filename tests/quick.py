"""Programs that run once: compiled quickly, not well."""

import contextlib
import functools

import jax
import pytest

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` without LLVM's optimisations, which take most of the time of such a test."""


@contextlib.contextmanager
def compilation():
    """The same for all that is compiled within, whoever calls `jax.jit`.

    Not for what goes through the library's cache: other tests would find it there.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def everything():
    """Compiles all programs of a test file so, the library's own among them.

    A file that imports this fixture has it. All programs of the file are compiled alike,
    so that two of them may still be compared bit for bit.
    """
    # What other files compiled is not used here, nor what this one compiles there.
    jax.clear_caches()
    with compilation():
        yield
    jax.clear_caches()
