"""Every experiment at two steps, and those on connectivity as a user meets them."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest

import lottery_jax as lj
from experiments import (
    alignment,
    at_init,
    curves,
    deconstruct,
    display,
    early_bird,
    gale,
    instability,
    liu,
    metrics,
    rewinding,
)
from experiments.all import EXPERIMENTS
from experiments.kinds import images
from experiments.rewinding import batch_size, config, stability

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("compiled_quickly", "made_texts"),
]

xr = pytest.importorskip("xarray")

SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
ALL = {one.name: one for one in EXPERIMENTS} | {
    name: study for name, study in rewinding.STUDIES.items() if name != "stability"
}


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


class Finished(NamedTuple):
    folder: pathlib.Path
    flags: str
    out: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny run of an experiment, made once."""
    runs = {}

    def tiny(name):
        if name not in runs:
            one = ALL[name]
            flags = f"{one.default} {one.tiny}"
            folder = tmp_path_factory.mktemp(name) / "run"
            runs[name] = Finished(folder, flags, succeed(one, flags, "--out", folder))
        return runs[name]

    return tiny


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

    images._load_data.cache_clear()
    real = lj.data.load
    monkeypatch.setattr(
        lj.data, "load", lambda n, **o: (fake if n in SHAPES else real)(n, **o)
    )
    yield
    images._load_data.cache_clear()


# --- all ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_run_leaves_results_verdicts_tables_and_figures(name, finished):
    folder, _, out = finished(name)
    results = load(folder)
    assert all(size > 0 for size in results.sizes.values())
    assert {"versions", "git_commit", "device", "config"} <= results.attrs.keys()
    judged = json.loads((folder / "verdicts.json").read_text())
    assert judged
    for one in judged:
        assert list(one)[-2:] == ["claim", "verdict"]
        assert one["verdict"]["answer"] in ("yes", "no", "undecided")
    # The results say the same, with how many comparisons there were.
    assert json.loads(results.attrs["verdicts"]) == judged
    lines = json.loads(results.attrs["claims"])
    for claim in {one["claim"] for one in judged}:
        assert [line.startswith(f"{claim}: ") for line in lines].count(True) == 1
    assert (folder / "table.md").read_text().startswith("| ")
    figure = out.strip().splitlines()[-1].removeprefix("Figure: ")
    assert pathlib.Path(figure).stat().st_size > 5000
    assert pathlib.Path(figure).with_suffix(".svg").is_file()


@pytest.mark.parametrize("name", ALL)
def test_a_finished_run_trains_nothing(name, finished, monkeypatch):
    folder, flags, out = finished(name)
    before = (folder / "results.nc").stat().st_mtime_ns
    monkeypatch.setattr(lj.imp, "run", None)
    monkeypatch.setattr(lj.connectivity, "run", None)
    monkeypatch.setattr(lj.training, "train", None)
    assert succeed(ALL[name], flags, "--out", folder) == out
    assert (folder / "results.nc").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ALL)
def test_help_lists_every_preset(name):
    status, out, _ = run(ALL[name], "--help")
    text = " ".join(out.split())
    assert status == 0 and f"usage: python -m experiments.{ALL[name].name}" in text
    for preset, (_, line) in ALL[name].presets.items():
        assert f"{preset} {line}" in text


@pytest.mark.parametrize("name", ALL)
def test_another_configuration_in_the_folder_is_refused(name, finished):
    folder, flags, _ = finished(name)
    status, _, err = run(ALL[name], flags, "--seed 1 --out", folder)
    assert status == 2 and "seed: 0 there, 1 now" in err


@pytest.mark.parametrize("name", [n for n, one in ALL.items() if one.together])
def test_replicas_that_are_compared_run_together(name, tmp_path):
    status, _, err = run(ALL[name], "--replicas 1 --out", tmp_path / "run")
    assert status == 2 and "replicas=1; it must be 2 or more" in err
    status, _, err = run(ALL[name], "--distributed")
    assert status == 2 and "runs in one process" in err


