"""Runs as several short calls on machines that go away: stopped, packed, unpacked, gone on."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments import carry, curves, groups, imp, instability, launch
from experiments.all import EXPERIMENTS
from lottery_jax import checkpoints, plots, records
from lottery_jax.execution import Deadline
from lottery_jax.storage import parts

pytestmark = pytest.mark.usefixtures("compiled_quickly", "made_texts")

xr = pytest.importorskip("xarray")
pyplot = pytest.importorskip("matplotlib.pyplot")

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUDY = (
    "mnist1d --model mlp-8 --subset 200 --steps 8it --rewind-step 2it --validate-every 4 "
    "--levels 1 --replicas 2 --arms ticket reinit"
)
PATHS = (
    f"{instability.EXPERIMENT.default} {instability.EXPERIMENT.tiny} --steps 4it "
    "--rewind-steps 0it 2it --group-size 1"
)


class Ticking:
    """A clock on which every look takes some seconds."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


@pytest.fixture
def slow_clock(monkeypatch):
    """Deadlines by which a call of a minute does a few pieces only."""

    def deadline(minutes, **_):
        return Deadline(minutes, now=Ticking(9))

    monkeypatch.setattr(launch, "Deadline", deadline)
    # What is drawn is not looked at.
    monkeypatch.setattr(plots, "save", lambda figure, path: pyplot.close(figure))


