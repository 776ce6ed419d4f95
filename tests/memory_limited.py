"""Run as a program: trains on far more than it may have in memory; says how that went.

The set is made of numbers as it is read. Once all is compiled, by a shorter training of
the same shapes, the kernel grants the process little more than two windows.
"""

import argparse
import json
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lottery_jax as lj
from lottery_jax import streams
from lottery_jax.training import windows

SIDE, BATCH, CLASSES = 256, 64, 8
IMAGE = SIDE * SIDE * 3
TEST = 12 * BATCH


class Numbers(streams.Examples):
    """Images of one value, by the number of each; remembers how often each was read."""

    def __init__(self, number):
        self.counts = np.zeros(number, np.int32)

    @property
    def fields(self):
        image = jax.ShapeDtypeStruct((SIDE, SIDE, 3), jnp.uint8)
        return {"image": image, "label": jax.ShapeDtypeStruct((), jnp.int32)}

    @property
    def digest(self):
        return f"numbers {len(self)}"

    def __len__(self):
        return len(self.counts)

    def read(self, indices, into):
        into["image"][:] = (indices % 256).astype(np.uint8)[:, None, None, None]
        into["label"][:] = indices % 256 // (256 // CLASSES)
        np.add.at(self.counts, indices, 1)


class Glance(nn.Module):
    """Looks at a few pixels."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x[:, :: SIDE // 8, :: SIDE // 8]
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(16)(x.reshape(len(x), -1))))


def task_of(number):
    examples = {"train": Numbers(number), "test": Numbers(TEST)}
    arrays = {split: streams.columns(own) for split, own in examples.items()}
    dataset = lj.data.Dataset(
        arrays, CLASSES, (SIDE, SIDE, 3), (0.5,) * 3, (0.25,) * 3, "numbers"
    )
    options = dict(batch_size=BATCH, evaluation_batch=BATCH)
    return lj.tasks.classification(dataset, Glance(), **options), examples


def status(field):
    """Bytes, from /proc."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """The largest resident memory that is no file's, looked at all the time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self):
        while not self.over.wait(0.005):
            self.bytes = max(self.bytes, status("RssAnon"))


def refused(size):
    """Whether so many bytes cannot be had."""
    try:
        np.ones(size, np.uint8)
    except MemoryError:
        return True
    return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--slack", type=int, default=64 * 2**20)
    options = parser.parse_args()
    window = options.window * BATCH * IMAGE
    windows.ON_HOST = 2 * window  # for evaluation, too
    number = options.steps * BATCH
    task, examples = task_of(number)

    def train(task, steps):
        where = lj.Where(lj.Execution(1, 1), window=options.window)
        tx = optax.sgd(0.05)
        done = lj.train(task, tx, steps, 1, validate_every=100, where=where)
        return lj.training.evaluate(task, done.networks, "test", where=where)

    train(task, 100)
    for own in examples.values():
        own.counts[:] = 0
    before, had = status("RssAnon"), status("VmData")
    limit = had + 2 * window + options.slack
    assert not refused(window), "the control must be able to fail"
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    peak = Peak()
    peak.start()
    found = train(task, options.steps)
    peak.over.set()
    peak.join()
    print(
        json.dumps(
            {
                "set": number * IMAGE,
                "limit": limit,
                "had": had,
                "window": window,
                "grew": peak.bytes - before,
                "refused": refused(number * IMAGE // 11),
                "train": np.unique(examples["train"].counts).tolist(),
                "test": np.unique(examples["test"].counts).tolist(),
                "error": float(found["error"][0]),
            }
        )
    )


if __name__ == "__main__":
    main()
