"""The conditions of Ma et al. as an experiment: what it trains, concludes and shows."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from experiments import ma as experiment
from experiments import recipes
from experiments.experiment import Outcome
from lottery_jax import imp
from lottery_jax.execution import Where

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

RATES = (0.01, 0.1)
NOISE = np.array([0.0, 0.001, 0.002])


def results_of(ticket, small, reinit, dense=(0.2, 0.1), density=(1.0, 0.4, 0.05)):
    """Results as the experiment leaves them: errors by rate, the same at both levels."""
    error = np.empty((2, 2, 3, 3))
    error[:, 0, :, 1:] = np.array(ticket)[:, None, None] + NOISE[:, None]
    error[:, 1] = np.array(small)[:, None, None] + NOISE[:, None]
    error[:, 0, :, 0] = np.array(dense)[:, None] + NOISE
    again = np.zeros((2, 2, 3, 2)) + np.array(reinit)[:, None, None]
    again += NOISE[:, None]
    axes = ("learning_rate", "arm", "replica", "level")
    more = ("found_rate", "learning_rate", "replica", "pruned")
    return xr.Dataset(
        {
            "test_error": (axes, error),
            "density": (axes, np.broadcast_to(density, error.shape)),
            "diverged": (axes, np.zeros(error.shape)),
            "reinit_test_error": (more, again),
            "reinit_diverged": (more, np.zeros(again.shape)),
        },
        {
            "learning_rate": list(RATES),
            "found_rate": list(RATES),
            "arm": ["ticket", "small_dense"],
            "replica": [0, 1, 2],
            "level": [0, 1, 2],
            "pruned": [1, 2],
        },
    )


CONFIG = experiment.Config(sweep_learning_rate=RATES, levels=2)


def test_a_good_ticket_at_a_bad_rate_wins_the_secondary_prize_only():
    results = results_of(ticket=(0.15, 0.1), small=(0.3, 0.25), reinit=(0.3, 0.25))
    judged = experiment.judge(results, CONFIG)
    assert len(judged) == 2 * 2 * 5
    assert [j.claim for j in judged[:5]] == list(experiment.CLAIMS.values())
    found = experiment.conditions(judged)
    answers = {at: [v.answer[0] for v in five] for at, five in found.items()}
    assert answers == {
        (0.01, 1): ["n", "y", "y", "y", "n"],
        (0.01, 2): ["y", "y", "y", "y", "n"],
        (0.1, 1): ["n", "y", "y", "y", "y"],
        (0.1, 2): ["y", "y", "y", "y", "y"],
    }
    summaries = {at: five.summary for at, five in found.items()}
    assert summaries == {
        (0.01, 1): "none",
        (0.01, 2): "secondary prize",
        (0.1, 1): "none",
        (0.1, 2): "jackpot",
    }
    outcome = Outcome(results, CONFIG, "mnist1d", judged)
    lines = experiment.conclusions(outcome)
    assert lines[:4] == [
        "jackpot: 5.0% found at 0.1",
        "secondary prize: 5.0% found at 0.01",
        "none: 40.0% found at 0.01, 40.0% found at 0.1",
        "undecided: nowhere",
    ]
    # Of four tickets: a rate of its own once, every rate twice.
    assert lines[5].startswith("Dense is best at 0.1, an end of the rates")
    counted = {line.split(":")[0]: line for line in lines[6:]}
    assert "yes at 4 of 4 places (4 comparisons" in counted["matches dense, own rate"]
    assert "no at 2 (8 comparisons" in counted["matches dense, best rate"]
    assert counted["nontrivial sparsity"].endswith("no at 2 (no interval)")


def test_the_best_rate_of_a_control_is_the_one_that_counts():
    # At 0.1 the masks do as well with other weights, and small networks do better.
    results = results_of(ticket=(0.2, 0.2), small=(0.3, 0.15), reinit=(0.3, 0.3))
    results["reinit_test_error"][0, 1] = 0.2 + NOISE[:, None]
    found = experiment.conditions(experiment.judge(results, CONFIG))
    assert found[0.01, 2].beats_small_dense.answer == "no"
    assert found[0.01, 2].beats_reinit.answer == "no"
    assert found[0.1, 2].beats_reinit.answer == "yes"
    assert found[0.01, 2].matches_same_lr.answer == "yes"
    assert found[0.1, 2].matches_same_lr.answer == "no"


def test_what_diverged_is_no_control():
    results = results_of(ticket=(0.2, 0.1), small=(0.3, 0.25), reinit=(0.3, 0.25))
    results["reinit_diverged"][1, 0] = 1
    found = experiment.conditions(experiment.judge(results, CONFIG))
    assert "diverged at lr 0.01" in found[0.1, 2].beats_reinit.reason
    assert found[0.1, 2].beats_reinit.answer == "undecided"  # one rate is left
    results["diverged"][0, 0, :, 0] = 1
    outcome = Outcome(results, CONFIG, "mnist1d", experiment.judge(results, CONFIG))
    numbers, _ = experiment.tables(outcome)
    assert [row[-1] for row in numbers.rows] == ["diverged"] * 2 + [
        "89.9 [89.8, 90.0]"
    ] * 2


def test_table_and_figures_have_every_ticket():
    results = results_of(ticket=(0.15, 0.1), small=(0.3, 0.25), reinit=(0.3, 0.25))
    outcome = Outcome(results, CONFIG, "mnist1d", experiment.judge(results, CONFIG))
    numbers, answers = experiment.tables(outcome)
    assert [row[:2] for row in numbers.rows] == [
        [rate, density] for rate in ("0.01", "0.1") for density in ("40.0", "5.0")
    ]
    assert numbers.rows[0][2:] == [
        "84.9 [84.8, 85.0]",
        "74.9 [74.8, 75.0] at 0.1",
        "74.9 [74.8, 75.0] at 0.1",
        "89.9 [89.8, 90.0] at 0.1",
        "79.9 [79.8, 80.0]",
    ]
    assert answers.rows[3][2:] == ["yes"] * 5 + ["jackpot"]
    drawn = {
        name: (figure, judged) for name, figure, judged in experiment.figures(outcome)
    }
    assert list(drawn) == ["accuracy", "conditions"]
    assert all(judged == outcome.judged for _, judged in drawn.values())
    one, two = drawn["accuracy"][0].axes
    ticket = {c.get_label(): c.lines[0].get_ydata() for c in two.containers}["ticket"]
    np.testing.assert_allclose(ticket, 100 * (0.9 - 0.001))
    levels = [
        line.get_ydata()[0] for line in one.lines if line.get_label()[:5] == "dense"
    ]
    np.testing.assert_allclose(levels, [79.9, 89.9])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    cfg = experiment.EXPERIMENT.parse(
        ["mnist1d", *experiment.EXPERIMENT.tiny.split(), "--levels", "2"]
    ).config
    where = Where(folder=tmp_path_factory.mktemp("ma"))
    results = experiment.one(experiment.prepare(cfg), [0, 1], where)
    assert where.store is not None and (where.store / "study" / "tickets").is_dir()
    return results, cfg


@pytest.mark.slow
def test_controls_are_those_of_a_study_at_one_rate(tiny):
    results, cfg = tiny
    rate = cfg.sweep_learning_rate[1]
    task = recipes.make_task(cfg)
    plan = dataclasses.replace(
        experiment.prepare(cfg).plan, arms=("ticket", "reinit", "small_dense")
    )
    tx = recipes.make_optimizer(
        recipes.at_setting(cfg, {"learning_rate": rate}), task.steps_per_epoch
    )
    study = imp.run(task, tx, plan, levels=2, replicas=cfg.replicas)
    assert results.sizes["found_rate"] == results.sizes["pruned"] == 2
    expected = (
        study.dataset().isel(chain=0)["test_loss"].transpose(..., "replica", "level")
    )
    own = results.sel(learning_rate=rate)
    for arm in ("ticket", "small_dense"):
        np.testing.assert_allclose(
            own["test_loss"].sel(arm=arm).transpose("replica", "level"),
            expected.sel(arm=arm),
            rtol=1e-6,
        )
    reinit = own["reinit_test_loss"].sel(found_rate=rate)
    np.testing.assert_allclose(
        reinit.transpose("replica", "pruned"),
        expected.sel(arm="reinit", level=[1, 2]),
        rtol=1e-6,
    )


def test_controls_alone_make_no_tickets():
    plan = imp.Plan(steps=1, arms=("reinit",))
    assert imp.check(plan, tickets=False).arms == ("reinit",)
    with pytest.raises(ValueError, match="'ticket' must be among them"):
        imp.check(plan)
    with pytest.raises(ValueError, match="there must be one at least"):
        imp.check(dataclasses.replace(plan, arms=()), tickets=False)
    study = imp.Study(*[None] * 5, plan, (0,), (1,), {})
    with pytest.raises(ValueError, match="study.plan.arms=.*'ticket'"):
        imp.tickets_of(study)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"sweep_learning_rate": ()}, "sweep_learning_rate"),
        ({"sweep_learning_rate": (0.1, 0.1)}, "sweep_learning_rate"),
        (
            {"sweep_learning_rate": (0.1, -1.0)},
            "sweep_learning_rate=-1.0; it must be 0.0 or more",
        ),
        ({"learning_rate": 0.3}, "learning_rate=0.3; it must be one of sweep_"),
        (
            {"sweep_momentum": (0.0, 0.9)},
            r"sweep_momentum=\(0.0, 0.9\); it must be empty",
        ),
        ({"levels": 0}, "levels=0"),
        ({"levels": 40}, "levels=40"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"best_tolerance": -0.1}, "best_tolerance=-0.1"),
        ({"max_density": 1.5}, "max_density=1.5"),
        ({"rewind_step": "2it"}, "rewind_step=2"),
    ],
)
def test_fields_that_make_no_sense_are_named(change, match):
    cfg = experiment.Config(model="mlp-4", subset=200, steps="2it", **change)
    with pytest.raises(ValueError, match=match):
        experiment.prepare(cfg)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd", "schedule": "step", "drops": ("3it",), "warmup": "2it"},
        {"optimizer": "adam", "schedule": "cosine", "weight_decay": 0.1},
        {"optimizer": "adam", "momentum": 0.0},
    ],
)
def test_an_optimizer_at_a_traced_rate_is_the_one_at_this_rate(fields):
    cfg = recipes.Recipe(steps="6it", **fields)
    swept = dataclasses.replace(cfg, sweep_learning_rate=RATES)
    make = recipes.make_optimizer(swept, 10, sweeps=True)
    fixed = recipes.make_optimizer(dataclasses.replace(cfg, learning_rate=0.1), 10)

    def moved(tx):
        params = {"w": jax.numpy.arange(3.0)}
        state = tx.init(params)
        for _ in range(5):
            updates, state = tx.update({"w": params["w"] - 5}, state, params)
            params = optax.apply_updates(params, updates)
        return params["w"]

    traced = jax.jit(lambda rate: moved(make(learning_rate=rate)))(0.1)
    np.testing.assert_allclose(traced, jax.jit(lambda: moved(fixed))(), rtol=1e-6)