def call(main, *arguments):
    """Runs a command in this process: (exit status, stdout, stderr)."""
    words = [
        a if isinstance(a, list) else a.split() if isinstance(a, str) else [str(a)]
        for a in arguments
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(sum(words, []))
    assert "Traceback" not in err.getvalue()
    return status, out.getvalue(), err.getvalue()


def succeed(main, *arguments):
    status, out, err = call(main, *arguments)
    assert status == 0, err
    return out


def carried(main, words, folder, most=30):
    """The command in calls of a minute, each in a folder of its own; the last one."""
    for number in range(most):
        own = folder / f"machine-{number}"
        status, _, err = call(main, words, "--minutes 1 --out", own)
        if status == 0:
            return own, number
        assert status == launch.UNFINISHED == 75
        assert "of 1 minutes at " in err and err.endswith("the same command goes on\n")
        packed = folder / f"parts-{number}"
        succeed(carry.main, "pack", own, "--part-mib 0.01 --out", packed)
        shutil.rmtree(own)
        succeed(carry.main, "unpack", packed, folder / f"machine-{number + 1}")
    raise AssertionError("it does not come to an end")


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [one for one in EXPERIMENTS if one.name not in ("imp", "instability")],
    ids=lambda one: one.name,
)
def test_every_experiment_stops_in_time_and_goes_on_to_the_same_bits(
    slow_clock, tmp_path, experiment
):
    words = f"{experiment.default} {experiment.tiny}"
    whole, folder = tmp_path / "whole", tmp_path / "parts"
    succeed(experiment.main, words, "--out", whole)
    statuses = []
    while not statuses or statuses[-1]:
        assert len(statuses) < 100
        statuses.append(call(experiment.main, words, "--minutes 1 --out", folder)[0])
    assert set(statuses[:-1]) <= {launch.UNFINISHED}
    # The tiny twins of strong_lth are made in a piece or two.
    assert len(statuses) > 1 or experiment.name == "strong_lth"
    one, two = bits(folder), bits(whole)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_the_call_of_the_docs_runs_as_printed(tmp_path):
    """With a tiny network, and minutes that suffice for one piece in each call."""
    text = (ROOT / "docs" / "gpu.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    block = block.replace(
        "resnet20-cifar10-warmup-short", STUDY.replace("--levels 1", "")
    )
    block = block.replace("--minutes 8.5", "--minutes 0.01 --levels 0")
    for number, status in enumerate((75, 75, 0)):
        here = tmp_path / str(number)
        here.mkdir()
        if number:
            (tmp_path / str(number - 1) / "after").rename(here / "before")
        done = subprocess.run(
            ["bash", "-c", block],
            cwd=here,
            env=os.environ
            | {
                "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        said = f"at level 0, step {4 * number + 4}; the same command goes on"
        assert (said in done.stderr) == (status == 75)
    assert records.intact(here / "run" / "results.nc")
    assert (here / "run" / "figures" / "accuracy.png").is_file()
    assert parts.contents(here / "after")["files"] > 10


@pytest.mark.slow
def test_two_processes_both_stop_and_go_on(tmp_path):
    """Each at a segment of its own; the first one leaves last."""
    words = STUDY.replace("--levels 1", "--levels 0").split()
    together = tmp_path / "together"
    # Per call at least a segment of each: of two there is one left, then the test.
    for expected in (75, 75, 0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = f"--distributed --coordinator 127.0.0.1:{port} --processes 2 --process"
        command = [sys.executable, "-m", "experiments.imp", *words, "--minutes", "0.01"]
        both = [
            subprocess.Popen(
                [*command, "--out", str(together), *flags.split(), str(i)],
                env=os.environ
                | {
                    "JAX_PLATFORMS": "cpu",
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                    "PYTHONPATH": str(ROOT),
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        said = [process.communicate(timeout=300)[1] for process in both]
        assert [process.returncode for process in both] == [expected] * 2, said
        for text in said:
            assert ("the same command goes on" in text) == (expected == 75)
        assert not list(together.glob(".meeting-*"))
    alone = tmp_path / "alone"
    succeed(imp.main, words, "--group-size 1 --out", alone)
    one, two = bits(together), bits(alone)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def bits(folder):
    """Everything that must not depend on how a run came to its end, by name."""
    found = {}
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        for name in results.variables:
            if not name.startswith(("time", "seconds", "steps_per_")):
                values = results[name].values
                found[name] = (
                    str(values) if values.dtype == object else values.tobytes()
                )
    for path in folder.glob("replicas-*/tickets/*/*"):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for path in folder.glob("replicas-*/checkpoints"):
        newest = path / f"{checkpoints.latest(path):08d}"
        found[str(path.relative_to(folder))] = (newest / "leaves.bin").read_bytes()
    found["verdicts"] = (folder / "verdicts.json").read_text()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "words", "things"),
    [
        pytest.param(imp.main, STUDY, 20, id="study"),
        pytest.param(instability.main, PATHS, 12, id="groups", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_carried_from_call_to_call_ends_in_the_same_bits(
    slow_clock, tmp_path, main, words, things
):
    whole = tmp_path / "whole"
    succeed(main, words, "--out", whole)
    last, number = carried(main, words, tmp_path)
    assert number >= 2
    one, two = bits(last), bits(whole)
    assert one.keys() == two.keys() and len(one) > things
    assert [name for name in one if one[name] != two[name]] == []
    # How long a call may take is no part of what a run is, nor is it stored.
    assert (last / "config.json").read_text() == (whole / "config.json").read_text()


# --- what is packed -------------------------------------------------------------------


def folder_of(path, *checkpointed, done=()):
    """A run folder with two checkpoints in each of some places, and results."""
    records.claim_folder(path, {"model": "none"}, ())
    for place in checkpointed:
        for level in (0, 1):
            checkpoints.save(path / place, np.ones(3), {"level": level})
    for group in done:
        records.save(path / group / "results.nc", xr.Dataset({"x": 1.0}))
    return path


def packed_checkpoints(folder):
    return [str(p.parent) for p in carry.needed(folder) if p.name == "manifest.json"]


def test_of_checkpoints_the_newest_travels(tmp_path):
    run = folder_of(tmp_path / "run", "replicas-000-001/trunk")
    assert packed_checkpoints(run) == ["replicas-000-001/trunk/00000002"]
    (run / ".meeting-1").mkdir()
    (run / "replicas-000-001" / "trunk" / ".tmp-1-ab-host").write_text("half")
    names = {path.parts[0] for path in carry.needed(run)}
    assert names == {"config.json", "replicas-000-001"}
    assert not [path for path in carry.needed(run) if ".tmp" in str(path)]
    # A damaged one does not.
    leaves = run / "replicas-000-001" / "trunk" / "00000002" / "leaves.bin"
    leaves.write_bytes(leaves.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="falling back"):
        assert packed_checkpoints(run) == ["replicas-000-001/trunk/00000001"]


def test_of_replicas_that_are_done_their_results_travel(tmp_path):
    places = ["replicas-000-000/branches", "replicas-001-001/branches"]
    run = folder_of(tmp_path / "run", *places, done=["replicas-000-000"])
    # Those of before, which the run is being extended beyond.
    records.save(run / "results.nc", xr.Dataset({"x": 1.0}))
    assert packed_checkpoints(run) == ["replicas-001-001/branches/00000002"]
    assert pathlib.Path("replicas-000-000/results.nc") in carry.needed(run)


def test_of_a_study_levels_that_are_over_stay_behind(tmp_path):
    group = "replicas-000-001"
    levels = [f"{group}/levels/{n:02d}" for n in (0, 1)]
    run = folder_of(tmp_path / "run", f"{group}/checkpoints", *levels, done=[group])
    # It has results, and is being extended by level 1.
    assert packed_checkpoints(run) == [
        f"{group}/checkpoints/00000002",
        f"{group}/levels/01/00000002",
    ]


def test_a_level_that_is_trained_again_travels_with_its_checkpoints(tmp_path):
    """Within its study, which is done, and alone; they lie in its folder itself."""
    study = folder_of(tmp_path / "run", "replicas-000-001/checkpoints", done=["."])
    again = folder_of(study / "retrained" / "level01-0a1b2c3d", ".", "fresh")
    inside = ["00000002", "fresh/00000002"]
    assert packed_checkpoints(again) == inside
    assert packed_checkpoints(study) == [
        "replicas-000-001/checkpoints/00000002",
        *(f"retrained/{again.name}/{path}" for path in inside),
    ]
    succeed(carry.main, "pack", again, "--out", tmp_path / "parts")
    succeed(carry.main, "unpack", tmp_path / "parts", tmp_path / "new")
    assert checkpoints.latest(tmp_path / "new") == 2
    # Once it is done it needs none, nor does the study need it to.
    folder_of(again, done=["."])
    assert packed_checkpoints(again) == []
    assert len(packed_checkpoints(study)) == 1


def test_links_are_refused_by_name(tmp_path):
    run = folder_of(tmp_path / "run", "trunk")
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        (run / "trunk" / "data").symlink_to(tmp_path / target)
        status, _, err = call(carry.main, "pack", run, "--out", tmp_path / "parts")
        assert status == 2 and f"folder='{run}/trunk/data'; it must be a file" in err
        assert not (tmp_path / "parts").exists()
        (run / "trunk" / "data").unlink()


# --- parts ----------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path):
    """A run folder, and its parts."""
    run = folder_of(tmp_path / "run", "checkpoints")
    random = np.random.default_rng(0).bytes(5000)
    (run / "noise.bin").write_bytes(random)
    out = succeed(carry.main, "pack", run, "--part-mib 0.001 --out", tmp_path / "parts")
    assert "parts of at most 0.001 MiB in" in out
    return run, tmp_path / "parts"


def test_what_is_unpacked_is_what_was_packed(packed, tmp_path):
    run, there = packed
    assert all(p.stat().st_size <= 1048 for p in there.glob("part-*.bin"))
    succeed(carry.main, "unpack", there, tmp_path / "new")
    files = carry.needed(run)
    assert carry.needed(tmp_path / "new") == files
    for path in files:
        assert (tmp_path / "new" / path).read_bytes() == (run / path).read_bytes()


def remove(path):
    path.unlink()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_json(path):
    path.write_text("[1]")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("part-002.bin", remove, "parts there is no part-002.bin"),
        ("part-002.bin", flip, "parts part-002.bin is not what was written"),
        ("part-004.bin", truncate, "parts part-004.bin is not what was written"),
        ("parts.json", remove, "there is no parts.json"),
        ("parts.json", flip, "parts.json is not what was written"),
        ("parts.json", truncate, "parts.json is not what was written"),
        ("parts.json", other_json, "parts.json is not what was written"),
    ],
)
def test_what_was_lost_on_the_way_is_named(packed, tmp_path, name, damage, message):
    damage(packed[1] / name)
    status, _, err = call(carry.main, "unpack", packed[1], tmp_path / "new")
    assert (status, message in err) == (2, True), err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(packed, tmp_path):
    run, there = packed
    status, _, err = call(carry.main, "unpack", there, run)
    assert status == 2 and f"folder='{run}'; it must be a new folder" in err
    status, _, err = call(carry.main, "pack", run, "--out", there)
    assert status == 2 and f"folder='{there}'; it must be a new folder" in err
    status, _, err = call(carry.main, "pack", run, "--out", run / "parts")
    assert status == 2 and "it must be outside of the run folder" in err
    status, _, err = call(carry.main, "pack", there, "--out", tmp_path / "more")
    assert status == 2 and "it must be a run folder, with a config.json" in err
    status, _, err = call(carry.main, "pack", run, "--part-mib 0 --out", tmp_path / "n")
    assert status == 2 and "part_mib=0" in err
    (tmp_path / "empty").mkdir()
    succeed(carry.main, "unpack", there, tmp_path / "empty")


def test_bytes_are_cut_and_joined_at_any_size(tmp_path):
    content = np.random.default_rng(0).bytes(1000)
    for most in (70, 999, 1000, 2000):
        folder = tmp_path / str(most)
        with parts.writing(folder, most, {"what": most}) as file:
            for start in range(0, 1000, 37):
                file.write(content[start : start + 37])
        assert len(list(folder.glob("part-*.bin"))) == -(-1000 // most)
        with parts.reading(folder) as file:
            assert file.read(5) + file.read(300) + file.read() == content
            assert file.read(1) == b""
        assert parts.contents(folder) == {"what": most}


def test_weights_shrink_by_their_exponents(tmp_path):
    weights = np.random.default_rng(0).normal(size=500_000).astype(np.float32)
    for name, leaf in (("dense", weights), ("half", weights * (weights > 0))):
        run = folder_of(tmp_path / name)
        checkpoints.save(run / "trunk", leaf)
        succeed(carry.main, "pack", run, "--out", tmp_path / f"{name}-parts")
    sizes = [
        (tmp_path / f"{name}-parts" / "part-000.bin").stat().st_size / weights.nbytes
        for name in ("dense", "half")
    ]
    assert sizes[0] < 0.9 and sizes[1] < 0.7


# --- groups ---------------------------------------------------------------------------


def test_small_groups_have_small_checkpoints(tmp_path):
    def sizes(*arguments):
        return [len(ids) for _, ids in groups.groups(tmp_path, *arguments)]

    assert sizes(7, 1, 3) == [3, 2, 2]
    assert sizes(7, 4, 3) == [2, 2, 2, 1]  # as many as there are processes, at least
    assert sizes(7, 1, 9) == [7]
    (tmp_path / "replicas-000-000").mkdir()
    assert sizes(3, 1, 1) == [1, 1, 1]


def test_replicas_that_are_compared_are_in_one_group(tmp_path):
    words = f"{curves.EXPERIMENT.default} {curves.EXPERIMENT.tiny} --group-size 1"
    status, _, err = call(curves.main, words, "--out", tmp_path / "run")
    assert status == 2 and "group_size=1; it must be at least replicas=2: curves" in err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_that_make_no_sense_are_refused(tmp_path, minutes):
    flags = f"{STUDY} --minutes {minutes} --out"
    status, _, err = call(imp.main, flags, tmp_path / "run")
    assert status == 2 and "minutes=" in err and "a number above 0" in err
    assert not (tmp_path / "run").exists()
