"""Two processes on loopback and a map on each one's disk: who reads which examples."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import lottery_jax as lj
from lottery_jax.data import maps, order

pytest.importorskip("xarray")
pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN, BATCH, STEPS, LEVELS = 90, 16, 6, 1

# A process of its own, which notes the numbers of all that it reads.
COMMAND = """
import json, pathlib, sys
from experiments import imp
from lottery_jax.data.streamed import rows
read, seen = rows.Mapped._read, []
def noted(self, wanted, *into):
    seen.append([len(self), wanted.tolist()])
    read(self, wanted, *into)
rows.Mapped._read = noted
status = imp.main(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
sys.exit(status)
"""
FLAGS = (
    f"--data tiny_imagenet --model mlp-4 --steps {STEPS}it --batch-size {BATCH} "
    f"--levels {LEVELS} --validate-every 3 --arms ticket reinit --replicas 4 "
    "--group-size 2 --devices 1 --chunk 1 --window-steps 1"
)


def split(number, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)
    return [(image, i % 3) for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """The data folders of two nodes, with a copy of one map each."""
    root = tmp_path_factory.mktemp("nodes")
    first, second = root / "0", root / "1"
    splits = {
        "train": split(TRAIN, 0),
        "validation": split(21, 1),
        "test": split(20, 2),
    }
    maps.write(splits, maps.folder("tiny_imagenet", first), side=8)
    shutil.copytree(first, second)
    return first, second


def start(disk, folder, reads, *more):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what runs once is compiled quickly
        "LOTTERY_JAX_CACHE": str(disk.parent / "cache"),
        "TFDS_DATA_DIR": str(disk),
        "PYTHONPATH": str(ROOT),
    }
    own = [str(reads), *FLAGS.split(), "--out", str(folder), *more]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *own],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(*started):
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs


def results(folder):
    return lj.records.load(folder / "results.nc")


def of_group(ids):
    """What the orders of some replicas name, step by step, each example once.

    A replica has two: that of its ticket, and that of fresh draws.
    """
    own = lj.keys.of_replicas(0, np.array(ids))
    keys = [
        lj.keys.noise_keys(x).order for y in (own.noise, own.fresh_noise) for x in y
    ]
    one = jax.jit(order.shuffled, static_argnums=(2, 3))
    found = []
    for step in range(STEPS):
        batches = np.stack([one(key, np.int32(step), TRAIN, BATCH) for key in keys])
        found.append(np.unique(batches[batches >= 0]).tolist())
    return found


def test_each_process_reads_what_its_own_replicas_name(disks, tmp_path):
    ended(start(disks[0], tmp_path / "one", tmp_path / "reads"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    of_both = [tmp_path / f"reads-{i}" for i in range(2)]
    several = ("--distributed", "--coordinator", at, "--processes", "2", "--process")
    ended(
        *(
            start(disk, tmp_path / "two", reads, *several, str(i))
            for i, (disk, reads) in enumerate(zip(disks, of_both))
        )
    )
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert list(one.data_vars) == list(two.data_vars)
    for name in one.data_vars:
        if not name.startswith(("time", "seconds", "steps_per_")):
            np.testing.assert_array_equal(one[name].values, two[name].values, name)
    for reads, ids in zip(of_both, ((0, 1), (2, 3))):
        found = json.loads(reads.read_text())
        trained = [wanted for length, wanted in found if length == TRAIN and wanted]
        # Every level trains from step 0, in the same orders.
        assert trained == of_group(ids) * (LEVELS + 1)
        group = f"replicas-{ids[0]:03d}-{ids[1]:03d}"
        of_process = results(tmp_path / "two" / group).attrs["examples_read"]
        assert of_process == sum(len(wanted) for _, wanted in found)
        alone = results(tmp_path / "one" / group).attrs["examples_read"]
        assert of_process == alone
    total = sum(len(wanted) for f in of_both for _, wanted in json.loads(f.read_text()))
    assert two.attrs["examples_read"] == one.attrs["examples_read"] == total
