"""The benchmarks: rows are well formed and run, and what they report is arithmetic."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

import lottery_jax as lj
from benchmarks import profile, report, run, sides_jax
from benchmarks.rows import ROWS, Number, Ratio, Row, Side, Sizes, Target
from benchmarks.run import OTHER, Found, Spread, Worker
from lottery_jax.execution import Progress

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TINY = Sizes("mlp-4", (6,), 16, batch=8, steps=2, density=0.5)
TRAIN = Side("sides_jax:train", devices=1)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Workers compile as fast as they can."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


# --- rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_well_formed(name):
    row = ROWS[name]
    assert row.sides or row.facts
    assert not {*row.quick} - {*Sizes._fields}
    for ratio in row.ratios:
        peers = (ratio.to,) if isinstance(ratio.to, str) else ratio.to
        assert {ratio.of, *peers} <= {*row.sides}
    for lines in row.curves.values():
        for line in lines.values():
            assert isinstance(line, str) or {*line.values()} <= {*row.sides}
    for side in (*row.sides.values(), *row.facts):
        row.full._replace(**side.change)  # or it raises
        module, function = side.setup.split(":")
        if module == "sides_torch":
            pytest.importorskip("torch")
        assert callable(
            getattr(importlib.import_module(f"benchmarks.{module}"), function)
        )
        assert side.processes == 1 or side.devices is None


def test_quick_sizes_win_over_what_sides_change():
    row = Row("", TINY, {"steps": 1})
    side = Side("m:f", change={"steps": 9, "batch": 2})
    assert run._sizes(row, side, False) == TINY._replace(steps=9, batch=2)
    assert run._sizes(row, side, True) == TINY._replace(steps=1, batch=2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The JSON of some rows by name, and where their page lies."""
    folder = tmp_path_factory.mktemp("quick")
    names = ["study"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *names, "--quick", "--out", str(folder)],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((folder / "results" / "benchmarks.json").read_text())
    assert set(stored) == set(names)
    return stored, folder


@pytest.mark.slow
def test_rows_run(quick):
    stored, folder = quick
    for row in stored.values():
        assert row["quick"] and row["machine"]["cores"] >= 1 and row["comparisons"]
        for entry in row["comparisons"]:
            value = entry["value"]
            assert value["low"] <= value["median"] <= value["high"]
            assert ("reached" in entry) == (entry["target"] is not None)
    text = (folder / "performance.md").read_text()
    assert "| `study` | second call |" in text and "Quick mode" in text


def test_a_whole_study_is_accounted_for_by_its_segments(monkeypatch):
    def run_study(*_, where, **options):
        assert options["levels"] == 2
        for level in range(3):
            for done in range(1, 5):
                time.sleep(0.002)
                where.tell(Progress("level", 2 * done, 8, 3, 0, level=level))

    monkeypatch.setattr(sides_jax.imp, "run", run_study)
    sizes = TINY._replace(held_out=8, test=8, steps=8, every=2, levels=(2,))
    found = sides_jax.levels(sizes)["run"]()
    assert found["compilations in levels 0, 1, 2 ..."] == [0, 0, 0]
    assert 0 < found[sides_jax.TRAINED] <= 1
    # One replica and three arms, two steps in each segment of 2 ms at least.
    costs = found["ms of a replica-step by level"]
    assert [x for x, *_ in costs] == [0, 1, 2]
    assert all(2 / 6 < low <= median <= high for _, median, low, high in costs)


# --- processes and turns --------------------------------------------------------------


def test_a_worker_that_dies_says_why():
    jobs = {"x": (Side("no_such_module:setup"), TINY)}
    with Worker(jobs) as worker, pytest.raises(run.WorkerError, match="no_such_module"):
        worker.wait_ready()


def test_ratios_are_taken_turn_by_turn():
    # A machine that is twice as slow in the second turn changes both sides alike.
    assert run.ratio([8, 4, 6], [4, 2, 2]) == Spread(2, 2, 3)


