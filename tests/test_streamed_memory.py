"""Training on more than the process may have: two windows lie in memory, and no more."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from examples_read import Listed

import lottery_jax as lj
from lottery_jax.training import windows

pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).parent / "memory_limited.py"
MIB = 2**20


def limited(*options):
    """Runs the program, on one device, with pages that are given back when freed."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def linux():
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_DATA counts all private memory on Linux alone")


def test_a_set_ten_times_larger_than_the_memory_trains_in_two_windows(linux):
    done = limited()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["set"] >= 10 * found["limit"]
    # The limit bites: not even an eleventh of the set can lie in memory.
    assert found["refused"]
    # A step computes with a few hundred kilobytes; reading and Python take the rest.
    assert found["grew"] <= 2 * found["window"] + 16 * MIB
    assert found["grew"] >= 1.5 * found["window"], "what is measured is not there"
    # In an epoch every example is read once; the test split by `evaluate`, once.
    assert found["train"] == [1] and found["test"] == [1]
    assert found["error"] < 0.5


def test_with_less_than_two_windows_it_fails(linux):
    window = 4 * 64 * 256 * 256 * 3
    done = limited("--steps", 200, "--slack", -window)
    assert done.returncode != 0
    # Whoever asks first once it is used up: NumPy, JAX, or a thread for its stack.
    refusals = ("MemoryError", "RESOURCE_EXHAUSTED", "can't start new thread")
    assert any(text in done.stderr for text in refusals), done.stderr


def test_windows_lie_on_a_cpu_where_they_were_read(monkeypatch):
    made = []

    def buffers(*args, real=windows._buffers):
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(windows, "_buffers", buffers)
    images = np.zeros((70, 9, 7, 3), np.uint8)
    examples = Listed({"image": images, "label": np.arange(70, dtype=np.int32)})
    execution = lj.Execution(1, 1)
    parts = windows.of_split(
        examples, [(0, 33), (33, 70)], execution, lj.Where().waited
    )
    for number, part in enumerate(parts):
        for name, array in part.items():
            address = made[number][name].ctypes.data
            assert array.unsafe_buffer_pointer() == address, name
    assert number == 1
    window = windows._by_group(execution, [windows._buffers(examples, 50)])
    for name, array in window.items():
        (shard,) = array.addressable_shards
        assert shard.data.unsafe_buffer_pointer() == made[-1][name].ctypes.data, name
