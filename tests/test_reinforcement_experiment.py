"""Tickets of policies, as a user meets them: what is compared, said and refused."""

import dataclasses
import json

import numpy as np
import pytest

import lottery_jax as lj
from experiments import identity, imp, procedures, recipes, reinforcement
from experiments.experiment import Outcome
from experiments.kinds import policies
from experiments.rewinding import subnetworks
from lottery_jax import masks
from lottery_jax.verdicts import RETURN

xr = pytest.importorskip("xarray")

EXPERIMENT = reinforcement.EXPERIMENT
WORDS = [*EXPERIMENT.tiny.split(), "--levels", "2"]


def config(**changes):
    return dataclasses.replace(EXPERIMENT.parse(WORDS).config, **changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    folder = tmp_path_factory.mktemp("reinforcement") / "run"
    assert EXPERIMENT.main([*WORDS, "--out", str(folder)]) == 0
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as found:
        return folder, found.load()


# --- what is compared -----------------------------------------------------------------


@pytest.mark.slow
def test_what_is_measured_has_its_axes_and_is_told_by_the_return(tiny):
    _, found = tiny
    assert found["test_return"].dims == ("chain", "arm", "replica", "level")
    assert found["arm"].values.tolist() == [
        "ticket",
        "reinit",
        "random_mask",
        "shuffled_weights",
    ]
    for name in ("test_{}", "beside_test_{}"):
        error, value = (found[name.format(x)] for x in ("error", "return"))
        np.testing.assert_allclose(error, (200 - value) / 200, rtol=1e-5)
    assert "train_return" in found and "validation_return" in found
    assert found["procedure"].values.tolist() == ["from_0", "one_shot"]


@pytest.mark.slow
def test_the_ends_between_branches_are_trained_from_the_tickets(tiny):
    _, found = tiny
    along = found["path_return"]
    assert along.dims == ("branched_at", "branch_level", "replica", "pair", "alpha")
    assert along["branched_at"].values.tolist() == [0, 1]
    assert along["branch_level"].values.tolist() == [0, 1]
    ends = along.isel(alpha=[0, -1]).mean("alpha")
    lowest = along.min("alpha")
    np.testing.assert_allclose(found["path_fall"], ends - lowest, atol=1e-4)


@pytest.mark.slow
def test_what_is_written_has_every_line(tiny):
    folder, _ = tiny
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {
        "return",
        "procedures",
        "differences",
        "between_branches",
        "layer_density",
    }
    table = (folder / "table.md").read_text()
    for word in ("random mask", "shuffled weights", "one shot", "lowest between"):
        assert word in table
    written = json.loads((folder / "verdicts.json").read_text())
    assert {one["claim"] for one in written} == {
        "matching",
        "better than reinit",
        "better than random mask",
        "better than shuffled weights",
        "better than rewinding to step 0",
        "better than one shot",
        "stable",
    }
    assert {one["verdict"]["unit"] for one in written} == {"return"}


@pytest.mark.slow
def test_a_finished_run_trains_nothing_and_another_is_refused(tiny, monkeypatch):
    folder, found = tiny
    monkeypatch.setattr(
        lj.training, "train", lambda *_, **__: pytest.fail("trained again")
    )
    again = EXPERIMENT.run(config(out=str(folder)), folder)
    np.testing.assert_array_equal(again["test_return"], found["test_return"])
    with pytest.raises(ValueError, match="horizon: "):
        EXPERIMENT.run(config(horizon=1), folder)


@pytest.mark.slow
def test_a_stored_level_is_trained_again(tiny, tmp_path):
    folder, _ = tiny
    out = tmp_path / "again"
    words = ["--from", str(folder), "--level", "1", "--out", str(out)]
    assert EXPERIMENT.main(words) == 0
    with xr.open_dataset(out / "results.nc", engine="h5netcdf") as found:
        assert found["level"].values.tolist() == [1]
        assert "procedure" not in found.dims and "path_fall" not in found


# --- what is said of it ---------------------------------------------------------------


def results(ticket, others, fall=1.0):
    """Made-up returns: of tickets, and of all that they are compared with."""
    arms, levels = ("ticket", "reinit", "random_mask"), np.arange(3)
    rng = np.random.default_rng(0)

    def returns(*lead, value):
        return value + 0.1 * rng.normal(size=(*lead, 4, 3))

    main = returns(1, 3, value=others)
    main[:, 0] = returns(value=ticket)
    main[..., 0] = 190 + 0.1 * rng.normal(size=(1, 1, 4))
    beside = returns(2, value=others)
    axes = ("chain", "arm", "replica", "level")
    along = np.full((2, 2, 4, 1, 3), 180.0) + 0.1 * rng.normal(size=(2, 2, 4, 1, 3))
    along[..., 1] -= fall
    density = np.broadcast_to(0.4**levels, main.shape)
    return xr.Dataset(
        {
            "test_return": (axes, main),
            "diverged": (axes, np.zeros(main.shape, bool)),
            "early_stop_step": (axes, np.full(main.shape, -1)),
            "density": (axes, density),
            "layer_density": ((*axes, "layer"), density[..., None]),
            "beside_test_return": (("procedure", *axes[2:]), beside),
            "beside_diverged": (("procedure", *axes[2:]), np.zeros(beside.shape, bool)),
            "path_return": (
                ("branched_at", "branch_level", "replica", "pair", "alpha"),
                along,
            ),
            "path_fall": (
                ("branched_at", "branch_level", "replica", "pair"),
                lj.connectivity.instability(-along),
            ),
        },
        {
            "chain": ["imp"],
            "arm": list(arms),
            "replica": np.arange(4),
            "level": levels,
            "procedure": ["from_0", "one_shot"],
            "layer": ["policy/kernel"],
            "branched_at": [0, 125],
            "branch_level": [0, 2],
            "alpha": [0.0, 0.5, 1.0],
        },
        {"rewind_step": 125},
    )


def test_branches_of_a_ticket_that_diverged_are_no_evidence():
    found = results(188.0, 150.0)
    found["diverged"] = found["diverged"].copy()
    found["diverged"][0, 0, 1, 2] = True  # the late ticket of replica 1, level 2
    found["beside_diverged"] = found["beside_diverged"].copy()
    found["beside_diverged"][0, 3, 0] = True  # from step 0: replica 3, level 0
    cfg = dataclasses.replace(PRESET, branch_levels=(0, 2))
    paths = found[["path_return", "path_fall"]]
    sound = reinforcement._sound(found, cfg, paths)
    gone = np.argwhere(~sound.transpose("branched_at", "branch_level", ...).values)
    assert gone.tolist() == [[0, 0, 3], [1, 1, 1]]
    assert int(paths["path_fall"].where(sound).isnull().sum()) == 2


PRESET = reinforcement.PRESETS["cartpole"].config


@pytest.mark.parametrize(
    "ticket, others, better, matching",
    [(188.0, 150.0, "yes", "yes"), (150.0, 188.0, "no", "no")],
    ids=["better", "worse"],
)
def test_each_claim_says_what_the_returns_say(ticket, others, better, matching):
    judged = reinforcement.judge(results(ticket, others), PRESET)
    found = {(x.claim, x.where["level"]): x.verdict for x in judged}
    for (claim, _), verdict in found.items():
        assert verdict.metric == RETURN
        if claim == "matching":
            assert (verdict.answer, verdict.tolerance) == (matching, -RETURN.tolerance)
        elif claim != "stable":
            assert (claim, verdict.answer) == (claim, better)
    assert {claim for claim, _ in found} > {"better than one shot", "stable"}


@pytest.mark.parametrize("fall, answer", [(1.0, "yes"), (60.0, "no")])
def test_a_fall_of_the_return_between_branches_is_no_stability(fall, answer):
    judged = reinforcement.judge(results(188.0, 150.0, fall), PRESET)
    stable = reinforcement.of_paths(judged)
    assert [(x.where["branched_at"], x.where["level"]) for x in stable] == [
        (0, 0),
        (0, 2),
        (125, 0),
        (125, 2),
    ]
    assert {x.verdict.answer for x in stable} == {answer}
    # 2% of what CartPole-v0 can be: 4 of 200.
    assert {x.verdict.tolerance for x in stable} == {4.0}
    assert len(stable) + len(reinforcement.of_tickets(judged)) == len(judged)


def test_tables_figures_and_conclusions_of_results_show_every_line():
    pytest.importorskip("matplotlib")
    made = results(188.0, 150.0)
    judged = reinforcement.judge(made, PRESET)
    outcome = Outcome(made, PRESET, "cartpole", judged)
    names = ["ticket", "reinit", "random mask"]
    names += [label for _, label in procedures.PROCEDURES.values()]
    table, paths = reinforcement.tables(outcome)
    assert table.header == ["level", "density %", *names]
    assert [row[1] for row in table.rows] == ["100.0", "40.0", "16.0"]
    assert table.rows[1][2].startswith("188.") and table.rows[1][3].startswith("150.")
    assert [row[:2] for row in paths.rows] == [
        ["0", "0"],
        ["0", "2"],
        ["125", "0"],
        ["125", "2"],
    ]
    drawn = {n: (figure, mine) for n, figure, *mine in reinforcement.figures(outcome)}
    for name in ("return", "procedures", "between_branches"):
        assert "return" in drawn[name][0].axes[0].get_ylabel()
    # Bars are the intervals of the verdicts, and points their estimates.
    differences = reinforcement._differences(judged, made)
    assert set(differences) == {*names[1:3], "rewinding to step 0", "one shot"} - {
        "reinit "
    }
    (verdict,) = (
        x.verdict
        for x in judged
        if x.claim == "better than reinit" and x.where["level"] == 2
    )
    rows = differences["reinit"][:, 1]
    assert rows.tolist() == [verdict.low, verdict.estimate, verdict.high]
    np.testing.assert_allclose(rows.mean(), verdict.estimate)
    assert np.isnan(differences["one shot"][:, 0]).all()
    lines = reinforcement.conclusions(outcome)
    assert any(
        "stable (the return between two branches of step k falls" in x for x in lines
    )


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": "mnist1d"}, "data='mnist1d'; it must be one of cartpole-v0"),
        ({"model": "mlp-4"}, "model='mlp-4': name='mlp-4'; it must be one of actor-cr"),
        ({"horizon": 0}, "horizon=0; it must be between 1 and 200, the longest"),
        ({"horizon": 201}, "horizon=201; it must be between 1 and 200, the longest"),
        ({"horizon": 4}, "horizon=4; it must be between 1 and 3, the steps of a run"),
        ({"batch_size": 5}, "batch_size=5; it must be a multiple of horizon=2"),
        ({"gamma": 0.0}, r"gamma=0.0; it must be in \(0, 1\]"),
        ({"entropy_weight": -1.0}, "entropy_weight=-1.0; it must be 0 or more"),
        ({"reward_scale": 0.0}, "reward_scale=0.0; it must be above 0"),
        ({"episodes": 0}, "episodes=0; it must be 1 or more"),
        ({"acting": "best"}, "acting='best'; it must be one of sampled"),
        ({"leaves": "some"}, "leaves='some'; it must be one of kernels"),
        ({"critic": "some"}, "critic='some'; it must be one of pruned"),
        ({"validation": 10}, "validation=10; it must be None, for episodes"),
        ({"subset": 10}, "subset=10; it must be None: there are no examples"),
        ({"branches": 1}, "branches=1; it must be 2 or more"),
        ({"alphas": 1}, "alphas=1; it must be 2 or more"),
        ({"branch_levels": (0, 3)}, "branch_levels=3; it must be between 0 and 2"),
        ({"branch_levels": ()}, "branch_levels=..; there must be some"),
        ({"threshold": -1.0}, "threshold=-1.0; it must be 0 or more"),
        ({"beside": ("finetune",)}, "beside='finetune'; it must be one of from_0"),
        ({"rewind_step": "0it"}, "rewind_step=0it; it must be after step 0"),
        ({"norm_scale": "uniform"}, "norm_scale='uniform'; it must be 'ones'"),
        ({"length": 5}, "length=5; it must be 128"),
        ({"task": "classification"}, "task|data|gamma|bias|leaves"),
    ],
)
def test_fields_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        reinforcement.prepare(config(**changes))


