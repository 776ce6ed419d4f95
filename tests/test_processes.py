"""Several processes: meetings, who gets what, and two real ones on loopback."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax.execution import Deadline, Execution, OutOfTimeError, processes
from lottery_jax.execution.processes import LostProcessError, Meeting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

HERE = pathlib.Path(__file__).resolve().parent

# Two groups of two replicas; each in a folder of its own, by whoever gets it.
COMMAND = """
import os, pathlib, signal, sys
import jax
devices, folder, kill_at = int(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", devices)
import test_processes
from lottery_jax.execution import processes
processes.PATIENCE = 6.0
if sys.argv[4:]:
    processes.start(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
told = []
def watch(progress):
    print("told", progress.done, progress.resumed, flush=True)
    told.append(progress)
    if len(told) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    with processes.meet(folder) as meeting:
        for ids in processes.share([(0, 1), (2, 3)]):
            test_processes.train_group(folder, ids, watch, meeting)
        meeting.gather("done", None)
except processes.LostProcessError as error:
    sys.exit(f"error: {error}")
"""


def train(ids, where):
    task = toys.classification(lj.models.make("mlp-6", 4))
    return lj.train(task, optax.adam(0.02), 12, ids, validate_every=4, where=where)


def name(ids):
    return f"replicas-{ids[0]}-{ids[-1]}"


def arrays(done):
    tree = (done.networks, done.curves)
    return {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}


def train_group(folder, ids, watch, meeting):
    """What a process does with a group of replicas."""
    own = folder / name(ids)
    done = train(ids, lj.Where(None, own, 0, watch, meeting=meeting))
    np.savez(own / "done.npz", **arrays(done))
    changes = [(c.step, c.execution.devices) for c in done.changes]
    print("changes", changes, flush=True)


def start(folder, *more, devices=2, kill_at=0):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what runs once is compiled quickly
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(devices), str(folder), str(kill_at), *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pair(folder, kill_second_at=0):
    """Both exit statuses and outputs of two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        start(*(folder, f"127.0.0.1:{port}", "2", str(i)), kill_at=i * kill_second_at)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    return [process.returncode for process in both], outputs


@pytest.fixture(scope="module")
def alone():
    """All four replicas in one process, this one."""
    return arrays(train(range(4), lj.Where(Execution(2, 1, "loop", "float32"))))


def same_results(folder, alone):
    parts = [np.load(folder / name(ids) / "done.npz") for ids in ((0, 1), (2, 3))]
    for key, values in alone.items():
        if values.shape[0] != 4:  # the recorded steps
            continue
        # One replica at a time on each device: equal bits.
        found = np.concatenate([part[key] for part in parts])
        np.testing.assert_array_equal(found, values)


def test_two_processes_are_one(tmp_path, alone):
    statuses, outputs = pair(tmp_path)
    assert statuses == [0, 0], outputs
    same_results(tmp_path, alone)
    parts = sorted(p.name for p in tmp_path.iterdir())
    # Each held, checkpointed and stored its own; nothing is left of the meeting.
    assert parts == ["replicas-0-1", "replicas-2-3"]
    assert all(lj.checkpoints.latest(tmp_path / part) is not None for part in parts)
    assert all(output.count("told 0 False") == 1 for output in outputs)


def test_a_killed_process_and_a_resume_on_other_devices(tmp_path, alone):
    statuses, outputs = pair(tmp_path, kill_second_at=3)
    assert statuses == [1, -9], outputs
    assert "error: process 1 has given no sign of life for 6 s" in outputs[0]
    assert "Traceback" not in outputs[0]
    # What was not lost is done; one process with one device does the rest.
    process = start(tmp_path, devices=1)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert "told 12 True\nchanges" in output  # of the first group
    assert "told 4 True" in output and "changes [(4, 1)]" in output
    same_results(tmp_path, alone)


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


def test_the_smallest_of_all_is_the_same_for_all(tmp_path):
    found = {}

    def settle(meeting, value):
        found[meeting.index] = meeting.smallest("chunk", value)

    first, second = meetings(tmp_path, 2)
    thread = threading.Thread(target=settle, args=(second, 2))
    thread.start()
    settle(first, 7)
    thread.join()
    assert found == {0: 2, 1: 2}


def test_who_has_no_more_to_do_settles_nothing(tmp_path):
    first, second, third = meetings(tmp_path, 3)
    second.say(processes.DONE, None)
    third.offer("chunk", 3)
    third.say(processes.DONE, "stopped")
    assert first.smallest("chunk", 7) == 3
    first.offer("chunk", 1)
    assert third.hear("chunk", 0) == 7  # the first word counts


def test_what_is_stored_is_said_to_those_who_have_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(
        lj.execution.replicas._OF_PLATFORM, "cpu", (0, "loop", "float32")
    )
    first, second = meetings(tmp_path / "words", 2)
    first.folder.mkdir()
    where = lj.Where(None, tmp_path / "0")
    assert train([0, 1], where).execution.chunk == 0  # of an earlier call
    assert train([0, 1], lj.Where(None, tmp_path / "0", meeting=first))
    assert train([2, 3], lj.Where(None, tmp_path / "1", meeting=second))
    assert second.hear("chunk", 0) == second.hear("chunk", 1) == 2**31 - 1


def test_nobody_waits_beyond_the_deadline(tmp_path):
    now = [0.0]
    limit = Deadline(1, now=lambda: now[0])
    first = Meeting(tmp_path, 0, 2, 60.0, limit)
    now[0] = 49.9
    threading.Timer(0.2, lambda: now.__setitem__(0, 50.1)).start()
    begin = time.monotonic()
    with pytest.raises(OutOfTimeError, match="0.8 of 1 minutes at the wait for proc"):
        first.smallest("chunk", 7)
    assert time.monotonic() - begin < 10
    Meeting(tmp_path, 1, 2, 60.0).say("chunk", 5)  # what is there is read all the same
    assert first.hear("chunk", 1) == 5


def test_who_has_stopped_in_time_has_not_failed(tmp_path, monkeypatch):
    for name, value in (("index", 1), ("count", 2), ("_token", "a")):
        monkeypatch.setattr(processes, name, lambda value=value: value)
    limit = Deadline(1)
    with pytest.raises(OutOfTimeError), processes.meet(tmp_path, deadline=limit) as own:
        assert own.deadline is limit
        raise limit.stopped()
    (folder,) = tmp_path.iterdir()
    with pytest.raises(OutOfTimeError, match="the same command goes on"):
        Meeting(folder, 0, 2, 60.0).hear("done", 1)
    # Too short for anything: each does its piece, and waits for the others'.
    with processes.meet(tmp_path, deadline=Deadline(0.1)) as own:
        assert own.deadline is None


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
        assert meeting.smallest("chunk", 5) == 5
        assert meeting.smallest("chunk", 9) == 5  # the first word counts
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError), processes.meet(tmp_path):
        raise OSError("full")
    assert processes.share([3, 4, 5]) == [3, 4, 5]


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


def test_a_start_with_no_cluster_to_ask_says_what_to_say():
    with pytest.raises(ValueError, match="give all three"):
        processes.start("127.0.0.1:1", processes=2)
