"""Experiments on tasks that are compared by something else than an error."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import toys

import lottery_jax as lj
from experiments import all as every
from experiments import curves, imp, instability, metrics, recipes
from experiments.experiment import Outcome
from lottery_jax.verdicts import ERROR, LOSS, MATTHEWS, PEARSON, PERPLEXITY

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

CFG = imp.Config(
    task="made_up",
    data="points",
    model="mlp-8",
    steps="8it",
    validate_every=4,
    levels=1,
    replicas=3,
    arms=("ticket", "random_mask"),
)


def made_up(recipe):
    """Points of four classes, whose Matthews correlation is measured."""
    task = toys.classification(lj.models.make("mlp-8", 4))

    def evaluate(params, model_state, data, key, split):
        found = task.evaluate(params, model_state, data, key, split)
        classes = task.predict(params, model_state, data, key, split)
        label = data[split]["label"]
        return found | {"matthews": lj.tasks.metrics.matthews(classes, label, 4)}

    return task._replace(evaluate=evaluate)


@pytest.fixture
def compared_by(monkeypatch):
    """`compared_by(metric)` says what networks of the made-up task are compared by."""

    def chosen(metric):
        kind = recipes.Kind(made_up, lambda recipe: "", lambda recipe: metric)
        monkeypatch.setitem(recipes.TASKS, "made_up", kind)

    return chosen


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The results of a small study of the made-up task, and its folder."""
    folder = tmp_path_factory.mktemp("study") / "run"
    with pytest.MonkeyPatch.context() as patch:
        kind = recipes.Kind(made_up, lambda recipe: "", lambda recipe: MATTHEWS)
        patch.setitem(recipes.TASKS, "made_up", kind)
        results = imp.EXPERIMENT.run(CFG, folder)
        imp.EXPERIMENT.report(results, CFG, "made-up", folder)
    return results, folder


def verdict(results, claim):
    (one,) = (j for j in imp.judge(results, CFG) if j.claim == claim)
    return one.verdict


@pytest.mark.slow
@pytest.mark.parametrize("metric", [MATTHEWS, LOSS], ids=lambda metric: metric.name)
def test_tickets_are_judged_by_the_metric_of_their_task(study, compared_by, metric):
    compared_by(metric)
    results, name = study[0], f"test_{metric.name}"
    found = verdict(results, "matching")
    at = results[name].isel(chain=0).sel(arm="ticket").astype(float)
    mean = float((at.sel(level=1) - at.sel(level=0)).mean())
    np.testing.assert_allclose(found.estimate, mean, rtol=1e-5)
    assert found.metric == metric
    higher = metric.better == "higher"
    assert found.side == (">=" if higher else "<=")
    assert found.tolerance == (-metric.tolerance if higher else metric.tolerance)
    # Whatever is better in the metric is better here.
    for shift in (-0.2, 0.2):
        moved = results.copy(deep=True)
        moved[name].loc[{"level": 1}] = moved[name].sel(level=0).values + shift
        better = (shift > 0) == higher
        assert verdict(moved, "matching").answer == ("yes" if better else "no")


def test_correlations_are_shown_in_hundredths_also_where_they_are_negative(
    study, compared_by, tmp_path
):
    compared_by(MATTHEWS)
    results, folder = study
    judged = json.loads((folder / "verdicts.json").read_text())
    assert {one["verdict"]["unit"] for one in judged if one["claim"] == "matching"} == {
        "matthews"
    }
    assert (folder / "figures" / "matthews.png").is_file()
    negative = results.copy(deep=True)
    negative["test_matthews"] = -abs(results["test_matthews"]) - 0.1
    outcome = Outcome(negative, CFG, "made-up", imp.judge(negative, CFG))
    (table,) = imp.tables(outcome)
    shown = 100 * float(negative["test_matthews"].sel(level=0, arm="ticket").mean())
    assert table.rows[0][2].startswith(f"{shown:.1f} [-")
    assert table.title.startswith("Test matthews in x 100: mean")
    for name, figure in imp.figures(outcome):
        if name == "matthews":
            (axes, *_) = figure.axes
            assert axes.get_ylim()[0] < shown < 0
            assert axes.get_ylabel().startswith("test matthews (x 100)")