# --- instability ----------------------------------------------------------------------


@pytest.mark.parametrize("name", instability.PRESETS)
def test_every_preset_of_instability_makes_a_plan_for_its_task(name, fake_data):
    cfg = instability.PRESETS[name].config
    if cfg.pretrained:  # the sets that were made up for it are small
        cfg = dataclasses.replace(cfg, path_train=None, path_test=None)
    _, task, _, plan = instability.prepare(cfg)
    lj.connectivity.check_task(task, plan)
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


def test_instabilities_are_those_of_the_errors(finished):
    folder, _, out = finished("instability")
    results = load(folder)
    sizes = dict(rewind_step=2, replica=2, pair=1, split=2, alpha=3, batch_norm=1)
    assert {name: results["error"].sizes[name] for name in sizes} == sizes
    lii = lj.connectivity.instability(results["error"].transpose(..., "alpha").values)
    np.testing.assert_array_equal(results["lii"].values, lii)
    assert json.loads(results.attrs["path_examples"]) == {"train": 200, "test": 1000}
    judged = json.loads((folder / "verdicts.json").read_text())
    assert {row["verdict"]["n"] for row in judged} == {2}  # inits, not pairs
    assert "stable (test, continued)" in out
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {"error_along_path", "instability", "other_rulers"}


def test_more_replicas_extend_a_run_without_changing_the_first(finished, tmp_path):
    folder, flags, _ = finished("instability")
    more = shutil.copytree(folder, tmp_path / "run")
    succeed(instability, flags, "--replicas 4 --out", more)
    before, after = load(folder), load(more)
    assert after["replica"].values.tolist() == [0, 1, 2, 3]
    for name in ("error", "l2", "travel"):
        np.testing.assert_array_equal(before[name], after[name].isel(replica=[0, 1]))


def test_an_interrupted_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    folder, flags, _ = finished("instability")
    where = (flags, "--every 1 --checkpoint-seconds 0 --out", tmp_path / "run")
    reached = []

    @contextlib.contextmanager
    def progress(*_, **__):
        def watch(at):
            if at.stage == stage and not at.resumed:
                reached.append(stage)
                raise KeyboardInterrupt

        yield watch

    for stage in ("trunk", "branches", "paths"):  # noqa: B007
        with monkeypatch.context() as patch:
            patch.setattr(display, "progress", progress)
            status, _, err = run(instability, *where)
        assert status == 130 and "goes on from here" in err
    assert reached == ["trunk", "branches", "paths"]
    succeed(instability, *where)
    whole, resumed = load(folder), load(tmp_path / "run")
    for name in whole.variables:
        if name not in ("schedule", "split", "batch_norm"):
            np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--branches 1", "branches=1; it must be 2 or more"),
        ("--alphas 1", "alphas=1; it must be 2 or more"),
        ("--rewind-steps 2it", "rewind_steps=(2,)"),
        ("--rewind-steps soon", "rewind_steps: 'soon' is no step"),
        ("--replicas 0", "replicas=0; it must be 1 or more"),
        ("--path-test 1001", "path_test=1001; it must be between 1 and 1000"),
        ("--schedules continued continued", "all different"),
        ("--devices 99", "devices=99"),
    ],
)
def test_bad_input_names_the_field_and_leaves_no_folder(flags, message, tmp_path):
    folder = tmp_path / "run"
    status, _, err = run(
        instability, instability.EXPERIMENT.tiny, flags, "--out", folder
    )
    assert status == 2 and message in err
    assert not folder.exists()


def test_a_network_with_statistics_needs_a_policy(fake_data, tmp_path):
    folder = tmp_path / "run"
    flags = "resnet8-cifar10 --model resnet-8-2 --batch-norm --out"
    status, _, err = run(instability, flags, folder)
    assert status == 2 and "'recompute' or 'interpolate'" in err
    assert not folder.exists()