def test_compiling_counts_what_overlaps_once(monkeypatch):
    compiling, now = run.Compiling(), [0.0]
    monkeypatch.setattr(compiling, "_clock", lambda: now[0])
    compiling._intervals.clear()
    compiling._compiled.clear()
    for end, duration, event in [
        (3.0, 1.0, run.Compiling.EVENTS[0]),  # within the next
        (4.0, 3.0, run.Compiling.EVENTS[0]),
        (6.0, 1.0, run.Compiling.COMPILED),
        (7.0, 5.0, "/something/else"),
    ]:
        now[0] = end
        compiling.listen(event, duration)
    assert compiling.seconds() == 4
    assert compiling.seconds(3.5, 5.5) == 1
    assert compiling.count() == 1 and compiling.count(6.5) == 0


@pytest.mark.slow
def test_another_checkout_takes_turns_with_this_one(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("lottery_jax", "benchmarks"):
        shutil.copytree(run.ROOT / name, tmp_path / name, ignore=ignored)
    marked = tmp_path / "lottery_jax" / "__init__.py"
    marked.write_text(
        marked.read_text() + "\nimport sys\nprint(__file__, file=sys.stderr)\n"
    )
    row = Row(
        "", TINY, sides={"train": TRAIN, "peer": Side("sides_torch:lenet")}, turns=2
    )
    found = run.measure(row, against=str(tmp_path))
    assert {name: len(rates) for name, rates in found.rates.items()} == {
        "train": 2,
        f"train, {OTHER}": 2,
    }
    (comparison,) = run.compare(row, found)
    assert comparison[:2] == ("train", OTHER) and comparison.value.median > 0


def test_a_checkout_without_benchmarks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tree=.*must be a checkout"):
        Worker({"train": (TRAIN, TINY)}, tree=str(tmp_path))


def test_a_failure_is_told_in_a_few_words():
    assert run.outcome("x\nRESOURCE_EXHAUSTED: Out of memory\n") == "out of memory"
    assert run.outcome("Traceback\nValueError: a | b\n\n") == "ValueError: a / b"


# --- what is counted ------------------------------------------------------------------


def test_operations_of_a_dense_step():
    # Forward, as many for gradients in the weights, and those in the inputs of the last
    # layer; what is beside the products is little.
    sizes = TINY._replace(model="mlp-50", shape=(70,), batch=16)
    products = 2 * 16 * (2 * (70 * 50 + 50 * 10) + 50 * 10)
    counted = profile.operations(sides_jax.make_task(sizes))
    assert products < counted < 1.05 * products


def test_stock_convolutions_are_the_same_function():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def conv():
        return lj.convolution.conv(x, kernel, strides=(2, 2), padding="SAME")

    with sides_jax.stock_convolutions():
        stock = conv()
    np.testing.assert_allclose(stock, conv())


HLO = """
ENTRY %main {
  %dot.1 = f32[7,5]{1,0} dot(%a, %b), metadata={op_name="jit(run)/transpose(jvp(N))/d/t"}
  ROOT %out.2 = f32[60,5]{1,0} fusion(%a), metadata={op_name="x/jvp(N)/dot_general"}
  %back = f32[60,7]{1,0} fusion(%a), metadata={op_name="x/transpose(jvp(N))/dot_general"}
  %norm = f32[1,5]{1,0} fusion(%a), metadata={op_name="x/jvp(N)/norm_0/dot_general"}
  %select_add_fusion = f32[7,5]{1,0} fusion(%a), metadata={op_name="jit(run)/while/body/add"}
  %images = f32[60,7]{1,0} fusion(%a), metadata={op_name="jit(run)/while/body/div"}
  %copy.3 = f32[7,5]{0,1} copy(%a)
  %while.4 = (f32[7,5]{1,0}, s32[]) while(%t), body=%body
}
"""


def test_operations_are_told_apart():
    found = profile.parse(HLO)
    weights, batch = {(7, 5), (5,)}, 60
    assert found.pop("while.4").code == "while"
    kinds = {n: profile.classify(o, weights, batch) for n, o in found.items()}
    assert kinds == {
        "dot.1": profile.WEIGHTS,
        "out.2": profile.FORWARD,
        "back": profile.INPUTS,
        "norm": profile.MODEL,
        "select_add_fusion": profile.OPTIMIZER,
        "images": profile.BATCH,
        "copy.3": profile.COPIES,
    }
    seconds = {"dot.1": 3.0, "out.2": 1.0, "while.4": 99.0, "call.7": 99.0}
    shares = profile.shares(seconds, HLO, weights, batch)
    assert shares == {profile.WEIGHTS: 0.75, profile.FORWARD: 0.25}
    with pytest.raises(RuntimeError, match="names no operation"):
        profile.shares({}, HLO, weights, batch)


def test_a_traced_program_is_accounted_for():
    sizes = TINY._replace(model="mlp-64", shape=(64,), batch=16, replicas=2)
    found = sides_jax.account(sizes)["run"]()
    shares = [
        float(share) for _, share, _ in found["where the time of a step goes"]["rows"]
    ]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_an_interval_is_that_of_t():
    mean, low, high = sides_jax.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)


