"""The command line as a new user meets it: presets, run folders, extension, errors."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing

import jax
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from experiments import display, identity, imp, recipes
from experiments.experiment import Outcome
from experiments.kinds import images
from lottery_jax import checkpoints, keys, masks, records, tickets, verdicts
from lottery_jax.imp import ARMS, levels

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

TINY = "mnist1d --model mlp-8 --subset 200 --steps 8it --validate-every 4 --replicas 2"
"""Every run has two replicas of three arms at a time, so that programs are compiled once."""
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def command(*arguments):
    """Runs the command in this process: (exit status, stdout, stderr)."""
    words = [str(a).split() if isinstance(a, str) else [str(a)] for a in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = imp.main(sum(words, []))
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def succeed(*arguments):
    status, out, err = command(*arguments)
    assert status == 0, err
    return out, err


def arrays(folder):
    """The bits of every array in a run folder's results."""
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        values = {name: results[name].values for name in results.variables}
    return {
        name: x.tolist() if x.dtype == object else x.tobytes()
        for name, x in values.items()
    }


def ticket_files(folder):
    """Name -> bytes of all tickets, whichever group of replicas they belong to."""
    return {
        str(path.relative_to(path.parents[1])): path.read_bytes()
        for path in sorted(folder.glob("replicas-*/tickets/*/*"))
    }


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiled programs are shared between the runs of this file, and only with them."""
    from jax.experimental.compilation_cache import compilation_cache as cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    quick = "jax_disable_most_optimizations"  # nearly all the time is compilation
    before[quick] = jax.config.read(quick)
    for name, value in zip(before, (str(tmp_path_factory.mktemp("xla")), 0.0, True)):
        jax.config.update(name, value)
    cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    cache.reset_cache()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study, and what was seen while it ran."""
    folder = tmp_path_factory.mktemp("study") / "run"
    out, err = succeed(TINY, "--levels", 2, "--out", folder)
    return folder, out, err


@pytest.fixture
def copy(study, tmp_path):
    """A study of one's own to extend or to damage."""
    return pathlib.Path(shutil.copytree(study[0], tmp_path / "copy"))


def fake_load(name, *, validation=None, **_):
    """Random images in the shape of a set that would have to be prepared."""
    random = np.random.default_rng(0)

    def split(number):
        return {
            "image": random.integers(0, 256, (number, *SHAPES[name]), np.uint8),
            "label": random.integers(0, 10, number, np.int32),
        }

    parts = {"train": split(1100), "test": split(20)}
    if validation != 0:
        parts["validation"] = split(20)
    channels = SHAPES[name][-1]
    mean, std = (0.5,) * channels, (0.25,) * channels
    return lj.data.Dataset(parts, 10, SHAPES[name], mean, std, name)


@pytest.fixture
def fake_data(monkeypatch):
    images._load_data.cache_clear()
    real = lj.data.load
    monkeypatch.setattr(
        lj.data, "load", lambda n, **o: (fake_load if n in SHAPES else real)(n, **o)
    )
    yield
    images._load_data.cache_clear()


# --- presets and flags ----------------------------------------------------------------


def test_without_a_preset_flags_act_on_the_demo():
    parsed = imp.EXPERIMENT.parse(["--levels", "3"])
    expected = dataclasses.replace(imp.PRESETS["mnist1d"].config, levels=3)
    assert (parsed.config, parsed.preset) == (expected, "mnist1d")


def test_flags_after_a_preset_change_that_preset():
    text = "open-lth-lenet --learning-rate 0.2 --augment flip crop"
    parsed = imp.EXPERIMENT.parse(text.split())
    expected = dataclasses.replace(
        imp.PRESETS["open-lth-lenet"].config,
        learning_rate=0.2,
        augment=("flip", "crop"),
    )
    assert (parsed.config, parsed.preset) == (expected, "open-lth-lenet")


def test_help_lists_every_preset_and_every_field():
    status, out, _ = command("--help")
    assert status == 0
    assert "usage: python -m experiments.imp" in out
    text = " ".join(out.split())
    for name, preset in imp.PRESETS.items():
        assert f"{name} {preset.help}" in text
    for field in dataclasses.fields(imp.Config):
        assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    "name",
    [
        # Large networks take a while only to be looked at.
        pytest.param(
            name, marks=[pytest.mark.slow] * (preset.config.model[:3] != "mlp")
        )
        for name, preset in imp.PRESETS.items()
    ],
)
def test_every_preset_is_a_valid_study(name, fake_data):
    cfg = imp.PRESETS[name].config
    assert imp.EXPERIMENT.parse([name]).config == cfg
    with recipes.by_size() if images.streamed(cfg) else contextlib.nullcontext():
        _, _, tx, protocol = imp.prepare(cfg)
    assert protocol.steps > protocol.rewind_step >= 0
    weights = {"w": np.ones(3, np.float32)}
    updates, _ = tx.update(weights, tx.init(weights), weights)
    assert jax.tree.map(np.shape, updates) == {"w": (3,)}