def test_what_has_no_unit_is_shown_without_brackets():
    shown = metrics.quality(PERPLEXITY)
    assert (shown.label, shown.text) == ("perplexity", "perplexity")
    assert metrics.quality(ERROR).text == "accuracy in %"
    assert metrics.level(MATTHEWS).label == "matthews (x 100)"
    assert metrics.difference(MATTHEWS).label == "matthews (points)"


def test_instability_is_how_much_worse_the_path_is_than_its_ends():
    error = np.array([[0.2, 0.5, 0.4], [0.1, 0.1, 0.1]])
    axes = ("pair", "alpha")
    records = {
        "error": (axes, error),
        "matthews": (axes, 1 - error),
        "lii": (axes[:1], np.zeros(2)),
        "lii_loss": (axes[:1], np.ones(2)),
        "lii_matthews": (axes[:1], np.ones(2)),
    }
    for metric in (ERROR, MATTHEWS):
        found = instability.rising(records, metric)
        assert set(found) == {"error", "matthews", "lii", "lii_loss"}
        assert found["lii"][0] == ("pair",)
        np.testing.assert_allclose(found["lii"][1], [0.2, 0.0], atol=1e-12)


# --- weights that are given -----------------------------------------------------------


def test_only_experiments_that_begin_with_them_take_pre_trained_weights():
    starting = {one.name for one in every.EXPERIMENTS if one.starts}
    assert starting == {"imp", "instability", "bert_tickets"}
    for one in every.EXPERIMENTS:
        cfg = one.presets[one.default].config
        if not hasattr(cfg, "pretrained"):
            continue
        cfg = dataclasses.replace(cfg, pretrained="bert-tiny-mlm")
        if one.starts:
            one.check(cfg)
            continue
        with pytest.raises(ValueError, match="pretrained='bert-tiny-mlm'; .* draws"):
            one.of(cfg).check(cfg)


def test_experiments_on_errors_alone_refuse_other_metrics(compared_by):
    compared_by(MATTHEWS)
    cfg = curves.EXPERIMENT.presets[curves.EXPERIMENT.default].config
    curves.EXPERIMENT.check(cfg)
    cfg = dataclasses.replace(cfg, task="made_up")
    with pytest.raises(
        ValueError, match=r"task='made_up' \(compared by matthews\); .*"
    ):
        curves.EXPERIMENT.check(cfg)
    compared_by(ERROR)
    curves.EXPERIMENT.check(cfg)


def test_a_metric_that_a_task_does_not_measure_is_refused_by_name(compared_by):
    compared_by(PEARSON)
    with pytest.raises(ValueError, match=r"\(compared by pearson\); .*'matthews'"):
        imp.prepare(CFG)


def test_an_analysis_begins_with_the_weights_of_its_recipe(monkeypatch):
    compared = recipes.Kind(made_up, lambda recipe: "", lambda recipe: MATTHEWS)
    monkeypatch.setitem(recipes.TASKS, "made_up", compared)
    asked = []

    def start(recipe, task, ids):
        asked.append(list(ids))
        return lj.Network(
            {
                name: {part: jnp.full(x.shape, 0.5) for part, x in layer.items()}
                for name, layer in task.shapes[0].items()
            },
            task.shapes[1],
        )

    monkeypatch.setattr(recipes, "start", start)
    seen = []
    run = lj.connectivity.run

    def watched(*args, **options):
        found = run(*args, **options)
        seen.append(found.trunk.at(0).params)
        return found

    monkeypatch.setattr(lj.connectivity, "run", watched)
    cfg = instability.Config(
        task="made_up", steps="2it", rewind_steps=("0it",), branches=2, alphas=3
    )
    results = instability.one(instability.prepare(cfg), [4, 7], lj.Where())
    assert asked == [[4, 7]]
    for leaf in lj.trees.by_path(seen[0]).values():
        assert (leaf == 0.5).all() and leaf.shape[0] == 2
    assert results["lii"].dims == results["matthews"].dims[:-1]
    value = results["matthews"].values
    worst = value[..., [0, -1]].mean(-1) - value.min(-1)
    np.testing.assert_allclose(results["lii"], worst, atol=1e-6)
