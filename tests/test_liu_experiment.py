"""Where tickets fail, and the cures, as an experiment: what it trains, says and shows."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments import liu as experiment
from experiments import recipes
from experiments.experiment import Outcome
from experiments.liu import compared, config, trained
from lottery_jax import imp
from lottery_jax.execution import Where
from lottery_jax.verdicts import ERROR

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

xr = pytest.importorskip("xarray")

CONFIG = experiment.Config(
    sweep_learning_rate=(0.01, 0.1), sweep_warmup=("0it", "30it"), levels=2
)
CURES = ["none", "warm-up 30it", "k = 100it", "batch 400"]
NOISE = np.array([0.0, 0.001, 0.002])


def results_of(gaps, dense=(0.3, 0.2)):
    """Results as the experiment leaves them: gaps by cure and rate, at two levels alike.

    Tickets are as good as the dense network of their rate; replicas differ, gaps hardly.
    """
    error = np.full((4, 2, 2, 3, 3), np.nan)
    error[:, :, 0] = np.array(dense)[:, None, None] + NOISE[:, None]
    error[:, :, 1, :, 1:] = error[:, :, 0, :, 1:] + np.array(gaps)[..., None, None]
    error[:, :, 1, 0, 1:] += 1e-4
    density = np.broadcast_to([1.0, 0.4, 0.16], (4, 2, 3, 3))
    return xr.Dataset(
        {
            "test_error": (trained.AXES, error),
            "diverged": (trained.AXES, np.zeros(error.shape)),
            "density": (("cure", "learning_rate", "replica", "level"), density),
            "rewind_step": ("cure", [0, 0, 100, 0]),
        },
        {
            "cure": CURES,
            "learning_rate": [0.01, 0.1],
            "arm": ["ticket", "reinit"],
            "replica": [0, 1, 2],
            "level": [0, 1, 2],
        },
    )


PUBLISHED = [(0.05, 0.0), (0.05, 0.04), (0.05, 0.05), (0.06, 0.03)]
"""Gaps at the low and at the high rate as the literature has them, cure by cure."""


def answers(judged):
    """Verdicts by claim, place by place."""
    found = {}
    for one in judged:
        found.setdefault(one.claim, []).append(one.verdict.answer)
    return found


def test_the_gap_that_closes_at_the_high_rate_comes_back_by_each_cure():
    found = answers(experiment.EXPERIMENT.judge(results_of(PUBLISHED), CONFIG))
    # Cure after cure, the low rate first, both densities.
    better = found["ticket better than reinit"]
    assert better == ["yes", "yes", "undecided", "undecided", *["yes"] * 12]
    assert found["gap smaller at 0.1 than at 0.01"] == ["yes", "yes"]
    for cure in CURES[1:]:
        assert found[f"gap comes back at 0.1: {cure}"] == ["yes", "yes"]
    # The gap at the low rate is at the price of dense accuracy.
    assert found["dense better at 0.1 than at 0.01"] == ["yes"]
    matches = found["ticket matches dense at its best"]
    assert matches == ["no", "no", "yes", "yes"] * 4


def test_gaps_that_stay_where_they_are_are_no_cure():
    gaps = [(0.05, 0.05), (0.05, 0.05), (0.05, 0.03), (0.05, 0.05)]
    found = answers(experiment.EXPERIMENT.judge(results_of(gaps), CONFIG))
    assert found["gap comes back at 0.1: k = 100it"] == ["no", "no"]
    assert found["gap smaller at 0.1 than at 0.01"] == ["no", "no"]
    results = results_of(gaps)
    results["test_error"][2, 1, 1] += np.array([0.1, -0.1, 0.0])[:, None]
    found = answers(experiment.EXPERIMENT.judge(results, CONFIG))
    assert found["gap comes back at 0.1: k = 100it"] == ["undecided", "undecided"]


def test_a_gap_is_that_of_each_replica_and_none_where_one_diverged():
    results = results_of(PUBLISHED)
    gaps = compared.gap(results, ERROR)
    expected = (
        results["test_error"].values[:, :, 1] - results["test_error"].values[:, :, 0]
    )
    np.testing.assert_array_equal(gaps.values, expected[..., 1:])
    higher = dataclasses.replace(ERROR, better="higher")
    np.testing.assert_array_equal(compared.gap(results, higher), -gaps)
    results["diverged"][0, 1, 1, 2, 1] = 1
    gone = np.isnan(compared.gap(results, ERROR))
    assert gone.sum() == 1 and gone[0, 1, 2, 0]
    verdict = next(
        one.verdict
        for one in experiment.EXPERIMENT.judge(results, CONFIG)
        if one.where.get("learning_rate") == 0.1 and one.where["level"] == 1
    )
    assert verdict.excluded == ("replica 2",) and verdict.n == 2


def test_dense_at_its_best_is_the_best_of_all_settings():
    results = results_of(PUBLISHED)
    results["test_error"][3, 0, 0, :, 0] = 0.15  # large batches at the low rate
    results["test_error"][2, 0, 0, :, 0] = 0.1  # where levels start from is no setting
    chosen = compared.best_dense(results, ERROR)
    assert (chosen["cure"].item(), float(chosen["learning_rate"])) == (
        "batch 400",
        0.01,
    )
    np.testing.assert_array_equal(chosen, [0.15] * 3)
    found = answers(experiment.EXPERIMENT.judge(results, CONFIG))
    assert found["ticket matches dense at its best"] == ["no"] * 16


def test_the_interval_of_a_gap_is_students():
    from scipy import stats

    values = np.array([[0.01, np.nan], [0.03, np.nan], [0.08, 0.5]])
    low, mean, high = compared.interval(values, ERROR)
    own = stats.t.interval(
        0.95, 2, values[:, 0].mean(), values[:, 0].std(ddof=1) / np.sqrt(3)
    )
    np.testing.assert_allclose([low[0], high[0]], own)
    np.testing.assert_allclose(mean[0], 0.04)
    assert np.isnan([low[1], mean[1], high[1]]).all()


def test_table_and_figure_have_every_setting():
    results = results_of(PUBLISHED)
    judged = experiment.EXPERIMENT.judge(results, CONFIG)
    outcome = Outcome(results, CONFIG, "mnist1d", judged)
    (table,) = experiment.EXPERIMENT.tables(outcome)
    places = itertools.product(CURES, ("0.01", "0.1"), ("40.0", "16.0"))
    assert [tuple(row[:3]) for row in table.rows] == list(places)
    assert table.rows[2][3:6] == ["79.9 [79.8, 80.0]"] * 3
    assert table.rows[0][6:] == ["+5.0 [+5.0, +5.0]", "yes"]
    ((name, figure, below),) = experiment.EXPERIMENT.figures(outcome)
    assert name == "gap" and below == judged
    grid = np.array(figure.axes).reshape(3, 4)
    assert [axes.get_title() for axes in grid[0]] == [f"cure: {c}" for c in CURES]
    for column, (low, high) in zip(grid.T, PUBLISHED):
        lines = {c.get_label(): c.lines[0].get_ydata() for c in column[0].containers}
        for label, expected in (("gap at 0.01", low), ("gap at 0.1", high)):
            np.testing.assert_allclose(
                lines[label], 100 * expected + 0.01 / 3, atol=1e-9
            )
        for axes, dense in zip(column[1:], (69.9, 79.9)):
            shown = {x.get_label(): x.get_ydata()[0] for x in axes.lines}
            np.testing.assert_allclose(shown["dense, at the same setting"], dense)
            # In every panel.
            np.testing.assert_allclose(shown["dense, at its best setting"], 79.9)
    for row in grid:
        assert len({axes.get_ylim() for axes in row}) == 1
        low, high = row[0].get_ylim()
        bars = [c.lines[2][0].get_segments() for axes in row for c in axes.containers]
        ends = np.concatenate(bars, axis=None)[1::2]
        assert low <= ends.min() and ends.max() <= high
    lines = experiment.EXPERIMENT.conclusions(outcome)
    assert lines[0].startswith(
        "40.0%: gap smaller at 0.1 than at 0.01: yes; -5.00 points"
    )
    assert "Dense is best at 0.1, cure none: accuracy 79.9 [79.8, 80.0] %" in lines


# --- what is tried --------------------------------------------------------------------


def test_cures_are_tried_alone_or_in_all_combinations():
    assert [cure.name(CONFIG) for cure in config.cures(CONFIG)] == CURES
    crossed = config.cures(dataclasses.replace(CONFIG, crossed=True))
    names = [cure.name(CONFIG) for cure in crossed]
    assert len(set(names)) == 8 and set(CURES) < set(names) and names[0] == "none"
    assert names[-1] == "warm-up 30it, k = 100it, batch 400"
    none = dataclasses.replace(
        CONFIG, sweep_warmup=("0it",), rewind_steps=(), batch_sizes=()
    )
    assert [cure.name(none) for cure in config.cures(none)] == ["none"]


@pytest.mark.parametrize("equal, expected", [("epochs", 4), ("steps", 1)])
def test_a_larger_batch_has_as_many_examples_or_steps(equal, expected):
    cfg = dataclasses.replace(
        CONFIG, steps="4ep", schedule="step", drops=("3ep",), equal=equal
    )
    found = config.scaled(cfg, 400, steps_per_epoch=40)
    assert found.batch_size == 400
    assert int(found.steps[:-2]) * expected == 160
    assert int(found.drops[0][:-2]) * expected == 120
    assert int(found.rewind_steps[0][:-2]) * expected == 100
    # 30 steps of 100 are 7.5 of 400.
    assert found.sweep_warmup == ("0it", "8it" if equal == "epochs" else "30it")


def test_no_step_but_the_first_becomes_the_first():
    cfg = dataclasses.replace(CONFIG, rewind_steps=("1it",))
    assert config.scaled(cfg, 400, 40).rewind_steps == ("1it",)
    cfg = dataclasses.replace(CONFIG, sweep_warmup=("0it", "4it", "5it"))
    with pytest.raises(
        ValueError, match=r"sweep_warmup=.*with batches of 400 they are"
    ):
        config.scaled(cfg, 400, 40)


def test_each_batch_and_rewind_step_is_a_study_of_its_own():
    cfg = dataclasses.replace(TINY, crossed=False)
    found = experiment.EXPERIMENT.prepare(cfg)
    assert list(found) == [
        "batch-00100-k-0it", "batch-00100-k-2it", "batch-00200-k-0it"
    ]  # fmt: skip
    names = [setup.plan.names for setup in found.values()]
    assert names == [("none", "warm-up 2it"), ("k = 2it",), ("batch 200",)]
    plans = [setup.plan.plan for setup in found.values()]
    assert [(p.steps, p.rewind_step) for p in plans] == [(4, 0), (4, 2), (2, 0)]
    assert [s.task.steps_per_epoch for s in found.values()] == [2, 2, 1]
    swept = [recipes.sweep(s.cfg, 1) for s in found.values()]
    assert [s["warmup"] for s in swept] == [(0, 2), (0,), (0,)]
    crossed = experiment.EXPERIMENT.prepare(dataclasses.replace(cfg, crossed=True))
    assert len(crossed) == 4
    assert crossed["batch-00200-k-2it"].plan.plan.rewind_step == 1
    assert all(len(s.plan.names) == 2 for s in crossed.values())


TINY = experiment.EXPERIMENT.parse(
    ["mnist1d", *experiment.EXPERIMENT.tiny.split()]
).config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    cfg = dataclasses.replace(TINY, levels=2, batch_sizes=())
    where = Where(folder=tmp_path_factory.mktemp("liu"))
    return experiment.EXPERIMENT.one(experiment.EXPERIMENT.prepare(cfg), [0, 1], where)


def test_networks_are_those_of_a_study_at_one_setting(tiny):
    """The rewound cure, where all differs that could be mixed up: level, rate and k."""
    cfg = dataclasses.replace(TINY, levels=2)
    rate = cfg.sweep_learning_rate[1]
    task = recipes.make_task(cfg)
    tx = recipes.make_optimizer(
        recipes.at_setting(cfg, {"learning_rate": rate}), task.steps_per_epoch
    )
    plan = imp.Plan(
        steps=4,
        rewind_step=2,
        chains=(imp.Chain(densities=imp.Geometric(0.6)),),
        arms=("ticket", "reinit"),
        validate_every=4,
    )
    study = imp.run(task, tx, plan, levels=2, replicas=2).dataset().isel(chain=0)
    own = tiny.sel(cure="k = 2it", learning_rate=rate)
    axes = ("arm", "replica", "level")
    expected = study["test_loss"].transpose(*axes).values
    found = own["test_loss"].transpose(*axes).values
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1, :, 1:], expected[1, :, 1:], rtol=1e-6)
    assert np.isnan(found[1, :, 0]).all()
    density = study["density"].sel(arm="ticket").transpose("replica", "level")
    np.testing.assert_array_equal(own["density"], density)
    # All settings are different networks, but for the dense ones of a rewind step.
    dense = tiny["test_loss"].sel(arm="ticket", level=0, replica=0)
    np.testing.assert_allclose(
        dense.sel(cure="k = 2it"), dense.sel(cure="none"), rtol=1e-6
    )
    rest = dense.sel(cure=["none", "warm-up 2it"]).values
    assert len(np.unique(rest)) == rest.size


def test_results_say_what_each_cure_is(tiny):
    assert tiny["cure"].values.tolist() == ["none", "warm-up 2it", "k = 2it"]
    by_cure = {
        name: tiny[name].values.tolist()
        for name in ("batch_size", "rewind_step", "warmup", "steps")
    }
    assert by_cure == {
        "batch_size": [100, 100, 100],
        "rewind_step": [0, 0, 2],
        "warmup": [0, 2, 0],
        "steps": [4, 4, 4],
    }
    np.testing.assert_allclose(compared.densities(tiny), [0.4, 0.16], atol=2e-3)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"sweep_learning_rate": (0.1,)}, r"sweep_learning_rate=\(0.1,\)"),
        ({"sweep_learning_rate": (0.1, 0.1)}, "sweep_learning_rate"),
        ({"sweep_momentum": (0.0, 0.9)}, "sweep_momentum=.*it must be empty"),
        ({"learning_rate": 0.3}, "learning_rate=0.3; it must be one of sweep_"),
        ({"warmup": "1it"}, "warmup='1it'; it must be one of sweep_warmup"),
        ({"sweep_warmup": ("1it",)}, "sweep_warmup=.*'0it' among them"),
        ({"sweep_warmup": ("0it", "0ep")}, "sweep_warmup"),
        ({"rewind_steps": ("0it",)}, "rewind_steps=.*it must be above 0"),
        ({"rewind_steps": ("1it", "1it")}, "rewind_steps"),
        ({"rewind_steps": ("4it",)}, "rewind_step=4"),
        ({"batch_sizes": (50,)}, "batch_sizes=.*larger than batch_size=100"),
        ({"batch_sizes": (200, 200)}, "batch_sizes"),
        ({"equal": "seconds"}, "equal='seconds'"),
        ({"levels": 0}, "levels=0"),
        ({"levels": 40}, "levels=40"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"steps": "some"}, "steps: 'some' is no step"),
    ],
)
def test_fields_that_make_no_sense_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        experiment.EXPERIMENT.prepare(dataclasses.replace(TINY, **change))