SMOKE = {
    "oneshot-vs-iterative": "--model mlp-8",
    "open-lth-resnet20": "--model resnet-8-2 --batch-size 16",
}
"""Several chains; a network with BatchNorm. The demo is what the other tests run."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_presets_run(name, fake_data, tmp_path):
    tiny = "--levels 1 --steps 2it --replicas 1 --validate-every 2"
    succeed(name, tiny, SMOKE[name], "--out", tmp_path / "run")
    with xr.open_dataset(tmp_path / "run/results.nc", engine="h5netcdf") as results:
        assert results.sizes["level"] == 2
        assert np.isfinite(results["test_error"]).all()
        cfg = imp.PRESETS[name].config
        assert results["arm"].values.tolist() == list(cfg.arms)
        assert results.sizes["chain"] == len(cfg.schedules)


@pytest.mark.slow
def test_a_recipe_names_its_task(tmp_path, monkeypatch):
    """A language model, say, is configured, run and judged as a classifier is."""
    task = toys.language_model()
    kind = recipes.Kind(lambda _: task, lambda _: "")
    monkeypatch.setattr(recipes, "TASKS", {**recipes.TASKS, "language": kind})
    words = "--task language --steps 2it --validate-every 2 --levels 1 --replicas 2"
    out, _ = succeed(words, "--out", tmp_path / "run")
    assert "ticket matching" in out
    assert records.read_config(tmp_path / "run")["task"] == "language"


def densities(name):
    """What the chain of a preset leaves at each level, in percent, by arithmetic."""
    cfg = imp.PRESETS[name].config
    task = recipes.make_task(cfg)
    params = jax.eval_shape(task.init, jax.random.key(0))[0]
    (chain,) = imp.plan(cfg, task.steps_per_epoch).chains
    flags = masks.prunable(params)
    kept = [
        lj.imp.keep_counts(chain, params, level, flags)[1:].sum()
        for level in range(cfg.levels + 1)
    ]
    return [round(100 * int(k) / masks.total(params, flags), 1) for k in kept]


def test_published_densities_of_conv2(fake_data):
    published = "80.1 64.2 51.4 41.2 33.0 26.5 21.2 17.0 13.7 11.0 8.8 7.1 5.7 4.6"
    assert densities("conv2-cifar10") == [100.0, *map(float, published.split())]


def test_published_densities_of_lenet(fake_data):
    published = (
        "80.0 64.1 51.3 41.1 32.9 26.3 21.1 16.9 13.5 10.8 8.7 7.0 5.6 4.5 3.6 2.9 2.3 "
        "1.9 1.5"
    )
    assert densities("lenet-mnist-paper") == [100.0, *map(float, published.split())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, counts",
    {
        "open-lth-lenet": (266200, 212959, 170366, 136291, 109031, 87223),
        "open-lth-resnet20": (270896, 216715, 173371, 138695, 110955, 88763),
    }.items(),
)
def test_open_lth_presets_prune_to_its_counts(name, counts, fake_data):
    cfg = imp.PRESETS[name].config
    task = recipes.make_task(cfg)
    (chain,) = imp.plan(cfg, task.steps_per_epoch).chains
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: random.standard_normal(s.shape, np.float32),
        jax.eval_shape(task.init, jax.random.key(0))[0],
    )
    flags = masks.prunable(params)
    cut = jax.jit(
        lambda mask: levels.prune_chain(
            chain,
            jax.random.key(0),
            lj.scores.Inputs(trained=params, mask=mask),
            np.zeros(9, np.int32),
            prunable=flags,
            exclude=task.exclude,
        )
    )
    mask, found = masks.ones_like(params), []
    for _ in counts:
        found.append(int(masks.count(mask, flags)))
        mask = cut(mask)
    assert tuple(found) == counts


# --- the run folder -------------------------------------------------------------------


def test_run_folder_holds_everything(study):
    folder, out, _ = study
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    expected = {"config.json", "results.nc", "results.nc.sha256", "table.md"}
    expected |= {"verdicts.json", "replicas-000-001/metrics.jsonl"}
    figures = ("accuracy", "early_stop", "layer_density")
    expected |= {f"figures/{n}.{s}" for n in figures for s in ("png", "svg")}
    assert expected <= names
    assert (folder / "figures/accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (folder / "figures/accuracy.svg").read_text()[:2000]
    assert out.strip().endswith(str(folder / "figures" / "accuracy.png"))
    config = records.read_config(folder)
    assert config is not None
    parsed = imp.EXPERIMENT.parse([*TINY.split(), "--levels", "2"]).config
    assert identity.from_stored(imp.Config, config | {"out": None}) == parsed


def test_results_open_without_this_package(study):
    """Plain xarray, in a process that has not imported lottery_jax."""
    code = f"""
