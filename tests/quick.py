"""Programs that run once: compiled quickly, not well."""

import functools

import jax

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` without LLVM's optimisations, which take most of the time of such a test."""