def test_a_study_without_the_fields_of_policies_does_not_play():
    cfg = imp.Config(task="actor_critic", data="cartpole-v0")
    with pytest.raises(ValueError, match="task='actor_critic'; it must be another: it"):
        recipes.make_task(cfg)


def test_the_fields_of_a_recipe_reach_task_and_network():
    cfg = config(horizon=3, batch_size=12, episodes=7, gamma=0.5, acting="greedy")
    task = recipes.make_task(cfg)
    static = task.loss.__self__
    assert (static.games, static.horizon, static.gamma, static.greedy) == (
        4,
        3,
        0.5,
        True,
    )
    assert task.data["test"]["seed"].shape == (7,) and task.validates
    assert not recipes.make_task(dataclasses.replace(cfg, validation=0)).validates
    assert recipes.metric(cfg) == RETURN and recipes.note(cfg) == ""
    params = task.shapes[0]
    every = sum(x.size for x in lj.trees.by_path(params).values())
    assert masks.total(params, masks.of_task(task)) == every
    kernels = dataclasses.replace(cfg, leaves="kernels", critic="kept")
    assert masks.total(params, masks.of_task(recipes.make_task(kernels))) == 4 * 4 + 8
    # 1 / sqrt(fan_in), as in PyTorch.
    model = policies.make_model(dataclasses.replace(cfg, bias="torch"))
    bias = model.init(lj.keys.of_seed(0), np.zeros((1, 4), np.float32))
    assert 0 < np.abs(bias["params"]["dense_0"]["bias"]).max() <= 0.5


