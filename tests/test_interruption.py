"""Kills, full disks and damaged files: what is on the disk is right, or refused."""

import contextlib
import errno
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from killed_runs import environment as environment
from killed_runs import finish, kill_when, lines, same
from killed_runs import settings as settings

from lottery_jax import checkpoints, records

pytestmark = pytest.mark.slow

pytest.importorskip("xarray")

STUDY = (
    "mnist1d --model mlp-8 --subset 200 --steps 12it --rewind-step 2it --validate-every 4 "
    "--levels 2 --replicas 2 --arms ticket reinit small_dense --level-optimizer rewind "
    "--schedule cosine --checkpoint-seconds 0"
)
"""All that a run carries along: a trunk, fresh and late rows, moments, a schedule."""
LINES = 9  # of metrics: three levels of three validations


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(environment, STUDY, folder)
    assert lines(folder) == LINES
    return folder


def test_killed_again_and_again_it_ends_in_the_same_bits(
    environment, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    moments = [
        lambda: (folder / "config.json").is_file(),  # nothing is trained yet
        lambda: lines(folder) >= 2,  # in level 0
        lambda: lines(folder) >= 5,  # in level 1
        lambda: lines(folder) >= LINES,  # about to write the last checkpoint, results
    ]
    for happened in moments:
        kill_when(environment, STUDY, folder, happened)
    finish(environment, STUDY, folder)
    same(folder, undisturbed)
    # The stream is continued: a line for each validation, in order.
    stream = (folder / "replicas-000-001" / "metrics.jsonl").read_text().splitlines()
    where = [(json.loads(x)["level"], json.loads(x)["step"]) for x in stream]
    assert where == [(level, step) for level in range(3) for step in (4, 8, 12)]
    # Nothing half-written is left over.
    left = [p for p in folder.rglob(".*") if p.name not in (".zarray", ".zattrs")]
    assert left == []


def test_a_full_disk_is_said_and_loses_nothing(environment, undisturbed, tmp_path):
    """No file can grow beyond a limit, so a checkpoint cannot be written."""
    folder = tmp_path / "run"
    code = (
        "import resource, sys; from experiments import imp;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (13_000, -1));"
        "sys.exit(imp.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *STUDY.split(), "--out", str(folder)],
        env=environment | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "cannot write checkpoint 1 to" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "results.nc").exists()
    finish(environment, STUDY, folder)
    same(folder, undisturbed)


# --- in this process ------------------------------------------------------------------


@pytest.fixture
def here(environment, settings, monkeypatch):
    """Runs the command in this process: (exit status, stdout, stderr)."""
    from experiments import imp
    from experiments.kinds import images

    monkeypatch.setenv("LOTTERY_JAX_CACHE", environment["LOTTERY_JAX_CACHE"])

    def command(*arguments):
        images._load_data.cache_clear()
        words = [a.split() if isinstance(a, str) else [str(a)] for a in arguments]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = imp.main(sum(words, []))
            except SystemExit as stop:
                status = stop.code
        assert "Traceback" not in err.getvalue()
        return status, out.getvalue(), err.getvalue()

    yield command
    images._load_data.cache_clear()


@pytest.fixture
def copy(undisturbed, tmp_path):
    return pathlib.Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


damages = pytest.mark.parametrize("damage", [truncate, flip])


@pytest.fixture
def no_training(monkeypatch):
    from lottery_jax import training

    def train(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(training, "train", train)


@pytest.mark.parametrize(
    "name, damage",
    [("results.nc", truncate), ("results.nc", flip), ("results.nc.sha256", flip)],
)
def test_damaged_results_are_made_again_without_training(
    copy, undisturbed, here, no_training, name, damage
):
    damage(copy / name)
    if name == "results.nc":
        with pytest.raises(ValueError, match="results.nc is damaged"):
            records.load(copy / name)
    status, out, err = here(STUDY, "--out", copy)
    assert status == 0, err
    same(copy, undisturbed)


@damages
def test_a_damaged_configuration_is_refused(copy, here, damage):
    damage(copy / "config.json")
    for arguments in (STUDY, f"--from {copy} --level 1"):
        status, _, err = here(arguments, "--out", copy)
        assert status == 2
        assert "config.json is damaged" in err
        assert len(err.strip().splitlines()) == 1


def test_a_configuration_may_be_restored_by_hand(copy, here, no_training):
    (copy / "config.json").unlink()
    config = records.load(copy / "results.nc").attrs["config"]
    status, _, err = here(STUDY, "--out", copy)
    assert status == 2 and "holds no run" in err
    (copy / "config.json").write_text(config)
    assert here(STUDY, "--out", copy)[0] == 0


@damages
def test_a_damaged_ticket_is_refused(copy, here, damage):
    (path,) = copy.glob("replicas-*/tickets/imp/level01-replica01.safetensors")
    damage(path)
    status, _, err = here("--from", copy, "--level 1 --out", copy / "new")
    assert status == 2 and str(path) in err and "ticket" in err
    assert not (copy / "new").exists()


def newest(folder):
    where = folder / "replicas-000-001" / "checkpoints"
    return sorted(p for p in where.iterdir() if p.name.isdecimal())[-1]


def checkpoint_files(folder):
    return sorted(p for p in newest(folder).rglob("*") if p.is_file())


@damages
def test_any_damaged_checkpoint_file_is_noticed(copy, damage):
    where = copy / "replicas-000-001" / "checkpoints"
    last = checkpoints.latest(where)
    assert last is not None
    files = checkpoint_files(copy)
    names = ["leaves.bin", "manifest.json", "metadata.json"]
    assert [path.name for path in files] == names
    for path in files:
        content = path.read_bytes()
        damage(path)
        with pytest.warns(RuntimeWarning, match=path.name):
            assert checkpoints.latest(where) == last - 1
        path.write_bytes(content)
    assert checkpoints.latest(where) == last


def test_without_the_newest_checkpoint_it_goes_on_from_the_one_before(
    copy, undisturbed, here
):
    (copy / "results.nc").unlink()
    flip(newest(copy) / "leaves.bin")
    with pytest.warns(RuntimeWarning, match="falling back to checkpoint"):
        status, _, err = here(STUDY, "--out", copy)
    assert status == 0, err
    assert "continuing at level 2, step 8" in err
    same(copy, undisturbed)


def test_without_any_checkpoint_it_says_what_to_delete(copy, here):
    (copy / "results.nc").unlink()
    folders = [p for p in newest(copy).parent.iterdir() if p.name.isdecimal()]
    for folder in folders:
        truncate(folder / "metadata.json")
    status, _, err = here(STUDY, "--out", copy)
    assert status == 2 and "delete" in err
    assert all(str(folder) in err for folder in folders)


def full(monkeypatch, *names):
    """From now on such files (names or paths) cannot be put in place: a full disk."""
    real = os.replace

    def replace(source, target):
        if pathlib.Path(target).name in names or pathlib.Path(target) in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("name", ["results.nc", "verdicts.json"])
def test_whatever_cannot_be_written_is_named_and_made_later(
    copy, undisturbed, here, monkeypatch, no_training, name
):
    (copy / name).unlink()
    if not name.startswith("results"):
        expected = (undisturbed / name).read_text()
    with monkeypatch.context() as patch:
        full(patch, copy / name)
        status, _, err = here(STUDY, "--out", copy)
    assert status == 2
    assert f"cannot write {copy / name}: No space left on device; make room" in err
    assert not (copy / name).exists()
    assert here(STUDY, "--out", copy)[0] == 0
    same(copy, undisturbed)
    if not name.startswith("results"):
        assert (copy / name).read_text() == expected


def test_a_ticket_that_cannot_be_written_is_written_later(
    copy, undisturbed, here, monkeypatch
):
    for path in (copy / "results.nc", *copy.glob("replicas-*/tickets/imp/level02*")):
        path.unlink()
    shutil.rmtree(newest(copy))  # the last one said that level 2 is over
    with monkeypatch.context() as patch:
        full(patch, "level02-replica01.safetensors")
        status, _, err = here(STUDY, "--out", copy)
    assert status == 2 and "level02-replica01.safetensors: No space left" in err
    assert not (copy / "results.nc").exists()
    assert here(STUDY, "--out", copy)[0] == 0
    same(copy, undisturbed)


def test_a_kill_between_folder_and_configuration_is_harmless(copy, here, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    # What a process left that died in the middle of writing.
    left = f".tmp-{2**22 - 1}-0badcafe-{socket.gethostname()}"
    (folder / left).write_text('{"da')
    config = records.read_config(copy)
    assert config is not None
    records.claim_folder(folder, config, [])
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    assert records.read_config(folder) == config


def test_results_hold_no_nan_where_something_was_measured(undisturbed):
    results = records.load(undisturbed / "results.nc")
    assert not results["diverged"].any()
    for name in ("test_error", "test_loss", "validation_loss", "train_loss"):
        assert np.isfinite(results[name]).all(), name
