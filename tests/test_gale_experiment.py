"""The comparison of Gale et al.: what is trained, from what, for how long, and said of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lottery_jax as lj
from experiments import gale, recipes
from experiments.experiment import Outcome
from experiments.gale import compared, config, trained
from lottery_jax import imp, keys, masks, training, trees
from lottery_jax.execution import Where
from lottery_jax.types import Network

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

xr = pytest.importorskip("xarray")

NOISE = np.array([0.0, 0.001, 0.002])
RATES = (1e-3, 5e-3, 2e-2)
CONFIG = config.Config(sweep_learning_rate=RATES, levels=(1, 2))
ERROR = {
    "gradual": 0.10,
    "rigl": 0.12,
    "set": 0.14,
    "static": 0.20,
    "gradual_longer": 0.095,
    "lottery": 0.13,
    "scratch": 0.13,
    "lottery_longer": 0.11,
    "scratch_longer": 0.08,
    "imp": 0.09,
    "imp_same_steps": 0.15,
}


def results_of(error=ERROR, rates=(0.3, 0.2, 0.1), validated=(0.3, 0.1, 0.2)):
    """Results as the experiment leaves them: errors of methods, the same at both levels."""
    values = np.array(list(error.values()))[:, None, None] + np.zeros((1, 2, 1)) + NOISE
    axes, number = ("method", "level", "replica"), len(error)
    return xr.Dataset(
        {
            "test_error": (axes, values),
            "diverged": (axes, np.zeros(values.shape)),
            "steps": (axes[:2], np.full((number, 2), 1200)),
            "density": (("level",), [0.5, 0.25]),
            "dense_test_error": (
                ("learning_rate", "replica"),
                np.array(rates)[:, None] + NOISE,
            ),
            "dense_validation_error": (
                ("learning_rate", "replica"),
                np.array(validated)[:, None] + NOISE,
            ),
            "dense_diverged": (("learning_rate", "replica"), np.zeros((3, 3))),
        },
        {
            "method": list(error),
            "level": [1, 2],
            "replica": [0, 1, 2],
            "learning_rate": list(RATES),
        },
    )


def answers(results):
    judged = compared.judge(results, CONFIG)
    return {
        (one.claim, one.where["density"]): one.verdict.answer for one in judged
    }, judged


# --- what is said of it ---------------------------------------------------------------


def test_each_claim_is_judged_at_each_density_in_its_own_direction():
    found, judged = answers(results_of())
    assert len(judged) == len(compared.CLAIMS) * 2
    expected = {
        "lottery worse than gradual": "yes",
        "scratch worse than gradual": "yes",
        "lottery no better than scratch": "yes",
        "lottery better than scratch": "no",
        "longer lottery worse than gradual": "yes",
        "longer scratch worse than gradual": "no",
        "longer lottery no better than longer scratch": "yes",
        "longer lottery better than longer scratch": "no",
        "lottery worse than longer gradual": "yes",
        "scratch worse than longer gradual": "yes",
        "IMP better than gradual": "yes",
        "IMP of as many steps better than gradual": "no",
        "RigL better than SET": "yes",
        "RigL better than static": "yes",
        "SET better than static": "yes",
        "RigL worse than gradual": "yes",
        "gradual matches dense": "yes",
        "gradual matches dense, best rate": "yes",
    }
    assert [claim.text for claim in compared.CLAIMS] == list(expected)
    for density in (0.5, 0.25):
        assert {c: found[c, density] for c in expected} == expected


def test_a_lottery_that_is_better_than_scratch_is_said_to_be():
    found, _ = answers(results_of(ERROR | {"lottery": 0.12}))
    assert found["lottery no better than scratch", 0.5] == "no"
    assert found["lottery better than scratch", 0.5] == "yes"


def test_the_best_rate_of_dense_is_chosen_on_validation_and_shown():
    results = results_of(rates=(0.3, 0.2, 0.05))
    metric = recipes.metric(CONFIG)
    assert compared.best_rate(results, metric) == 5e-3
    results["dense_validation_error"][2] = 0.01
    assert compared.best_rate(results, metric) == 2e-2
    found, judged = answers(results)
    assert found["gradual matches dense", 0.5] == "yes"
    assert found["gradual matches dense, best rate", 0.5] == "no"
    lines = compared.conclusions(Outcome(results, CONFIG, "mnist1d", judged))
    assert any("best on validation at learning rate 0.02; all else" in x for x in lines)
    assert any("0.02 is an end of the rates that were tried" in x for x in lines)
    results["dense_diverged"][2, 1] = (
        1  # a rate that is too high for some is not the best
    )
    assert compared.best_rate(results, metric) == 5e-3


def test_what_diverged_is_left_out_by_name():
    results = results_of()
    results["diverged"].loc[{"method": "lottery", "replica": 1}] = 1
    _, judged = answers(results)
    lottery = [one.verdict for one in judged if one.claim.startswith("lottery")]
    assert {verdict.excluded for verdict in lottery} == {("replica 1",)}
    lines = compared.conclusions(Outcome(results, CONFIG, "mnist1d", judged))
    assert "Diverged, and left out of every average: 2 networks of lottery" in lines


def test_the_table_has_every_method_and_what_it_costs():
    results = results_of()
    outcome = Outcome(results, CONFIG, "mnist1d", compared.judge(results, CONFIG))
    numbers, spent = compared.tables(outcome)
    named = [row[0] for row in numbers.rows]
    assert named[: len(ERROR)] == list(compared.labels(results, CONFIG).values())
    assert "lottery 2x" in named and "IMP in as many steps" in named
    assert numbers.rows[0] == ["gradual", *["89.9 [89.8, 90.0]"] * 2]
    assert named[len(ERROR) :] == ["dense, 0.005", "dense at its best rate, 0.005"]
    assert spent.rows[0] == ["gradual", "1,200", "1,200"]


def test_the_figure_has_a_line_for_each_method_of_its_own_colour():
    results = results_of(rates=(0.3, 0.2, 0.15))
    results["dense_validation_error"][2] = 0.01
    outcome = Outcome(results, CONFIG, "mnist1d", compared.judge(results, CONFIG))
    ((name, figure, judged),) = compared.figures(outcome)
    assert name == "accuracy" and judged == outcome.judged
    drawn = {}
    for axes in figure.axes:
        for own in axes.containers:
            drawn.setdefault(own.get_label(), set()).add(own.lines[0].get_color())
    assert set(drawn) == {*compared.labels(results, CONFIG).values()}
    assert all(len(colours) == 1 for colours in drawn.values())
    assert len({*map(tuple, drawn.values())}) == len(drawn)
    level = {
        line.get_label(): line.get_ydata()[0]
        for line in figure.axes[0].lines
        if line.get_label().startswith("dense")
    }
    assert level == pytest.approx(
        {"dense at 0.005": 79.9, "dense at its best rate, 0.02": 84.9}
    )


# --- what is trained ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    cfg = gale.EXPERIMENT.parse(gale.EXPERIMENT.tiny.split()).config
    setup = gale.prepare(cfg)
    where = Where(folder=tmp_path_factory.mktemp("gale"))
    return setup, trained.one(setup, [0, 1], where), where


def test_every_method_keeps_as_many_weights(tiny):
    setup, results, _ = tiny
    task = setup.task
    total = masks.total(task.shapes[0], masks.of_task(task))
    assert results["method"].values.tolist() == list(ERROR)
    kept = [int(total - round(total / 2))]
    np.testing.assert_array_equal(
        results["alive"], np.broadcast_to(np.array(kept)[:, None], (len(ERROR), 1, 2))
    )
    np.testing.assert_allclose(results["density"], [kept[0] / total])
    assert not results["diverged"].any() and not results["dense_diverged"].any()


def test_the_steps_of_each_method_are_those_of_its_trainings(tiny):
    setup, results, _ = tiny
    spent = dict(zip(results["method"].values.tolist(), results["steps"].values[:, 0]))
    once = setup.plan.steps
    assert spent == {
        **dict.fromkeys(("gradual", "rigl", "set", "static"), once),
        **dict.fromkeys(("lottery", "scratch", "gradual_longer"), 2 * once),
        **dict.fromkeys(("lottery_longer", "scratch_longer"), 3 * once),
        "imp": 2 * once,
        "imp_same_steps": once,
    }
    # What does not divide is not trained, and is less than a step for each training.
    for steps in range(7, 30):
        for level in range(7):
            rest = steps - config.shared(steps, level) * (level + 1)
            assert 0 <= rest <= level


def test_dense_at_the_recipes_rate_and_level_0_are_one_network(tiny):
    setup, results, _ = tiny
    cfg, task, _, plan = setup
    tx = trained.optimizer(setup, plan.steps)
    study = imp.run(task, tx, plan, levels=0, replicas=2)
    own = results["dense_test_loss"].sel(learning_rate=cfg.learning_rate)
    loss = study.records["test_loss"][1][0, 0, :, 0]
    np.testing.assert_allclose(own, loss, rtol=1e-6)
    # And what all methods start from is, to the bit, what a study starts from.
    whole = trained.initial(setup, tx, [0, 1], Where())
    rewound = jax.tree.map(lambda x: x[0], study.rewound)
    jax.tree.map(np.testing.assert_array_equal, whole, rewound)


def test_a_lottery_starts_where_gradual_pruning_did_and_scratch_from_a_fresh_draw(tiny):
    setup, results, where = tiny
    cfg, task, _, plan = setup
    tx = trained.optimizer(setup, plan.steps)
    (density,) = config.densities(cfg, task)
    rule = config.rules(cfg, task, density)["gradual"]
    done = training.train_replicas(
        task,
        tx,
        plan.steps,
        2,
        seed=cfg.seed,
        validate_every=cfg.validate_every,
        keep=(0,),
        rule=rule,
    )
    mask, own = done.state.mask, keys.of_replicas(cfg.seed, [0, 1])
    assert done.kept is not None
    draws = {
        "lottery": jax.tree.map(lambda x: x[:, 0], done.kept.params),
        "scratch": training.fresh(task, tx, own.fresh_init, own.noise).state.params,
    }
    original = trained.initial(setup, tx, [0, 1], Where()).params
    jax.tree.map(np.testing.assert_array_equal, draws["lottery"], original)
    noise = {"lottery": own.noise, "scratch": own.fresh_noise}
    for word, factor in (("", 1), ("_longer", cfg.longer)):
        steps = factor * plan.steps
        for method, params in draws.items():
            params = masks.apply(mask, params)
            state = training.start_many(tx, Network(params, {}), (), mask)
            runs = training.Runs(
                state, noise[method], np.zeros(2, int), np.zeros(2, int)
            )
            by = tx if factor == 1 else trained.optimizer(setup, steps)
            again = training.train(task, by, runs, steps, every=cfg.validate_every)
            loss = training.evaluate(task, again.networks, "test")["loss"]
            at = {"method": method + word, "level": 1}
            np.testing.assert_allclose(
                results["test_loss"].sel(at), loss, rtol=1e-5, err_msg=method + word
            )


def test_a_finished_run_trains_nothing_again(tiny, monkeypatch):
    setup, results, where = tiny
    monkeypatch.setattr(
        training.segment.Work, "segment", lambda *_: pytest.fail("it trains")
    )
    again = trained.one(setup, [0, 1], where)
    for name in results.data_vars:
        np.testing.assert_array_equal(again[name], results[name], err_msg=str(name))


def test_the_learning_rate_is_stretched_with_the_steps():
    cfg = config.Config(
        schedule="step", drops=("2ep", "900it"), warmup="60it", steps="12ep"
    )
    longer = config.at_length(cfg, 100, 2400)
    assert longer.steps == "2400it" and longer.warmup == "120it"
    assert longer.drops == ("400it", "1800it")
    assert longer.sweep_learning_rate == () and longer.learning_rate == 5e-3
    assert config.at_length(cfg, 100, 1200).drops == cfg.drops
    assert config.at_length(cfg, 100, 400).drops == ("67it", "300it")
    with pytest.raises(
        ValueError, match="drops=.*stay apart where 1200 steps become 1"
    ):
        config.at_length(cfg, 100, 1)

    def rate(cfg, step):
        tx = recipes.make_optimizer(
            dataclasses.replace(cfg, optimizer="sgd", momentum=0.0), 100
        )
        one = {"w": jnp.ones(())}
        state = trees.map_by_path(
            lambda path, x: jnp.int32(step) if "count" in path else x, tx.init(one)
        )
        return -float(tx.update(one, state, one)[0]["w"])

    for schedule in ("step", "cosine"):
        own = dataclasses.replace(cfg, schedule=schedule)
        short = config.at_length(own, 100, 1200)
        long = config.at_length(own, 100, 2400)
        for step in (0, 30, 60, 199, 200, 899, 900, 1199):
            assert rate(short, step) == pytest.approx(rate(long, 2 * step), rel=1e-6)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"sweep_learning_rate": ()}, "sweep_learning_rate"),
        ({"learning_rate": 0.3}, "learning_rate=0.3; it must be one of sweep_"),
        ({"sweep_momentum": (0.0, 0.9)}, r"sweep_momentum=.*it must be empty"),
        ({"levels": ()}, "levels=.*some levels, rising"),
        ({"levels": (2, 1)}, "levels=.*some levels, rising"),
        ({"levels": (0, 1)}, "levels=0; it must be 1 or more"),
        ({"levels": (1, 40), "fraction": 0.9, "steps": "99it"}, "levels=40"),
        ({"levels": (1, 12)}, "steps=12; it must be 13 or more"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"drop_fraction": 0.0}, "drop_fraction=0.0"),
        ({"longer": 1}, "longer=1; it must be 2 or more"),
        ({"update_every": 0}, "update_every=0"),
        ({"update_every": 3}, "update_end=8; it must be a multiple of update_every=3"),
        ({"update_begin": "8it"}, "update_end=8; it must be .* after update_begin=8"),
        ({"update_end": "12it"}, "update_end=12; it must be .* before 12, the last"),
        ({"update_end": "2x"}, "update_end: "),
        ({"validation": 0}, "validation=0; it must be 1 or more"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"steps": "1it"}, "steps=1; it must be 3 or more"),
    ],
)
def test_fields_that_make_no_sense_are_named(change, match):
    fields = {
        "model": "mlp-4",
        "subset": 200,
        "steps": "12it",
        "update_begin": "2it",
        "update_end": "8it",
        "update_every": 4,
        "levels": (1, 2),
    }
    with pytest.raises(ValueError, match=match):
        gale.prepare(config.Config(**(fields | change)))


def test_methods_of_a_level_have_rules_of_its_density():
    cfg = gale.EXPERIMENT.parse([]).config
    task = recipes.make_task(cfg)
    for density in config.densities(cfg, task):
        found = config.rules(cfg, task, density)
        assert list(found) == ["gradual", "rigl", "set", "static"]
        for rule in found.values():
            lj.dynamic.check(rule, task.shapes[0], steps=1200)
        assert [rule.grows for rule in found.values()] == [False, True, True, False]
        longer = config.gradual(cfg, task, density, 2)
        assert (longer.begin, longer.end, longer.every) == (200, 1800, 50)
