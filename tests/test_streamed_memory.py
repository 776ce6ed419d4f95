"""A set ten times larger than the memory that a process may use: it trains, in two windows."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent

SCRIPT = """
import resource, threading, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np, optax
from flax import linen as nn
import lottery_jax as lj
from lottery_jax import streams
from lottery_jax.training import windows

SIDE, BATCH, STEPS = 256, 32, 16
MIB = 2**20

class Generated(streams.Examples):
    # Pixels of their numbers: nothing is kept.
    fields = {
        "image": jax.ShapeDtypeStruct((SIDE, SIDE, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((), np.int32),
    }

    def __init__(self, number):
        self.number, self.seen = number, np.zeros(number, int)

    digest = property(lambda self: f"generated {self.number}")

    def __len__(self):
        return self.number

    def read(self, indices, into):
        self.seen[indices] += 1
        into["image"][:] = (indices % 2 * 200)[:, None, None, None]
        into["label"][:] = indices % 2

class Looks(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(x[:, ::64, ::64].reshape(len(x), -1))

def task(number):
    arrays = {"train": streams.columns(Generated(number))}
    arrays["test"] = streams.columns(Generated(2000))
    dataset = lj.data.Dataset(arrays, 2, (SIDE, SIDE, 3), (0.5,), (0.5,), "generated")
    return lj.tasks.classification(
        dataset, Looks(), batch_size=BATCH, evaluation_batch=BATCH
    )

def own(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def run(task, steps):
    where = lj.Where(window=STEPS)
    done = lj.train(task, optax.sgd(0.01), steps, 1, validate_every=STEPS * 8, where=where)
    return lj.training.evaluate(task, done.networks, "test", where=where), where

WINDOW = STEPS * BATCH * (SIDE * SIDE * 3 + 4)
windows.ON_HOST = 2 * WINDOW  # parts of evaluation are as large as a window
small = task(100 * BATCH)
run(small, STEPS * 8)  # compiles
limit = own("VmData") + 2 * WINDOW + 64 * MIB
number = 10 * limit // (SIDE * SIDE * 3) // BATCH * BATCH + BATCH
large = task(number)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

# The control: the limit is one.
try:
    np.ones(2 * WINDOW + 128 * MIB, np.uint8)
    raise SystemExit("the limit does not hold")
except MemoryError:
    pass

before, peak, over = own("RssAnon"), [0], threading.Event()

def look():
    while not over.is_set():
        peak[0] = max(peak[0], own("RssAnon"))
        time.sleep(0.002)

watcher = threading.Thread(target=look)
watcher.start()
found, where = run(large, number // BATCH)
over.set()
watcher.join()
grown = peak[0] - before
seen = large.data["train"]["image"].examples.seen
print(
    f"{number:,} examples, {number * SIDE * SIDE * 3 / limit:.1f} times the limit of "
    f"{limit / MIB:,.0f} MiB; grown by {grown / WINDOW:.2f} windows of "
    f"{WINDOW / MIB:.0f} MiB; waited {where.waited.share:.0%}"
)
assert (seen == 1).all(), "an epoch reads each example once"
assert grown <= 2 * WINDOW + 32 * MIB, grown / MIB
assert found["error"][0] == 0, found
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
def test_a_set_ten_times_as_large_as_the_memory(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