import sys, json, xarray
r = xarray.open_dataset({str(study[0] / "results.nc")!r}, engine="h5netcdf")
assert "lottery_jax" not in sys.modules
assert r["test_error"].dims == ("chain", "arm", "replica", "level"), r
assert r["validation_loss"].dims == ("chain", "arm", "replica", "level", "step")
assert r["arm"].values.tolist() == ["ticket", "reinit", "random_mask"]
assert r["level"].values.tolist() == [0, 1, 2] and r["step"].values.tolist() == [4, 8]
assert r["layer"].values.tolist() == ["dense_0/kernel", "head/kernel"]
assert json.loads(r.attrs["config"])["model"] == "mlp-8"
assert json.loads(r.attrs["versions"])["jax"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_densities_are_those_of_the_protocol(study):
    results = records.load(study[0] / "results.nc")
    counts = lj.schedules.geometric(400, 2, 0.2)  # 40 x 8 and 8 x 10 weights
    alive = results["alive"].transpose("level", ...).values.reshape(3, -1)
    assert alive.tolist() == [[c] * 6 for c in counts]
    np.testing.assert_array_equal(results["density"], results["alive"] / 400)
    layers = results["layer_density"].values @ np.array([320, 80])
    np.testing.assert_allclose(layers, results["alive"])


def test_metrics_stream_has_a_line_per_validation(study):
    text = (study[0] / "replicas-000-001/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    where = [(line["level"], line["step"]) for line in lines]
    assert where == [(level, step) for level in range(3) for step in (4, 8)]
    results = records.load(study[0] / "results.nc").isel(chain=0)
    for line in lines:
        at = results.sel(level=line["level"], step=line["step"])
        for name in ("train_loss", "validation_error"):
            expected = at[name].transpose("replica", "arm").values.reshape(-1)
            np.testing.assert_array_equal(np.float32(line[name]), expected)


def test_a_run_leaves_a_report_and_pictures_of_its_masks(study):
    folder, out, _ = study
    assert f"Report: {folder / 'report.html'}" in out
    results = records.load(folder / "results.nc")
    assert (folder / "report.html").stat().st_size < 5e6
    found = results["mask_picture"].sel(chain="imp")
    assert (found.sel(level=0, layer="head/kernel") == 255).sum() == 8 * 10
    path = lj.imp.ticket_path(folder / "replicas-000-001", "imp", 2, 0)
    mask = tickets.load(path).mask["dense_0"]["kernel"]  # 40 inputs, 8 units
    drawn = found.sel(level=2, layer="dense_0/kernel").values[:8, :40]
    np.testing.assert_array_equal(drawn == 255, mask.T)


def test_tickets_are_nested_and_of_the_stored_densities(study):
    folder = study[0] / "replicas-000-001"
    results = records.load(study[0] / "results.nc").sel(chain="imp", arm="ticket")
    for replica in range(2):
        found = [
            tickets.load(lj.imp.ticket_path(folder, "imp", level, replica))
            for level in range(3)
        ]
        for level, ticket in enumerate(found):
            assert ticket.metadata["level"] == level
            alive = int(masks.count(ticket.mask))
            assert alive == results["alive"].sel(level=level, replica=replica)
        for outer, inner in zip(found, found[1:]):
            assert masks.is_subset(inner.mask, outer.mask)


def test_table_and_verdicts(study):
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    results = records.load(study[0] / "results.nc")
    table = (study[0] / "table.md").read_text().splitlines()
    assert table[0] == "| level | density % | ticket | reinit | random mask |"
    percent = 100 * (1 - results["test_error"].sel(arm="ticket", level=2).values[0])
    low, high = sorted(percent)
    cell = f"{percent.mean():.1f} [{low:.1f}, {high:.1f}]"
    assert table[4].startswith(f"| 2 | 64.0 | {cell} |")
    text = (study[0] / "verdicts.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    claims = {"winning", "matching", "better than reinit", "better than random mask"}
    assert {row["claim"] for row in found} == claims
    assert [row["level"] for row in found] == [1] * 4 + [2] * 4
    winning = next(row for row in found if row["claim"] == "winning")
    assert [part["unit"] for part in winning["verdict"]["parts"]] == ["error", "steps"]


def test_claims_are_counted_with_their_comparisons():
    def judged(level, answer, **where):
        difference = {"yes": -1e-2, "no": 1e-2, "undecided": 0.0}[answer]
        verdict = verdicts.better(
            0.2 + difference + np.array([0, 1e-4, 2e-4]), np.full(3, 0.2)
        )
        verdict = verdict._replace(answer=answer)
        place = {"level": level, "density": 0.8**level, **where}
        return display.Judged(place, "better", verdict)

    found = [judged(i, a) for i, a in enumerate(["no", "yes", "undecided", "yes"])]
    expected = (
        "better: yes at 2 of 4 densities, no at 1, undecided at 1 (4 comparisons; "
    )
    lines = display.claims(found)
    assert lines[0] == f"{expected}after Bonferroni: yes 2, no 1)"
    assert lines[1:] == ["Paired 95% intervals, n = 3."]
    assert display.claims(found[:1])[0] == "better: no (1 comparison)"
    places = [judged(1, "undecided", arm=arm) for arm in "ab"]
    assert display.claims(places)[0].startswith("better: undecided at 2 of 2 arms (2 ")
    both = [*places, judged(2, "yes", arm="a")]
    assert "yes at 1 of 3 places, undecided at 2" in display.claims(both)[0]
    alone = verdicts.better([0.1], [0.2])
    assert display.claims([display.Judged({}, "x", alone)]) == [
        "x: undecided (no interval)"
    ]
    assert display.claims([]) == []


@pytest.mark.slow
def test_results_bear_the_verdicts_of_the_last_tolerance(study, tmp_path):
    folder = shutil.copytree(study[0], tmp_path / "run")
    path = folder / "results.nc"
    before = path.read_bytes()
    arguments = [*TINY.split(), "--levels", "2", "--out", str(folder)]
    assert imp.main(arguments) == 0
    assert path.read_bytes() == before
    assert imp.main([*arguments, "--tolerance", "0.9"]) == 0
    found, old = records.load(path), records.load(study[0] / "results.nc")
    assert found.equals(old)
    assert json.loads(found.attrs["verdicts"]) == json.loads(
        (folder / "verdicts.json").read_text()
    )
    assert found.attrs["verdicts"] != old.attrs["verdicts"]
    assert imp.main(arguments) == 0
    assert records.load(path).identical(old)


def test_progress_off_a_terminal_is_a_line_per_level(study):
    lines = study[2].strip().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"level {n}/2" for n in range(3)]
    assert all("6 networks" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("number", [1, 3, 6])
def test_nothing_of_the_table_is_cut(study, monkeypatch, width, number):
    monkeypatch.setenv("COLUMNS", str(width))
    results = records.load(study[0] / "results.nc")
    results = results.isel(arm=[i % 3 for i in range(number)])
    results["arm"] = [arm.name for arm in ARMS[:number]]
    cfg = imp.PRESETS["mnist1d"].config
    (table,) = imp.tables(Outcome(results, cfg, "mnist1d", []))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        display.show([table], [])
    shown = out.getvalue()
    assert "mean [min, max] of 2 replicas" in shown
    assert "…" not in shown
    words = shown.split()
    for row in [table.header, *table.rows]:
        for cell in row:
            assert set(cell.split()) <= set(words), cell


# --- again, and more of it ------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch):
    def train(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(lj.imp, "run", train)
    monkeypatch.setattr(lj.imp, "retrain", train)


def test_the_same_command_again_returns_at_once(copy, no_training):
    before = (copy / "results.nc").read_bytes()
    (copy / "figures" / "accuracy.png").unlink()
    out, _ = succeed(TINY, "--levels", 2, "--out", copy)
    assert (copy / "results.nc").read_bytes() == before
    assert (copy / "figures" / "accuracy.png").is_file()
    assert "Test accuracy" in out


@pytest.mark.slow
def test_asking_for_less_returns_at_once_and_forgets_nothing(copy, no_training):
    config = (copy / "config.json").read_bytes()
    succeed(TINY, "--levels", 1, "--replicas", 1, "--tolerance", 0.1, "--out", copy)
    assert (copy / "config.json").read_bytes() == config


@pytest.mark.slow
def test_more_levels_and_replicas_equal_a_direct_run(copy, tmp_path):
    old = (copy / "replicas-000-001/metrics.jsonl").read_text()
    old_tickets = ticket_files(copy)
    succeed(TINY, "--levels", 3, "--out", copy)
    stream = (copy / "replicas-000-001/metrics.jsonl").read_text()
    assert stream.startswith(old)  # seconds included: nothing was trained again
    more = [json.loads(line)["level"] for line in stream[len(old) :].splitlines()]
    assert more == [3, 3]

    succeed(TINY, "--levels", 3, "--replicas", 4, "--out", copy)
    assert (copy / "replicas-000-001/metrics.jsonl").read_text() == stream
    names = sorted(path.name for path in copy.glob("replicas-*"))
    assert names == ["replicas-000-001", "replicas-002-003"]
    direct = tmp_path / "direct"
    succeed(TINY, "--levels", 3, "--replicas", 4, "--out", direct)
    assert arrays(copy) == arrays(direct)
    assert ticket_files(copy) == ticket_files(direct)
    assert old_tickets.items() < ticket_files(direct).items()
    assert records.read_config(copy)["replicas"] == 4


def test_another_configuration_is_refused_by_the_names_of_its_fields(copy):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    arguments = ["--learning-rate", 0.01, "--arms", "ticket", "--levels", 2]
    status, _, err = command(TINY, *arguments, "--out", copy)
    assert status == 2
    assert "learning_rate: 0.005 there, 0.01 now" in err
    assert "arms: ['ticket', 'reinit', 'random_mask'] there, ['ticket'] now" in err
    assert "steps" not in err and "Traceback" not in err
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    status, _, err = command(TINY, "--out", tmp_path)
    assert status == 2 and "holds no run" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_default_folder_is_named_after_preset_and_identity(
    tmp_path, monkeypatch, study
):
    cfg = imp.EXPERIMENT.parse([*TINY.split(), "--levels", "2"]).config
    digits = identity.digits(cfg)
    folder = tmp_path / "results" / "imp" / f"mnist1d-{digits}"
    shutil.copytree(study[0], folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lj.imp, "run", None)
    out, _ = succeed(TINY, "--levels", 2)
    assert f"results/imp/mnist1d-{digits}/figures/accuracy.png" in out


# --- retraining a stored level --------------------------------------------------------


@pytest.mark.slow
def test_retraining_unchanged_gives_the_stored_level_again(copy):
    before = arrays(copy)
    again = ["--from", copy, "--level", 2]
    out, err = succeed(*again)
    (folder,) = (copy / "retrained").iterdir()
    assert folder.name.startswith("level02-") and str(folder) in out
    assert err.startswith("level 2/2: 6 networks")
    new = records.load(folder / "results.nc")
    old = records.load(copy / "results.nc").sel(level=[2])
    for name in ("test_error", "test_loss", "alive", "validation_loss", "train_loss"):
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    claims = {
        row["claim"] for row in json.loads((folder / "verdicts.json").read_text())
    }
    assert claims == {"better than reinit", "better than random mask"}
    assert (folder / "figures/accuracy.png").is_file()
    table = (folder / "table.md").read_text().split("\n\n")[0]
    assert len(table.splitlines()) == 3
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
    assert arrays(copy) == before

    # It is a run of its own: it returns at once, and is not mistaken for another.
    lj_retrain, lj.imp.retrain = lj.imp.retrain, None
    try:
        succeed(*again)
    finally:
        lj.imp.retrain = lj_retrain
    status, _, err = command("--from", copy, "--level", 1, "--out", folder)
    assert status == 2 and "retrained_level: 2 there, 1 now" in err
    status, _, err = command("--from", copy, "--level", 2, "--out", copy)
    assert status == 2 and "retrained_level: None there, 2 now" in err
    assert arrays(copy) == before


@pytest.mark.slow
def test_retraining_with_changed_data_optimizer_steps_and_arms(study, tmp_path):
    changed = (
        "--subset 150 --label-noise 0.2 --optimizer sgd --learning-rate 0.05 --steps 6it "
        "--arms ticket shuffled_weights small_dense"
    )
    folder = tmp_path / "new"
    source = ["--from", study[0], "--level", 1]
    succeed(*source, changed, "--out", folder)
    new = records.load(folder / "results.nc")
    assert new["arm"].values.tolist() == ["ticket", "shuffled_weights", "small_dense"]
    assert new["step"].values.tolist() == [4, 6]
    old = records.load(study[0] / "results.nc").sel(level=1, arm="ticket")
    for arm in ("ticket", "shuffled_weights"):
        np.testing.assert_array_equal(new["alive"].sel(arm=arm, level=1), old["alive"])
    assert not np.array_equal(new["test_loss"].sel(arm="ticket", level=1), old)
    assert records.read_config(folder)["retrained_level"] == 1


# --- what goes wrong ------------------------------------------------------------------

WRONG = {
    "--fraction 1.5": ("fraction=1.5", "(0, 1)"),
    "--fraction 0": ("fraction=0.0", "(0, 1)"),
    "--task chess": ("task='chess'", "classification"),
    "--data chess": ("data='chess'", "mnist1d, digits", "imagenet"),
    "--data imagenet": ("subset=200", "data='imagenet' is read while runs train"),
    "--model lenet": ("model='lenet'", "lenet-300-100"),
    "--model conv-2": ("model='conv-2'", "data='mnist1d'", "(40,)"),
    "--score smallest": ("score='smallest'", "magnitude"),
    "--arms ticket control": ("--arms", "control", "reinit"),
    "--arms reinit": ("arms=('reinit',)", "'ticket'"),
    "--arms ticket ticket": ("arms=", "each arm once"),
    "--rewind-step 8it": ("rewind_step=8", "[0, 8)"),
    "--rewind-step soon": ("rewind_step", "'soon'", "2ep"),
    "--steps 0it": ("steps=0", "1 or more"),
    "--steps ten": ("steps", "'ten'", "500it"),
    "--warmup ten": ("warmup", "'ten'", "500it"),
    "--schedule step": ("schedule='step'", "--drops"),
    "--schedule step --drops x": ("drops", "'x'", "500it"),
    "--batch-size 201": ("batch_size=201", "between 1 and 200"),
    "--batch-size 0": ("batch_size=0", "between 1 and 200"),
    "--learning-rate -1": ("learning_rate=-1", "0 or more"),
    "--learning-rate nan": ("learning_rate=nan", "0 or more"),
    "--levels -1": ("levels=-1", "0 or more"),
    "--levels many": ("--levels", "many"),
    "--replicas 0": ("replicas=0", "1 or more"),
    "--target-density 2": ("target_density=2.0", "(0, 1]"),
    "--tolerance -1": ("tolerance=-1", "0 or more"),
    "--checkpoint-seconds -1": ("checkpoint_seconds=-1", "0 or more"),
    "--validate-every 0": ("validate_every=0", "1 or more"),
    "--devices 99": ("devices=99", "between 1 and 2"),
    "--chunk -1": ("chunk=-1", "0 (all) or more"),
    "--convolution im2col": ("--convolution", "im2col"),
    "--precision float16": ("--precision", "float16"),
    "--activations float16": ("--activations", "float16"),
    "--data-parallel 0": ("data_parallel=0", "divide batch_size"),
    "--data-parallel 4": ("data_parallel=4", "divide devices=2"),
    "--batch-size 25 --data-parallel 2": ("data_parallel=2", "divide batch_size=25"),
    "--processes 2": ("--processes", "go with --distributed"),
    "--distributed --process one": ("--process one", "whole number"),
    "--distributed --processes 2": ("processes=2", "give all three"),
    "--distributed --coordinator a:1 --processes 2 --process 2": ("between 0 and 1",),
    "--exclude output": ("exclude", "'output'", "head/kernel"),
    "--exclude kernel": ("exclude=('kernel',)", "head/kernel"),
    "--rates head 0.1": ("rates", "scope='layerwise'"),
    "--scope layerwise --rates fc 0.1": ("rates", "'fc'", "head/kernel"),
    "--scope layerwise --rates head 0.1": ("rates", "'dense_0/kernel'"),
    "--rule open_lth --scope layerwise": ("rule='open_lth'", "scope='global'"),
    "--schedules linear --levels 11": ("levels=11", "at most 9"),
    "--schedules geometric geometric": ("chains", "all different"),
    "--validation 4000": ("validation", "[0, 3999]", "4000"),
    "--subset 0": ("subset", "[1, 3000]"),
    "--label-noise 2": ("label_noise", "[0, 1]"),
    "--augment flip": ("augment=('flip',)", "images"),
    "--augment flip resized_crop": ("augment=", "'resized_crop' and 'flip'"),
    "--crop 8": ("crop=8", "None", "images"),
    "--data digits --crop 9": ("crop=9", "between 1 and 8"),
    "--data digits --crop 0": ("crop=0", "1 or more"),
    "--label-smoothing 1": ("label_smoothing=1.0", "below 1"),
    "--normalization imagenet": ("normalization='imagenet'", "mnist1d"),
    "--level 3": ("--from RUN and --level L",),
    "--from nowhere --level 1": ("--from nowhere", "no run"),
    "--from": ("--from needs a value",),
    "--unknown 3": ("--unknown",),
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_are_named_and_leave_nothing(arguments, tmp_path):
    folder = tmp_path / "run"
    base = "" if "--from" in arguments or "--level " in arguments else TINY
    status, out, err = command(base, "--out", folder, arguments)
    assert status == 2
    for fragment in WRONG[arguments]:
        assert fragment in err, err
    assert "Traceback" not in err and out == ""
    assert not folder.exists()


def test_crops_and_smoothing_of_a_recipe_are_those_of_its_task():
    plain = dataclasses.replace(
        imp.PRESETS["mnist1d"].config, data="digits", model="mlp-5", validation=100
    )
    cfg = dataclasses.replace(
        plain, augment=("resized_crop", "flip"), crop=6, label_smoothing=0.1
    )
    assert images.shape_of(plain) == (8, 8, 1) and images.shape_of(cfg) == (6, 6, 1)
    task, other = map(images.make_classification, (cfg, plain))
    assert task.shapes[0]["dense_0"]["kernel"].shape == (36, 5)
    assert other.shapes[0]["dense_0"]["kernel"].shape == (64, 5)
    static = task.loss.__self__
    assert static.label_smoothing == 0.1 and other.loss.__self__.label_smoothing == 0
    assert static.batches.augment == ("resized_crop", "flip")
    # Earlier runs keep their folders.
    later = {"crop", "label_smoothing"}
    assert later <= set(identity.as_config(cfg))
    assert not later & set(identity.as_config(plain))
    assert recipes.ticket_metadata(cfg, "imp")["dataset"]["shape"] == [6, 6, 1]


def test_an_unknown_preset_gets_the_valid_ones():
    status, _, err = command("minst1d", "--levels", 1)
    assert status == 2
    assert all(name in err for name in ("'minst1d'", *imp.PRESETS))


def test_data_that_are_not_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    images._load_data.cache_clear()
    status, _, err = command("lenet-fashion", "--out", tmp_path / "run")
    assert status == 2
    assert "'fashion_mnist' is not prepared" in err
    assert "python -m lottery_jax.data.prepare fashion_mnist" in err
    assert "Available without a network: mnist1d, digits" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, fragments",
    {
        "--level 7": ("--level 7", "0, 1, 2"),
        "--level one": ("--level one", "whole number"),
        "--level 1 --replicas 3": ("replicas=3", "has 2"),
        "--level 1 --model mlp-9": ("--level 1", "model='mlp-9'", "(8,)", "(9,)"),
        "--level 1 --data digits --subset 100": ("--level 1", "'digits'", "(40, 8)"),
        "--level 1 --steps 0it": ("steps=0", "1 or more"),
    }.items(),
)
def test_retrainings_that_cannot_be(study, tmp_path, arguments, fragments):
    folder = tmp_path / "new"
    source = ["--from", study[0], "--out", folder]
    status, _, err = command(*source, arguments)
    assert status == 2
    assert all(fragment in err for fragment in fragments), err
    assert not folder.exists()


def test_a_retraining_takes_no_preset(study):
    status, _, err = command("mnist1d", "--from", study[0], "--level", 1)
    assert status == 2 and "leave 'mnist1d' out" in err


def poison(task, replica):
    """A task whose init draws nan for one replica's own key."""
    bad = jax.random.key_data(keys.replica_keys(0, replica).init)

    def init(key):
        params, model_state, stream = task.init(key)
        hit = (jax.random.key_data(key) == bad).all()
        spoil = lambda p: jax.numpy.where(hit, jax.numpy.nan, p)  # noqa: E731
        return jax.tree.map(spoil, params), model_state, stream

    return task._replace(init=init)


@pytest.mark.slow
def test_a_replica_that_diverges_is_reported_and_left_out(tmp_path, monkeypatch, study):
    real = imp.make_task
    monkeypatch.setattr(imp, "make_task", lambda cfg: poison(real(cfg), 1))
    out, err = succeed(TINY, "--levels", 2, "--out", tmp_path / "run")
    assert "level 1: random_mask of replica 1 diverged at step 0" in err
    assert "left out of every average: ticket of replica 1 at level 0, 1, 2" in out
    results = records.load(tmp_path / "run" / "results.nc")
    healthy = records.load(study[0] / "results.nc").sel(replica=0)
    for name in ("test_error", "test_loss", "train_loss"):  # harms no other
        np.testing.assert_array_equal(results[name].sel(replica=0), healthy[name])
    diverged = results["diverged"].sel(chain="imp", replica=1)
    assert diverged.sel(arm="ticket").all() and diverged.sel(arm="random_mask").all()
    accuracy = imp.accuracy(results)
    assert np.isnan(accuracy.sel(arm="ticket", replica=1)).all()
    own = 100 * (1 - healthy["test_error"].sel(arm="ticket", level=1).item())
    cell = f"{own:.1f} [{own:.1f}, {own:.1f}]"
    assert f"| 1 | 80.0 | {cell} |" in (tmp_path / "run" / "table.md").read_text()
    found = json.loads((tmp_path / "run" / "verdicts.json").read_text())
    assert found and all(row["verdict"]["n"] == 1 for row in found)
    assert all("replica 1" in row["verdict"]["excluded"] for row in found)
    assert (tmp_path / "run/figures/accuracy.png").is_file()


@pytest.mark.slow
def test_nothing_but_divergence_still_makes_a_table(tmp_path):
    out, err = succeed(TINY, "--levels 1 --learning-rate 1e38 --out", tmp_path)
    assert err.count("diverged at step") == 12
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[3] == "| 1 | 80.0 | diverged | diverged | diverged |"
    assert (tmp_path / "figures/accuracy.png").is_file()
    assert "Figure:" in out


@pytest.mark.slow
def test_ctrl_c_is_no_traceback_and_the_command_goes_on(study, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        append(*arguments)

    append = records.append_stream
    arguments = [TINY, "--levels", 2, "--checkpoint-seconds", 0, "--out", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(records, "append_stream", stop)
        status, _, err = command(*arguments)
    assert status == 130 and "the same command goes on" in err
    assert checkpoints.latest(tmp_path / "replicas-000-001/checkpoints") == 3
    _, err = succeed(*arguments)
    assert "continuing at level 1, step 4" in err
    assert arrays(tmp_path) == arrays(study[0])
    assert ticket_files(tmp_path) == ticket_files(study[0])


def test_an_environment_with_other_settings_is_respected():
    """More devices than cores if the user says so; a compilation cache of one's own."""
    code = (
        "from experiments import launch; import jax; launch.use_all_cores();"
        "print(jax.device_count(), jax.config.jax_compilation_cache_dir);"
        "launch.use_all_cores()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"JAX_NUM_CPU_DEVICES": "3", "JAX_COMPILATION_CACHE_DIR": "/tmp/elsewhere"},
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["3", "/tmp/elsewhere"]


def test_constant_rates_keep_no_counter_and_warmed_ones_start_at_zero():
    cfg = imp.PRESETS["resnet20-cifar10-warmup"].config
    tx = recipes.make_optimizer(cfg, 391)
    weights = {"w": np.float32([1.0])}
    state = tx.init(weights)
    sizes = []
    for _ in range(3):
        updates, state = tx.update({"w": np.float32([1.0])}, state, weights)
        sizes.append(float(optax.tree.norm(updates)))
    # Steps 0, 1, 2 of 10,000 to 0.03, with momentum 0.9 and weight decay 1e-4.
    gradient = 1.0001
    momenta = [gradient, gradient * 1.9, gradient * 2.71]
    expected = [0.03 * i / 10000 * m for i, m in enumerate(momenta)]
    np.testing.assert_allclose(sizes, expected, rtol=1e-5, atol=1e-12)


def test_every_arm_is_known_wherever_arms_are_listed():
    names = {arm.name for arm in ARMS}
    assert names <= set(lj.plots.STYLES)
    assert len(set(lj.plots.STYLES.values())) == len(lj.plots.STYLES)
    assert set(typing.get_args(imp.Arm)) == names
    text = pathlib.Path(__file__).parent.parent.joinpath("docs", "imp.md").read_text()
    for name in names:
        assert f"| `{name}` |" in text and f"| {name} |" in lj.imp.arms.__doc__