# --- what is reported -----------------------------------------------------------------


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


ROW = Row(
    "A setting.",
    sides=dict.fromkeys(("ours", "slow", "fast"), TRAIN),
    ratios=[
        Ratio("ours", ("slow", "fast"), Target(">=", 3.0)),
        Ratio("ours", "slow", Target("<=", 1.0), time=True),
        Ratio("ours", "slow", times="operations"),
        Ratio("ours", "not run"),
    ],
    numbers=[Number("wall", Target("<=", 9.0), "s"), Number("change", unit="points")],
    curves={
        "devices": {"16 replicas": {1: "slow", 2: "fast", 4: "not run"}},
        "parameters": {"training": {1e4: "fast", 1e5: "slow"}},
        "levels": {"LeNet": "by level"},
    },
)
FOUND = Found(
    {"ours": [8.0, 8.0], "slow": [2.0, 1.0], "fast": [4.0, 4.0]},
    {
        "wall": [3, 5, 4],
        "change": [[0.1, -0.2, 0.4]],
        "operations": [10],
        "by level": [[[0, 2, 1, 3], [1, 3, 2, 4]]],
        "where it goes": [{"header": ["a", "b"], "rows": [["c", "0.5"]]}],
    },
    {"a process": {"peak resident memory, GB": 0.5}},
)


def test_comparisons_follow_from_the_row():
    shown = [(c.of, c.to, *c.value) for c in run.compare(ROW, FOUND)]
    assert shown == [
        ("ours", "the best peer: fast", 2, 2, 2),
        ("time of ours", "slow", 0.1875, 0.125, 0.25),
        ("ours", "slow", 60, 40, 80),
        ("wall", "", 4, 3, 5),
        ("change", "", 0.1, -0.2, 0.4),
    ]


def test_the_page_says_what_is_reached(tmp_path):
    entry = report.as_json(ROW, FOUND, 1, 0, False)
    results = tmp_path / "results"
    results.mkdir()
    (results / "benchmarks.json").write_text(json.dumps({"gone": {}, "masking": entry}))
    report.leave(tmp_path, {"lenet": entry}, list(ROWS))
    stored = json.loads((results / "benchmarks.json").read_text())
    assert list(stored) == ["lenet", "masking"]
    assert stored["lenet"]["curves"]["devices"]["16 replicas"][0] == [1, 750, 500, 1000]
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith("# Performance")
    assert "| `lenet` | ours | the best peer: fast | 2 | >= 3 | **no** |" in text
    assert (
        "| `lenet` | time of ours | slow | 0.188 (0.125 to 0.25) | <= 1 | yes |" in text
    )
    assert "| `masking` | wall | - | 4 (3 to 5) s | <= 9 | yes |" in text
    assert (
        "- operations: 10" in text and "| a | b |\n| --- | --- |\n| c | 0.5 |" in text
    )
    pytest.importorskip("matplotlib")
    assert (results / "scaling.png").stat().st_size > 10_000
    assert not report.draw({}, tmp_path / "none.png")