def test_the_paper_s_preset_has_its_numbers():
    """Yu et al. 2020, on classic control."""
    cfg = reinforcement.PRESETS["cartpole-paper"].config
    setup = reinforcement.prepare(cfg)
    assert (cfg.optimizer, cfg.learning_rate, cfg.epsilon) == ("rmsprop", 1e-4, 1e-8)
    static = setup.task.loss.__self__
    assert (static.games, static.horizon, static.reward_scale) == (32, 4, 0.01)
    # 20 epochs of 160 games of 200 steps.
    assert setup.plan.steps == 20 * 160 * 200 // 128 and setup.plan.rewind_step == 250
    (chain,) = setup.plan.chains
    assert (chain.scope, chain.densities.fraction, cfg.levels) == ("global", 0.2, 20)
    params = setup.task.shapes[0]
    everything = sum(x.size for x in lj.trees.by_path(params).values())
    assert masks.total(params, masks.of_task(setup.task)) == everything == 34_051


def test_every_preset_plays():
    for preset in reinforcement.PRESETS.values():
        assert preset.config.task == "actor_critic"
        assert lj.environments.make(preset.config.data).limit >= preset.config.horizon
        reinforcement.prepare(preset.config)


def test_other_procedures_are_found_where_they_are_stored():
    setup = reinforcement.prepare(PRESET)
    beside = procedures.plan_beside(setup)
    assert [(x.name, x.one_shot) for x in beside.chains] == [
        ("from_0", False),
        ("one_shot", True),
    ]
    assert subnetworks.chain_name(0) not in ("from_0", setup.plan.chains[0].name)
    assert identity.digits(PRESET) == identity.digits(
        dataclasses.replace(PRESET, threshold=0.5, replicas=9, levels=9)
    )
