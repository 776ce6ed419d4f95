"""Commands that are killed: how they are started, and what they must end in."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from lottery_jax import checkpoints

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of the processes: compiled programs and data are made once for all of them."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "LOTTERY_JAX_CACHE": str(cache),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def settings(environment):
    """Those of the processes, so that compiled programs are shared with them."""
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    before["jax_disable_most_optimizations"] = jax.config.read(
        "jax_disable_most_optimizations"
    )
    values = (environment["JAX_COMPILATION_CACHE_DIR"], 0.0, True)
    for name, value in zip(before, values):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def start(environment, study, folder, *flags):
    """Starts the command of a study, whose folder is made in one that is there."""
    command = [sys.executable, *flags, "-m", "experiments.imp", *study.split()]
    return subprocess.Popen(
        [*command, "--out", str(folder)],
        cwd=folder.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(environment, study, folder):
    """Runs the command to its end; returns stderr."""
    process = start(environment, study, folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def kill_when(environment, study, folder, happened):
    """Starts the command and kills it as soon as something has happened."""
    process = start(environment, study, folder)
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return err


def lines(folder):
    """How many validations the metrics tell of."""
    path = folder / "replicas-000-001" / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def bits(folder):
    """Everything that must not depend on interruptions, by name."""
    import xarray as xr

    found = {}
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        for name in results.variables:
            if not name.startswith(("time", "seconds", "steps_per_")):
                found[name] = results[name].values.tobytes()
    group = folder / "replicas-000-001"
    for path in sorted(group.glob("tickets/*/*")):
        found[str(path.relative_to(group))] = path.read_bytes()
    newest = group / "checkpoints" / f"{checkpoints.latest(group / 'checkpoints'):08d}"
    header = json.loads((newest / "metadata.json").read_text())
    found["checkpoint"] = [header["leaves"], header["metadata"]]
    found["checkpoint/leaves.bin"] = (newest / "leaves.bin").read_bytes()
    return found


def same(folder, other):
    """Checks that two runs ended in the same bits."""
    one, two = bits(folder), bits(other)
    assert one.keys() == two.keys()
    assert len(one) > 25
    assert [name for name in one if one[name] != two[name]] == []