# --- rewinding ------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.PRESETS)
def test_every_preset_of_rewinding_makes_a_plan_for_its_task(name, fake_data):
    cfg = config.PRESETS[name].config
    setup = rewinding.EXPERIMENT.of(cfg).prepare(cfg)
    if cfg.study == "batch_size":
        assert list(setup) == sorted(cfg.batch_sizes)
    elif cfg.study == "retraining":
        assert 0 in setup.plan["rewound"].rewind_steps  # the column t = T
    else:
        assert setup.plan.rewind_steps[0] == 0


def test_stability_measures_every_arm_at_every_step_and_level(finished):
    folder, _, out = finished("rewinding")
    results = load(folder)
    assert results["error"].sizes["rewind_step"] == 2
    dense, pruned = results.sel(level=0), results.sel(level=1)
    assert np.isnan(dense["error"].sel(arm=["reinit", "random_mask"])).all()
    assert np.isfinite(dense["error"].sel(arm="ticket")).all()
    assert np.isfinite(pruned["error"]).all() and np.isfinite(pruned["lii"]).all()
    np.testing.assert_allclose(pruned["density"], 0.8, atol=0.002)
    assert (results["level_barrier"] >= -1e-6).all()
    assert "Stable against matching" in out


def test_the_cross_table_counts_every_subnetwork_once(finished):
    cfg = config.PRESETS["mnist1d"].config
    judged = stability.judge(load(finished("rewinding").folder), cfg)
    found = stability.subnetworks_of(judged)
    cross = stability.contingency(found)
    total = sum(int(cell) for row in cross.rows for cell in row[1:])
    assert total == 2 * 3 == sum(one.level > 0 for one in found)
    means = stability.contingency_of_means(found, cfg)
    assert sum(int(cell) for row in means.rows for cell in row[1:]) == total


POINTS = metrics.difference(metrics.ERROR)


def subnetwork(step, arm, *answers):
    verdicts = [lj.verdicts.Verdict("", a, 0.0, 0, 0, 0.02, 3) for a in answers]
    return stability.Subnetwork(step, 1, 0.8, arm, *verdicts)


def test_the_claim_is_read_at_the_first_step_where_the_ticket_is_both():
    found = [
        subnetwork(0, "ticket", "no", "yes"),
        subnetwork(0, "reinit", "no", "no"),
        subnetwork(30, "ticket", "yes", "yes"),
        subnetwork(30, "reinit", "undecided", "no"),
        subnetwork(100, "ticket", "yes", "yes"),
    ]
    (line,) = stability.claim_at_first(found, POINTS)
    assert "k = 30" in line and "reinit: stable undecided" in line
    (line,) = stability.claim_at_first(found[:2], POINTS)
    assert "no k at which the ticket is both" in line


def test_the_smallest_steps_are_those_of_the_means():
    found = [
        subnetwork(step, "ticket", "no", "no")._replace(
            stable=lj.verdicts.Verdict("", "no", lii, 0, 0, 0.02, 3)
        )
        for step, lii in ((0, 0.3), (30, 0.01), (100, 0.0))
    ]
    smallest = stability.smallest_steps(found)
    assert (smallest["stable"], smallest["matching"]) == (30, 0)
    assert np.isnan(stability.smallest_steps(found[:1])["stable"])


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
    words = rewinding.EXPERIMENT.tiny
    status, _, err = run(rewinding, words, flags, "--out", tmp_path / "run")
    assert status == 2 and message in err
    assert not (tmp_path / "run").exists()


def test_retraining_starts_all_ways_from_one_dense_network(finished):
    folder, _, out = finished("retraining")
    results = load(folder)
    dense = results["test_error"].sel(level=0)
    for way in ("lr_rewind", "finetune"):
        np.testing.assert_array_equal(
            dense.sel(retraining="rewind"), dense.sel(retraining=way)
        )
    assert np.isfinite(results["test_error"]).all()
    assert "weight rewinding better than reinit" in out


