"""The benchmarks: that every row runs, and that what they report is arithmetic."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import curves, flops, gpu, monitor, profile, report, rows, timing
from benchmarks.jax_sides.common import make_task
from benchmarks.report import Comparison, Point, Row, Table, Target
from benchmarks.stopwatch import Interval, Stopwatch, totals
from benchmarks.timing import Spread, Worker
from lottery_jax import replicas
from lottery_jax.replicas import Execution

FIRST = ("memory", "masking", "branching", "compaction", "lenet")
SECOND = (
    "compilations",
    "levels",
    "scaling",
    "paths",
    "resnet20",
    "startup",
    "precision",
)


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
    """The JSON of all rows by name, from two runs at once."""
    folders = [tmp_path_factory.mktemp("quick") for _ in range(2)]
    runs = [_start(names, f) for names, f in zip((FIRST, SECOND), folders)]
    outputs = [run.communicate()[0] for run in runs]
    for run, output in zip(runs, outputs):
        assert run.returncode == 0, output
    assert all("| `" in (f / "performance.md").read_text() for f in folders)
    files = [folder / "results" / "benchmarks.json" for folder in folders]
    return {name: row for f in files for name, row in json.loads(f.read_text()).items()}


def _of(quick, name):
    missing = [m for m in rows.ROWS[name].needs if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return quick[name]


@pytest.mark.parametrize("name", [*FIRST, *SECOND])
def test_row_runs(name, quick):
    row = _of(quick, name)
    assert row["quick"] and row["machine"]["cores"] >= 1
    assert row["versions"]["jax"] != "not installed"
    assert row["comparisons"]
    for entry in row["comparisons"]:
        value = entry["value"]
        assert value["low"] <= value["median"] <= value["high"]
        assert ("target" in entry) == ("reached" in entry) or entry["target"] is None
    for rate in row["rates"].values():
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    assert name == "compilations" or "peak resident memory" in json.dumps(row)


def _values(row):
    return {c["of"]: c["value"]["median"] for c in row["comparisons"]}


def test_a_study_compiles_its_programs_once(quick):
    values = _values(quick["compilations"])
    assert values["compilations of the training program"] == 1
    assert values["compilations in levels 2 and 3"] == 0


def test_the_account_of_a_study_adds_up(quick):
    row = _of(quick, "levels")
    values = _values(row)
    assert values["compilations in levels 2 to 2"] == 0
    whole, of_wall = (
        c["value"]["median"]
        for c in row["comparisons"]
        if c["of"] == "training and validation"
    )
    assert 0 < of_wall < whole < 1
    parts = row["facts"]["where the time goes"]["rows"]
    assert sum(float(share) for _, _, share in parts) == pytest.approx(100, abs=0.5)
    assert all(float(seconds) > -0.01 for _, seconds, _ in parts)
    assert [x for x, *_ in row["curves"]["levels"]["LeNet-300-100"]] == [0, 1, 2]


def test_the_parts_of_a_start_add_up(quick):
    row = _of(quick, "startup")
    columns = list(zip(*row["facts"]["where it goes"]["rows"]))[1:]
    for column, entry in zip(columns, row["comparisons"]):
        seconds = sum(map(float, column))
        assert seconds == pytest.approx(entry["value"]["median"], abs=0.1)


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
    assert {*FIRST, *SECOND} == set(rows.ROWS)


def test_a_worker_that_dies_says_why():
    with (
        Worker("benchmarks.no_such_module:setup", {}) as worker,
        pytest.raises(timing.WorkerError, match="no_such_module"),
    ):
        worker.wait_ready()


def test_ratios_are_taken_turn_by_turn():
    # A machine that is twice as slow in the second turn changes both sides alike.
    assert timing.ratio([8, 4, 6], [4, 2, 2]) == Spread(2, 2, 3)


def test_costs_of_a_worker():
    arguments = {"model": "mlp-4", "shape": [6], "batch": 4, "replicas": 1, "sgd": True}
    setup = "benchmarks.jax_sides.accounts:compiling"
    with Worker(setup, arguments, devices=1, warm=False) as worker:
        assert worker.wait_ready() == ["compile"]
        before = worker.costs()
        seconds = sum(worker.run("compile")[1].values())
        after = worker.costs()
    assert 0.05 < before["memory"] <= after["memory"] < 5
    assert 0 < after["compiling"] - before["compiling"] <= seconds


def test_compiling_counts_what_overlaps_once():
    now = [0.0]
    compiling = monitor.Compiling(lambda: now[0])
    for end, duration, event in [
        (3.0, 1.0, monitor.EVENTS[0]),  # within the next
        (4.0, 3.0, monitor.EVENTS[0]),
        (6.0, 1.0, monitor.COMPILED),
        (7.0, 5.0, "/something/else"),
    ]:
        now[0] = end
        compiling._listen(event, duration)
    assert compiling.seconds() == 4
    assert compiling.seconds(3.5, 5.5) == 1
    assert compiling.count() == 1 and compiling.count(6.5) == 0


def test_a_stopwatch_times_programs_and_changes_no_result():
    ticks = iter(range(100))
    seen = []
    watch = Stopwatch(lambda: float(next(ticks)))
    watch.tell(seen.append)

    def double(x):
        return 2 * x

    with watch:
        run = replicas.parallel(double, (0,), Execution(1, 1))
        assert run(jnp.arange(3.0)).tolist() == [0, 2, 4]
        assert run._cache_size() == 1
    assert watch.programs == seen == [Interval("double", 0.0, 1.0)]
    assert totals(watch.programs * 2, lambda a, b: 0.25) == {"double": 1.5}
    assert type(replicas.parallel(double, (0,), Execution(1, 1))) is not type(run)


def test_flops_of_a_dense_step():
    # By hand, for 3-2-1 and one example: forward 3 * 2 + 2 * 1 products and sums, as
    # many for the gradients in the weights, and those in the inputs of the last layer.
    assert flops.dense_step([3, 2, 1], batch=1) == 2 * ((6 + 2) + (6 + 2) + 2)
    assert flops.dense_step([3, 2, 1], batch=7) == 7 * flops.dense_step([3, 2, 1], 1)
    task = make_task("mlp-5", [7], 8, 4)
    assert flops.step(task) == flops.dense_step([7, 5, 10], 4)


def test_flops_of_a_residual_step():
    batch, w = 3, 4
    # Pixels of the result, and weights, of each product of ResNet-8 with 4 channels.
    stem = 32 * 32 * 9 * 3 * w
    first = 2 * 32 * 32 * 9 * w * w
    second = 16 * 16 * (9 * w * 2 * w + 9 * (2 * w) ** 2 + w * 2 * w)
    third = 8 * 8 * (9 * 2 * w * 4 * w + 9 * (4 * w) ** 2 + 2 * w * 4 * w)
    forward = stem + first + second + third + 4 * w * 10
    task = make_task("resnet-8-4", [32, 32, 3], 8, batch)
    assert flops.step(task) == 2 * batch * (3 * forward - stem)
    results = 32 * 32 * 3 * w + 16 * 16 * 3 * 2 * w + 8 * 8 * 3 * 4 * w + 10
    assert flops.activations(task) == 4 * batch * (32 * 32 * 3 + 2 * results)


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
    found = profile.operations(HLO)
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
    assert profile.summarize(seconds, found, weights, batch) == {
        profile.WEIGHTS: 0.75,
        profile.FORWARD: 0.25,
    }


def test_a_traced_program_is_accounted_for():
    def loss(w, x):
        return jnp.tanh(x @ w).sum()

    w, x = jnp.ones((64, 32)), jnp.ones((128, 64))
    compiled = jax.jit(jax.grad(loss)).lower(w, x).compile()
    shares = profile.shares(
        lambda: jax.block_until_ready(compiled(w, x)),
        compiled.as_text(),
        {w.shape},
        128,
    )
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[profile.FORWARD] > 0 and shares[profile.WEIGHTS] > 0


def _curves():
    line = [Point(x, Spread(2.0 / x, 1.5 / x, 2.5 / x)) for x in (1, 2, 4)]
    row = Row("scaling", "A setting.", curves={"devices": {"16 replicas": line}})
    return {"scaling": report.as_json(row, 1, 0, False)}


def test_the_figure_is_drawn_from_what_is_stored(tmp_path):
    stored = json.loads(json.dumps(_curves()))
    points = curves.collect(stored)["devices"]["16 replicas"]
    np.testing.assert_allclose(points[0], [1, 2, 1.5, 2.5])
    np.testing.assert_allclose(points[:, :2], [[1, 2], [2, 1], [4, 0.5]])
    path = tmp_path / "scaling.png"
    pytest.importorskip("matplotlib")
    assert curves.draw(stored, path) and path.stat().st_size > 10_000
    assert not curves.draw({"old": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


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
        facts = {"plain": 3, "where it goes": Table(["a", "b"], [["c", "0.5"]])}
        return report.as_json(
            Row(name, "A setting.", {}, "", [comparison], facts), 1, 0, False
        )

    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"masking": row("masking", 2.0, 3.0), "gone": {}}))
    merged = report.merge(path, {"lenet": row("lenet", 2.5, 2.0)}, list(rows.ROWS))
    assert list(merged) == ["lenet", "masking"]
    text = report.page(merged, "results/scaling.png")
    assert "| `lenet` | ours | theirs | 2.5 (1 to 3) | >= 2 | yes |" in text
    assert "| `masking` | ours | theirs | 2 (1 to 3) | >= 3 | **no** |" in text
    assert "- plain: 3" in text and "| a | b |\n| --- | --- |\n| c | 0.5 |" in text
    assert text.startswith("# Performance") and "(results/scaling.png)" in text
    assert "scaling.png" not in report.page(merged).split("## Every comparison")[1]


# --- the script for an accelerator ----------------------------------------------------


def test_the_script_for_an_accelerator_runs_here(tmp_path):
    path = tmp_path / "gpu.json"
    flags = "--quick --replicas 1 2 --convolutions patches --precisions bfloat16"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *flags.split(), "--out", str(path)],
        cwd=timing.ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(path.read_text())
    assert len(stored["cells"]) == 2 and stored["peak_flops"] > 0
    assert all(cell["rate"] > 0 for cell in stored["cells"]), done.stderr
    assert done.stdout.strip() == path.with_suffix(".md").read_text().strip()


def test_the_most_telling_cells_come_first():
    everything = gpu.cells(
        ["resnet-20", "vgg-16"], [1, 3, 9, 27], gpu.METHODS, gpu.PRECISIONS
    )
    assert len(everything) == len(set(everything)) == 2 * 3 * (1 + 3 * 3)
    assert {(c.model, c.replicas) for c in everything[:4]} == {
        (model, number) for model in ("resnet-20", "vgg-16") for number in (1, 9)
    }
    assert everything[-1].precision == "float32"


def test_cells_that_fail_say_so_and_the_aim_is_judged():
    one = gpu.Cell("resnet-20", 1, None, "bfloat16")
    nine = [gpu.Cell("resnet-20", 9, way, "bfloat16") for way in gpu.METHODS]
    found = gpu.Found([one, *nine], gpu.QUICK, None)
    found.peak = 1e12

    def value(step_ms, number):
        rate = 1e3 * number / step_ms
        return {"rate": rate, "step_ms": step_ms, "compile_s": 1.0, "flops": 1e9}

    found.put(one, value(10.0, 1))
    found.put(nine[0], gpu.outcome(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")))
    found.put(nine[1], value(19.0, 9))
    text = found.markdown()
    assert "| resnet-20 | 9 | loop | bfloat16 | out of memory |" in text
    assert "| resnet-20 | 9 | grouped | bfloat16 | not run |" in text
    assert "9 replicas take 1.90 times the time of one (patches); aim <= 2: yes" in text
    assert "47%" in text  # 474 replica-steps per second of 1 GFLOP against 1 TFLOP/s
