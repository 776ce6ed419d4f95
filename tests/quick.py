"""Programs that run once: compiled quickly, not well."""

import contextlib
import functools

import jax

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
