"""What all tests share: settings that must precede JAX's start, keys, real data."""

import atexit
import itertools
import os
import shutil
import tempfile
import zlib

import jax

# Before anything starts a backend: two host devices, as on a machine with two cores.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


def _share_compiled_programs():
    """What one test has compiled, others of this run need not: half of a study's time."""
    name = "LOTTERY_JAX_TESTS_COMPILED"
    if name not in os.environ:  # not a worker, which inherits it
        os.environ[name] = tempfile.mkdtemp(prefix="lottery-jax-tests-")
        atexit.register(shutil.rmtree, os.environ[name], ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", os.environ[name])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_share_compiled_programs()

import pytest  # noqa: E402
from real_data import prepared_data as prepared_data  # noqa: E402


@pytest.fixture
def getkey(request):
    """`getkey()` is a new PRNG key at each call, the same ones in each run of a test."""
    seed = zlib.crc32(request.node.nodeid.encode())
    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in itertools.count())
    return lambda: next(keys)