def test_batch_sizes_are_compared_at_equal_epochs(finished):
    folder, _, out = finished("batch_size")
    results = load(folder)
    assert results["batch_size"].values.tolist() == [100, 200]
    gap = batch_size.gap(results).sel(level=1)
    error = results["error"].sel(split="test", level=1).mean("branch")
    np.testing.assert_allclose(gap, error.sel(arm="reinit") - error.sel(arm="ticket"))
    assert "LII falls from batch 100 to 200" in out


# --- alignment and curves -------------------------------------------------------------


def test_an_aligned_copy_is_the_network_itself(finished):
    results = load(finished("alignment").folder)
    lii = alignment.instabilities(results)
    copy = dict(comparison="renumbered copy, aligned")
    np.testing.assert_array_equal(results["largest_difference"].sel(copy), 0)
    assert np.abs(lii.sel(copy)).max() < 1e-6
    assert results["largest_difference"].sel(comparison="renumbered copy").min() > 0


def test_curves_are_trained_and_drawn(finished):
    folder, _, out = finished("curves")
    results = load(folder)
    ends = results["error"].isel(alpha=[0, -1])
    for path in ("bezier", "polygon"):  # a curve ends where the line does
        np.testing.assert_array_equal(ends.sel(path="line"), ends.sel(path=path))
    assert results["plane_error"].shape == (2, 2, 2)
    for name in ("curves", "plane_bezier", "plane_polygon"):
        assert (folder / "figures" / f"{name}.png").exists()
    assert "barrier lower than the line's" in out


def test_what_is_varied_of_a_ticket_is_compared_with_the_ticket_itself(finished):
    folder, flags, out = finished("deconstruct")
    results = load(folder)
    shapes = {name: x.shape for name, x in results.data_vars.items()}
    assert shapes["criterion_error"] == (2, 1, 3)
    assert results["start"].values.tolist() == ["ticket", "constant", "reinit_signed"]
    assert shapes["untrained_error"] == (13, 2, 2, 3)
    ticket = results["start_error"].sel(start="ticket")
    for family, name in (("criterion", "large_final"), ("pruned", "zero")):
        at = results[f"{family}_error"].sel({family: name})
        np.testing.assert_array_equal(at, ticket)
    # A fifth of the first layer's 160 weights goes, a tenth of the head's 40.
    np.testing.assert_allclose(results["density"], (128 + 36) / 200)
    for name in ("criterion", "start", "pruned", "untrained_init"):
        assert (folder / "figures" / f"{name}.png").exists()
    assert "ticket better than constant: " in out
    before = (folder / "results.nc").stat().st_mtime_ns
    succeed(ALL["deconstruct"], flags, "--out", folder)
    assert (folder / "results.nc").stat().st_mtime_ns == before


def test_masks_of_criteria_have_their_counts_and_are_nested():
    cfg = deconstruct.Config(model="mlp-4-4", subset=200, validation=0)
    setup = deconstruct.prepare(cfg)
    inits = [setup.task.init(jax.random.key(i))[0] for i in range(4)]
    before, after = (
        lj.types.Network(lj.trees.stack(inits[i : i + 2]), {}) for i in (0, 2)
    )
    for criterion in deconstruct.UNTRAINED:
        dense = deconstruct.Dense(setup, [0, 1], before, after)
        found = deconstruct.cut(dense, criterion, (1, 3))
        for level, masks in zip((1, 3), found):
            expected = deconstruct.counts(cfg, setup.task, level)[1:]
            for row in range(2):
                kept = [int(masks[n]["kernel"][row].sum()) for n in masks]
                assert kept == expected.tolist(), criterion
        outer, inner = found
        assert all((outer[n]["kernel"] | ~inner[n]["kernel"]).all() for n in outer), (
            criterion
        )
        size = np.abs(np.asarray(after.params["dense_0"]["kernel"]))
        if criterion == "large_final":
            m = inner["dense_0"]["kernel"]
            assert all(size[r][m[r]].min() > size[r][~m[r]].max() for r in (0, 1))


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--fraction 0.6 --levels 4",
            "levels: level 4 would leave the layer 'dense_1/kernel' without",
        ),
        ("--untrained-levels 0", "untrained_levels=0; it must be 1 or more"),
        ("--levels 2 2", "levels=(2, 2); there must be some, all different"),
        ("--criteria random", "criteria=('random',); 'large_final' must be among them"),
        ("--rates tail 0.1", "rates: .*tail"),
    ],
)
def test_levels_and_criteria_that_cannot_be(flags, message, tmp_path):
    out = ("--out", tmp_path / "run")
    status, _, err = run(
        ALL["deconstruct"], "--model mlp-4-4 --subset 200", flags, *out
    )
    assert status == 2 and re.search(message, err) or message in err, err
    assert not (tmp_path / "run").exists()


