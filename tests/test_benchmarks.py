"""The benchmarks: that every row runs, and that what they report is arithmetic."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import report, rows, timing
from benchmarks.report import Comparison, Row, Target
from benchmarks.timing import Spread, Worker

FIRST = ("memory", "masking", "branching", "compaction")
SECOND = ("compilations", "study", "scaling")


def _start(names, folder):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(folder)]
    return subprocess.Popen(
        [*command, "--rows", *names],
        cwd=timing.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The JSON of all rows that need no PyTorch, by name, from two runs at once."""
    folders = [tmp_path_factory.mktemp("quick") for _ in range(2)]
    runs = [_start(names, f) for names, f in zip((FIRST, SECOND), folders)]
    outputs = [run.communicate()[0] for run in runs]
    for run, output in zip(runs, outputs):
        assert run.returncode == 0, output
    files = [folder / "benchmarks.json" for folder in folders]
    assert all("| `" in f.with_suffix(".md").read_text() for f in files)
    return {
        name: row
        for file in files
        if file.is_file()
        for name, row in json.loads(file.read_text()).items()
    }


@pytest.mark.parametrize("name", [*FIRST, *SECOND])
def test_row_runs(name, quick):
    missing = [m for m in rows.ROWS[name].needs if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    row = quick[name]
    assert row["quick"] and row["machine"]["cores"] >= 1
    assert row["versions"]["jax"] != "not installed"
    assert row["comparisons"]
    for entry in row["comparisons"]:
        value = entry["value"]
        assert value["low"] <= value["median"] <= value["high"]
        assert ("target" in entry) == ("reached" in entry) or entry["target"] is None
    for rate in row["rates"].values():
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]


def test_a_study_compiles_its_programs_once(quick):
    values = {
        c["of"]: c["value"]["median"] for c in quick["compilations"]["comparisons"]
    }
    assert values["compilations of the training program"] == 1
    assert values["compilations in levels 2 and 3"] == 0


def test_shares_of_a_study_are_shares(quick):
    whole, of_wall = (c["value"]["median"] for c in quick["study"]["comparisons"][:2])
    assert 0 < of_wall < whole < 1


def test_sizes_of_a_ticket_are_those_of_its_shapes(quick):
    facts = quick["compaction"]["facts"]
    found = [sizes for name, sizes in facts.items() if name.startswith("bytes at")]
    assert len(found) == 2
    for sizes in found:
        # 64-8-6-10 in float32, with biases.
        assert sizes["dense"] == 4 * (64 * 8 + 8 * 6 + 6 * 10 + 8 + 6 + 10)
        assert 0 < sizes["compacted"] <= sizes["dense"] and sizes["BCOO"] > 0
    shares = facts["share of the kernel weights that compaction removes, by density"]
    assert all(0 <= share < 1 for share in shares.values())


def test_every_row_is_covered_here():
    without = {name for name, row in rows.ROWS.items() if "torch" not in row.needs}
    assert without == {*FIRST, *SECOND}


_PEER = {"examples": 8, "batch": 4, "density": 0.5, "steps": 3}


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="the peers need PyTorch: pip install 'lottery-jax[bench]'",
)
def test_peers_train():
    small = _PEER | {"widths": [5], "pixels": 6}
    convolutions = _PEER | {"blocks": 1, "width": 2, "channels_last": True}
    with (
        Worker("benchmarks.torch_sides:lenet", small | {"arrangement": "plain"}) as a,
        Worker("benchmarks.torch_sides:lenet", small | {"arrangement": "fused"}) as b,
        Worker("benchmarks.torch_sides:resnet", convolutions) as c,
    ):
        for worker in (a, b, c):
            assert worker.wait_ready() == ["train"]
            seconds, steps = worker.run("train")
            assert seconds > 0 and steps == 3


def test_a_worker_that_dies_says_why():
    with (
        Worker("benchmarks.no_such_module:setup", {}) as worker,
        pytest.raises(timing.WorkerError, match="no_such_module"),
    ):
        worker.wait_ready()


def test_ratios_are_taken_turn_by_turn():
    # A machine that is twice as slow in the second turn changes both sides alike.
    assert timing.ratio([8, 4, 6], [4, 2, 2]) == Spread(2, 2, 3)


def test_flops_of_a_step():
    # By hand, for 3-2-1 and one example: forward 3 * 2 + 2 * 1 products and sums, as
    # many for the gradients in the weights, and those in the inputs of the last layer.
    assert rows.step_flops([3, 2, 1], batch=1) == 2 * ((6 + 2) + (6 + 2) + 2)
    assert rows.step_flops([3, 2, 1], batch=7) == 7 * rows.step_flops([3, 2, 1], 1)


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (Target(">=", 2.0), 2.0, True),
        (Target(">", 2.0), 2.0, False),
        (Target("<=", 2.0), 2.0, True),
        (Target(">=", 2.0), 1.9, False),
        (Target("<=", 2.0), 2.1, False),
    ],
)
def test_targets(target, value, reached):
    assert target.reached(value) is reached


def test_rows_are_merged_and_shown(tmp_path: pathlib.Path):
    def row(name, median, bound):
        comparison = Comparison(
            "ours", "theirs", Spread(median, 1.0, 3.0), Target(">=", bound)
        )
        return report.as_json(
            Row(name, "A setting.", {}, "", [comparison]), 1, 0, False
        )

    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"masking": row("masking", 2.0, 3.0), "gone": {}}))
    merged = report.merge(path, {"lenet": row("lenet", 2.5, 2.0)}, list(rows.ROWS))
    assert list(merged) == ["lenet", "masking"]
    text = report.markdown(merged)
    assert "| `lenet` | ours | theirs | 2.5 (1 to 3) | >= 2 | yes |" in text
    assert "| `masking` | ours | theirs | 2 (1 to 3) | >= 3 | **no** |" in text
