"""Several processes: meetings, who gets what, and two real ones on loopback."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments import groups
from lottery_jax import processes, records
from lottery_jax.processes import LostProcessError, Meeting

ROOT = pathlib.Path(__file__).resolve().parent.parent

FLAGS = (
    "mnist1d --levels 1 --steps 60it --replicas 4 --validate-every 20 --model mlp-16 "
    "--checkpoint-seconds 0 --arms ticket random_mask"
)

COMMAND = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv.pop(1)))
from experiments import imp
from lottery_jax import processes, resume
processes.PATIENCE = 6.0
kill_at, save, saved = int(sys.argv.pop(1)), resume.save, []
def save_and_die(*args):
    save(*args)
    saved.append(None)
    if len(saved) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
resume.save = save_and_die
sys.exit(imp.main(sys.argv[1:]))
"""


def start(folder, cache, *more, devices=2, kill_at=0):
    environment = os.environ | {
        "LOTTERY_JAX_CACHE": str(cache),
        "MPLBACKEND": "agg",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(devices), str(kill_at), *FLAGS.split()]
        + ["--out", str(folder), *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pair(folder, cache, kill_second_at=0):
    """Both exit statuses and outputs of two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = [
        "--distributed",
        "--coordinator",
        f"127.0.0.1:{port}",
        "--processes",
        "2",
    ]
    both = [
        start(folder, cache, *several, "--process", str(i), kill_at=i * kill_second_at)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    return [process.returncode for process in both], outputs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("alone") / "run"
    process = start(folder, cache)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    return records.load(folder / "results.nc")


def same_results(folder, alone):
    found = records.load(folder / "results.nc")
    assert found["replica"].values.tolist() == [0, 1, 2, 3]
    for name, values in alone.data_vars.items():
        # One replica at a time on each device: equal bits.
        np.testing.assert_array_equal(found[name].values, values.values, err_msg=name)


def test_two_processes_are_one(tmp_path, cache, alone):
    statuses, outputs = pair(tmp_path / "run", cache)
    assert statuses == [0, 0], outputs
    assert "ticket matching" in outputs[0] and "ticket" not in outputs[1]
    same_results(tmp_path / "run", alone)
    parts = sorted(p.name for p in (tmp_path / "run").glob("replicas-*"))
    assert parts == ["replicas-000-001", "replicas-002-003"]
    for part in parts:  # each process held, checkpointed and stored its own
        part = tmp_path / "run" / part
        assert records.load(part / "results.nc").sizes["replica"] == 2
        assert any((part / "checkpoints").iterdir())
    assert not list((tmp_path / "run").glob(".meeting-*"))


def test_a_killed_process_and_a_resume_on_other_devices(tmp_path, cache, alone):
    statuses, outputs = pair(tmp_path / "run", cache, kill_second_at=2)
    assert statuses == [2, -9], outputs
    assert "error: process 1 has given no sign of life for 6 s" in outputs[0]
    assert "Its replicas [2, 3] are as they were last checkpointed" in outputs[0]
    assert "Traceback" not in outputs[0]
    # What was not lost is done; one process with one device does the rest.
    stored = tmp_path / "run" / "replicas-000-001" / "results.nc"
    before = stored.stat().st_mtime_ns
    process = start(tmp_path / "run", cache, devices=1)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "continuing at level 0, step 40" in output
    assert stored.stat().st_mtime_ns >= before
    same_results(tmp_path / "run", alone)
    changes = json.loads(
        records.load(tmp_path / "run" / "replicas-002-003" / "results.nc").attrs[
            "execution_changes"
        ]
    )
    assert [(level, step) for level, step, _ in changes] == [(0, 40)]
    assert changes[0][2]["devices"] == 1


def meetings(folder, number, patience=5.0):
    return [Meeting(folder, i, number, patience) for i in range(number)]


def test_words_reach_everyone_in_order(tmp_path):
    first, second, third = meetings(tmp_path, 3)
    heard = {}

    def wait(meeting, word):
        heard[meeting.index] = meeting.gather("found", word)

    threads = [
        threading.Thread(target=wait, args=(m, w))
        for m, w in ((third, "c"), (first, "a"))
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert not heard
    wait(second, {"b": [1, None]})
    for thread in threads:
        thread.join()
    assert heard == dict.fromkeys(range(3), ["a", {"b": [1, None]}, "c"])


def test_a_failure_is_heard_of(tmp_path):
    first, second = meetings(tmp_path, 2)
    second.say("failed", "OSError: no space left")
    with pytest.raises(
        LostProcessError, match="process 1 has failed: OSError: no space"
    ):
        first.hear("done", 1)


def test_silence_is_a_loss_and_a_beating_heart_is_not(tmp_path):
    first, _ = meetings(tmp_path, 2, patience=0.5)
    with pytest.raises(LostProcessError, match="process 1 has given no sign of life"):
        first.hear("done", 1)
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            (tmp_path / "alive.0001.json").write_text("")

    thread = threading.Thread(target=beat)
    thread.start()
    threading.Timer(1.2, lambda: Meeting(tmp_path, 1, 2, 1.0).say("done", 7)).start()
    assert first.hear("done", 1) == 7
    over.set()
    thread.join()


def test_one_process_meets_itself(tmp_path):
    with processes.meet(tmp_path) as meeting:
        assert meeting.gather("seen", "x") == ["x"]
        assert processes.smallest("chunk", 5) == 5
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError), processes.meet(tmp_path):
        raise OSError("full")
    assert processes.share([3, 4, 5]) == [3, 4, 5]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_new_replicas_come_in_as_many_groups_as_there_are_processes(tmp_path, parts):
    found = groups.groups(tmp_path, 7, parts)
    assert [i for _, ids in found for i in ids] == list(range(7))
    assert len(found) == parts
    assert max(len(ids) for _, ids in found) - min(len(ids) for _, ids in found) <= 1


def test_stored_groups_stay_and_gaps_are_filled(tmp_path):
    (tmp_path / "replicas-002-003").mkdir()
    found = {path.name: ids for path, ids in groups.groups(tmp_path, 6, 2)}
    assert found == {
        "replicas-002-003": [2, 3],
        "replicas-000-001": [0, 1],
        "replicas-004-005": [4, 5],
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, None), "give all three, or none"),
        (("127.0.0.1:1", 2, 2), "process=2; it must be between 0 and 1"),
    ],
)
def test_a_start_that_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*given)