def test_unknown_actions_are_refused_by_name():
    cfg = deconstruct.Config(model="mlp-4", subset=200)
    for field, must in (("starts", "reinit, "), ("pruned", "freeze, ")):
        with pytest.raises(
            ValueError, match=f"{field}='melt'; it must be one of {must}"
        ):
            deconstruct.prepare(dataclasses.replace(cfg, **{field: ("melt",)}))
    with pytest.raises(ValueError, match="criteria='largest'; it must be one of large"):
        deconstruct.prepare(dataclasses.replace(cfg, criteria=("largest",)))


def test_checks_of_pruning_at_init_keep_what_each_layer_has(finished):
    folder, _, out = finished("at_init")
    results = load(folder)
    assert results["method"].values.tolist() == ["snip", at_init.AFTER, "random"]
    layers = results["layer_density"].transpose("check", ...)
    kept = layers.sel({"method": ["snip", at_init.AFTER]})
    for check in ("shuffled", "reinit"):
        np.testing.assert_array_equal(kept.sel(check=check), kept.sel(check="original"))
    assert (kept.sel({"method": "snip", "check": "inverted"}) != kept[0, 0]).any()
    # Exact counts, and nothing where nothing is trained.
    trained = np.isfinite(results["alive"])
    checks = results["check"].values.tolist()
    for method, number in (("snip", 4), (at_init.AFTER, 3), ("random", 1)):
        for i, check in enumerate(checks):
            at = {"method": method, "check": check}
            assert trained.sel(at).all() == trained.sel(at).any() == (i < number)
    assert set(results["alive"].values[trained.values]) == {(40 * 4 + 4 * 10) // 2}
    for name in ("methods", "snip", "magnitude_after_training", "layers_snip"):
        assert (folder / "figures" / f"{name}.png").exists()
    assert "snip: shuffled does not hurt" in out


def test_an_early_bird_is_the_ticket_of_its_epoch(finished):
    folder, _, out = finished("early_bird")
    results = load(folder)
    draws, found = results["draw"].values, results["early_epoch"]
    assert set(found.values.ravel()) <= set(draws)  # so that there is a twin
    for replica in results["replica"].values:
        own = results.sel(replica=replica)
        for name in ("test_error", "test_loss", "alive"):
            twin = own[name].sel(draw=own["early_epoch"].item())
            np.testing.assert_array_equal(own[f"early_{name}"], twin)
    total = int(results["prunable"])
    assert set(results["alive"].values.ravel()) == {round(0.3 * total)}
    apart = results["distance"].values
    np.testing.assert_array_equal(apart, apart.swapaxes(-1, -2))
    assert apart.max() > 0 and not np.diagonal(apart, axis1=-2, axis2=-1).any()
    assert "early bird as good as the last" in out


@pytest.mark.parametrize(
    "module", [alignment, at_init, curves, deconstruct, early_bird, gale, liu]
)
def test_every_preset_makes_its_task(module, fake_data):
    for preset in module.PRESETS.values():
        module.prepare(preset.config)
