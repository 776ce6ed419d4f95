"""The experiments on connectivity, as a user meets them, at tiny sizes."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

import lottery_jax as lj
from experiments import alignment, curves, display, instability, recipes
from experiments.rewinding import __main__ as rewinding
from experiments.rewinding import batch_size, config, retraining, stability

xr = pytest.importorskip("xarray")

TINY = (
    "--model mlp-8 --subset 200 --learning-rate 0.1 --optimizer sgd --replicas 2 "
    "--alphas 3 --every 4 "
)
SMALL = TINY + "--steps 8it --branches 2 "
INSTABILITY = "mnist1d " + SMALL + "--rewind-steps 0it 4it "
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def run(experiment, *arguments):
    """Runs a command in this process: (exit status, stdout, stderr)."""
    words = sum(
        ([*a.split()] if isinstance(a, str) else [str(a)] for a in arguments), []
    )
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = experiment.main(words)
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def succeed(experiment, *arguments):
    status, out, err = run(experiment, *arguments)
    assert status == 0, err
    return out


def load(folder):
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        return results.load()


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


@pytest.fixture
def fake_data(monkeypatch):
    """Random images in the shapes of sets that would have to be prepared."""

    def fake(name, *, validation=None, **_):
        random = np.random.default_rng(0)

        def split(number):
            images = random.integers(0, 256, (number, *SHAPES[name]), np.uint8)
            return {"image": images, "label": np.zeros(number, np.int32)}

        parts = {"train": split(60_000), "test": split(10_000)}
        if validation != 0:
            parts["validation"] = split(10)
        channels = SHAPES[name][-1]
        mean, std = (0.5,) * channels, (0.25,) * channels
        return lj.data.Dataset(parts, 10, SHAPES[name], mean, std, name)

    recipes._load_data.cache_clear()
    real = lj.data.load
    monkeypatch.setattr(
        lj.data, "load", lambda n, **o: (fake if n in SHAPES else real)(n, **o)
    )
    yield
    recipes._load_data.cache_clear()


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instability") / "run"
    return folder, succeed(instability, INSTABILITY, "--out", folder)


# --- instability ----------------------------------------------------------------------


@pytest.mark.parametrize("name", instability.PRESETS)
def test_every_preset_of_instability_makes_a_plan_for_its_task(name, fake_data):
    cfg = instability.PRESETS[name].config
    task = recipes.make_path_task(cfg)
    plan = instability.plan(cfg, task.steps_per_epoch)
    lj.connectivity.check_task(task, plan)
    recipes.make_optimizer(cfg, task.steps_per_epoch)
    assert plan.rewind_steps[0] == 0 < plan.rewind_steps[-1] < plan.steps
    assert set(plan.splits) <= set(task.data)


def test_the_paper_s_presets_have_its_numbers():
    paper = instability.PRESETS["resnet20-cifar10-paper"].config
    assert (paper.model, paper.batch_size, paper.learning_rate) == (
        "resnet-20",
        128,
        0.1,
    )
    assert (paper.steps, paper.drops) == ("63000it", ("32000it", "48000it"))
    assert paper.augment == ("flip", "crop") and paper.alphas == 30
    lenet = instability.PRESETS["lenet-mnist-paper"].config
    assert (lenet.optimizer, lenet.learning_rate, lenet.batch_size) == (
        "adam",
        1.2e-3,
        60,
    )
    assert lenet.steps == "24000it"


def test_a_run_folder_holds_results_verdicts_table_and_figures(analysis):
    folder, out = analysis
    results = load(folder)
    sizes = dict(rewind_step=2, replica=2, pair=1, split=2, alpha=3, batch_norm=1)
    assert {name: results["error"].sizes[name] for name in sizes} == sizes
    lii = lj.connectivity.instability(results["error"].transpose(..., "alpha").values)
    np.testing.assert_array_equal(results["lii"].values, lii)
    assert json.loads(results.attrs["path_examples"]) == {"train": 200, "test": 1000}
    judged = json.loads((folder / "verdicts.json").read_text())
    assert {row["verdict"]["n"] for row in judged} == {2}  # inits, not pairs
    for name in ("error_along_path", "instability", "other_rulers"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    assert (folder / "table.md").read_text().splitlines()[0].startswith("| schedule")
    assert "stable (test, continued)" in out


def test_a_finished_run_returns_at_once(analysis, monkeypatch):
    folder, out = analysis

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(lj.connectivity, "run", never)
    assert succeed(instability, INSTABILITY, "--out", folder) == out


def test_more_replicas_extend_a_run_without_changing_the_first(analysis, tmp_path):
    import shutil

    folder = shutil.copytree(analysis[0], tmp_path / "run")
    succeed(instability, INSTABILITY, "--replicas 3 --out", folder)
    before, after = load(analysis[0]), load(folder)
    assert after["replica"].values.tolist() == [0, 1, 2]
    for name in ("error", "l2", "travel"):
        np.testing.assert_array_equal(before[name], after[name].isel(replica=[0, 1]))


@pytest.mark.parametrize("stage", ["trunk", "branches", "paths"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    analysis, tmp_path, monkeypatch, stage
):
    seen = []

    @contextlib.contextmanager
    def stages(what=""):
        def watch(at):
            seen.append(at)
            if at.stage == stage and not at.resumed:
                raise KeyboardInterrupt

        yield watch

    where = (INSTABILITY, "--checkpoint-seconds 0 --out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(display, "stages", stages)
        status, _, err = run(instability, *where)
    assert status == 130 and "goes on from here" in err
    assert seen[-1].stage == stage
    succeed(instability, *where)
    whole, resumed = load(analysis[0]), load(tmp_path / "run")
    for name in whole.variables:
        if name not in ("schedule", "split", "batch_norm"):
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--branches 1", "branches=1; it must be 2 or more"),
        ("--alphas 1", "alphas=1; it must be 2 or more"),
        ("--rewind-steps 8it", "rewind_steps=(8,)"),
        ("--rewind-steps soon", "rewind_steps: 'soon' is no step"),
        ("--replicas 0", "replicas=0; it must be 1 or more"),
        ("--path-test 1001", "path_test=1001; it must be between 1 and 1000"),
        ("--schedules continued continued", "each once"),
        ("--devices 99", "devices=99"),
    ],
)
def test_bad_input_names_the_field_and_leaves_no_folder(flags, message, tmp_path):
    folder = tmp_path / "run"
    status, _, err = run(instability, INSTABILITY, flags, "--out", folder)
    assert status == 2 and message in err
    assert not folder.exists()


def test_a_network_with_statistics_needs_a_policy(fake_data, tmp_path):
    folder = tmp_path / "run"
    flags = "resnet8-cifar10 --model resnet-8-2 --batch-norm --out"
    status, _, err = run(instability, flags, folder)
    assert status == 2 and "'recompute' or 'interpolate'" in err
    assert not folder.exists()


def test_another_configuration_in_the_folder_is_refused(analysis):
    status, _, err = run(instability, INSTABILITY, "--seed 1 --out", analysis[0])
    assert status == 2 and "seed: 0 there, 1 now" in err


# --- rewinding ------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.PRESETS)
def test_every_preset_of_rewinding_makes_a_plan_for_its_task(name, fake_data):
    cfg = config.PRESETS[name].config
    task = recipes.make_task(cfg)
    if cfg.study == "retraining":
        plans = retraining.protocols(cfg, task.steps_per_epoch)
        assert 0 in plans["rewound"].rewind_steps  # the column t = T
    elif cfg.study == "batch_size":
        batch_size.check(cfg)
    else:
        stability.check(cfg, recipes.make_path_task(cfg))
        plan = stability.protocol(cfg, task.steps_per_epoch)
        assert plan.rewind_steps[0] == 0
    recipes.make_optimizer(cfg, task.steps_per_epoch)


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stability") / "run"
    flags = "mnist1d " + SMALL + "--rewind-steps 0it 4it --levels 0 2 "
    return folder, flags, succeed(rewinding, flags, "--out", folder)


def test_stability_measures_every_arm_at_every_step_and_level(stable):
    folder, _, out = stable
    results = load(folder)
    assert results["error"].sizes["rewind_step"] == 2
    dense, pruned = results.sel(level=0), results.sel(level=2)
    assert np.isnan(dense["error"].sel(arm=["reinit", "random_mask"])).all()
    assert np.isfinite(dense["error"].sel(arm="ticket")).all()
    assert np.isfinite(pruned["error"]).all() and np.isfinite(pruned["lii"]).all()
    np.testing.assert_allclose(pruned["density"], 0.64, atol=0.002)
    assert (results["level_barrier"] >= -1e-6).all()
    assert "Stable against matching" in out


def test_the_cross_table_counts_every_subnetwork_once(stable):
    judged = stability.judge(load(stable[0]), 0.02, 0.002)
    cross = stability.contingency(judged)
    total = sum(int(cell) for row in cross.rows for cell in row[1:])
    assert total == 2 * 3 == sum(row["level"] > 0 for row in judged)
    means = stability.contingency_of_means(judged, 0.02, 0.002)
    assert sum(int(cell) for row in means.rows for cell in row[1:]) == total


def verdict(answer, estimate=0.0, tolerance=0.02):
    return lj.verdicts.Verdict("", answer, estimate, 0, 0, tolerance, 3)


def judged_row(step, arm, stable_, matching):
    return {
        "rewind_step": step,
        "level": 1,
        "density": 0.8,
        "arm": arm,
        "stable": verdict(stable_),
        "matching": verdict(matching),
    }


def test_the_claim_is_read_at_the_first_step_where_the_ticket_is_both():
    rows = [
        judged_row(0, "ticket", "no", "yes"),
        judged_row(0, "reinit", "no", "no"),
        judged_row(30, "ticket", "yes", "yes"),
        judged_row(30, "reinit", "undecided", "no"),
        judged_row(100, "ticket", "yes", "yes"),
    ]
    (line,) = stability.claim_at_first(rows)
    assert "k = 30" in line and "reinit: stable undecided" in line
    first = {row["arm"]: row for row in stability.first_steps(rows)}
    assert (first["ticket"]["stable"], first["ticket"]["matching"]) == (30, 0)
    assert first["reinit"]["stable"] is None


def test_a_finished_study_of_stability_returns_at_once(stable):
    folder, flags, out = stable
    before = (folder / "results.nc").stat().st_mtime_ns
    assert succeed(rewinding, flags, "--out", folder) == out
    assert (folder / "replicas-000-001" / "results.nc").stat().st_mtime_ns <= before


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--levels 1 2", "there must be 0"),
        ("--levels 0", "and another level"),
        ("--arms reinit", "'ticket' must be there"),
        ("--branches 1", "branches=1"),
        ("--study retraining", "retrain_times=()"),
        ("--study batch_size", "batch_sizes=()"),
        ("--study batch_size --batch-sizes 10 20", "equal epochs"),
    ],
)
def test_bad_input_of_rewinding_names_the_field(flags, message, tmp_path):
    words = "mnist1d " + SMALL + "--rewind-steps 0it 4it --levels 0 2 "
    status, _, err = run(rewinding, words, flags, "--out", tmp_path / "run")
    assert status == 2 and message in err
    assert not (tmp_path / "run").exists()


def test_retraining_starts_all_ways_from_one_dense_network(tmp_path):
    flags = "mnist1d-retraining " + TINY + "--steps 8it --drops 4it --levels 0 1 2 "
    flags += "--retrain-times 4it 8it --out"
    out = succeed(rewinding, flags, tmp_path / "run")
    results = load(tmp_path / "run")
    dense = results["test_error"].sel(level=0)
    for way in ("lr_rewind", "finetune"):
        np.testing.assert_array_equal(
            dense.sel(retraining="rewind"), dense.sel(retraining=way)
        )
    pruned = results["test_loss" if "test_loss" in results else "test_error"].sel(
        level=2
    )
    assert np.isfinite(pruned).all()
    assert "weight rewinding better than reinit" in out


def test_batch_sizes_are_compared_at_equal_epochs(tmp_path):
    flags = "mnist1d-batch-size " + TINY + "--steps 2ep --branches 2 "
    flags += "--batch-sizes 25 100 --levels 0 1 --out"
    out = succeed(rewinding, flags, tmp_path / "run")
    results = load(tmp_path / "run")
    assert results["batch_size"].values.tolist() == [25, 100]
    gap = batch_size.gap(results).sel(level=1)
    error = results["error"].sel(split="test", level=1).mean("branch")
    np.testing.assert_allclose(gap, error.sel(arm="reinit") - error.sel(arm="ticket"))
    assert "LII falls from batch 25 to 100" in out


# --- alignment and curves -------------------------------------------------------------


def test_an_aligned_copy_is_the_network_itself(tmp_path):
    flags = "mnist1d --models mlp-6 mlp-9 --subset 200 --steps 6it --alphas 5 --out"
    succeed(alignment, flags, tmp_path / "run")
    results = load(tmp_path / "run")
    lii = alignment.instabilities(results)
    copy = dict(comparison="renumbered copy, aligned")
    np.testing.assert_array_equal(results["largest_difference"].sel(copy), 0)
    assert np.abs(lii.sel(copy)).max() < 1e-6
    assert results["largest_difference"].sel(comparison="renumbered copy").min() > 0


def test_a_single_network_has_nothing_to_be_compared_with(tmp_path):
    for experiment in (alignment, curves):
        status, _, err = run(experiment, "--replicas 1 --out", tmp_path / "run")
        assert status == 2 and "replicas=1" in err


def test_curves_are_trained_and_drawn(tmp_path):
    flags = "mnist1d --model mlp-8 --subset 200 --steps 20it --curve-steps 20it "
    flags += "--alphas 5 --plane 3 --replicas 2 --out"
    out = succeed(curves, flags, tmp_path / "run")
    results = load(tmp_path / "run")
    ends = results["error"].isel(alpha=[0, -1])
    for path in ("bezier", "chain"):  # a curve ends where the line does
        np.testing.assert_array_equal(ends.sel(path="line"), ends.sel(path=path))
    assert results["plane_error"].shape == (2, 3, 3)
    for name in ("curves", "plane_bezier", "plane_chain"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").exists()
    assert "barrier lower than the line's" in out


@pytest.mark.parametrize("module", [alignment, curves])
def test_every_preset_of_alignment_and_curves_makes_its_task(module, fake_data):
    for preset in module.PRESETS.values():
        cfg = preset.config
        recipes.check_paths(cfg, recipes.make_path_task(cfg), cfg.batch_norm)
