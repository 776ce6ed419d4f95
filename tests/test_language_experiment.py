"""Tickets of language models, as a user meets them: what is compared, said and refused."""

import dataclasses
import json

import numpy as np
import pytest

import lottery_jax as lj
from experiments import language, procedures, recipes
from experiments.experiment import Outcome
from experiments.kinds import language_models
from lottery_jax import masks
from lottery_jax.data import text

xr = pytest.importorskip("xarray")

EXPERIMENT = language.EXPERIMENT
LEVELS, REPLICAS = 2, 2
WORDS = [*EXPERIMENT.tiny.split(), "--levels", str(LEVELS)]


def config(**changes):
    return dataclasses.replace(EXPERIMENT.parse(WORDS).config, **changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    folder = tmp_path_factory.mktemp("language") / "run"
    assert EXPERIMENT.main([*WORDS, "--out", str(folder)]) == 0
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as found:
        return folder, found.load()


# --- what is compared -----------------------------------------------------------------


@pytest.mark.slow
def test_other_procedures_train_the_same_dense_network_and_other_tickets(tiny):
    _, found = tiny
    ticket = found["test_loss"].isel(chain=0).sel(arm="ticket")
    beside = found["beside_test_loss"]
    assert beside["procedure"].values.tolist() == ["from_0", "one_shot"]
    assert beside.sizes["replica"] == REPLICAS and beside.sizes["level"] == LEVELS + 1
    for name in ("from_0", "one_shot"):
        dense = beside.sel(procedure=name, level=0)
        np.testing.assert_array_equal(dense, ticket.sel(level=0))
    # Pruned once, the dense network gives the ticket of the first level.
    one_shot = beside.sel(procedure="one_shot")
    np.testing.assert_array_equal(one_shot.sel(level=1), ticket.sel(level=1))
    assert (one_shot.sel(level=2) != ticket.sel(level=2)).any()
    assert (beside.sel(procedure="from_0", level=1) != ticket.sel(level=1)).any()
    own = found["density"].isel(chain=0).sel(arm="ticket")
    for name in ("from_0", "one_shot"):
        other = found["beside_density"].sel(procedure=name)
        np.testing.assert_array_equal(*xr.broadcast(other, own))


@pytest.mark.slow
def test_perplexity_is_the_exponential_of_the_loss(tiny):
    _, found = tiny
    for name in ("test_{}", "beside_test_{}"):
        loss, perplexity = (found[name.format(x)] for x in ("loss", "perplexity"))
        np.testing.assert_allclose(perplexity, np.exp(loss), rtol=1e-5)


@pytest.mark.slow
def test_what_is_written_has_every_arm_and_procedure(tiny):
    folder, _ = tiny
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"perplexity", "procedures", "layer_density"}
    table = (folder / "table.md").read_text()
    for word in ("loss (nats)", "perplexity", "random mask", "one shot"):
        assert word in table
    claims = {
        one["claim"] for one in json.loads((folder / "verdicts.json").read_text())
    }
    assert claims == {
        "matching",
        "better than reinit",
        "better than random mask",
        "better than rewinding to step 0",
        "better than one shot",
    }


@pytest.mark.slow
def test_a_finished_run_trains_nothing_and_another_is_refused(tiny, monkeypatch):
    folder, found = tiny
    monkeypatch.setattr(
        lj.training, "train", lambda *_, **__: pytest.fail("trained again")
    )
    again = EXPERIMENT.run(config(out=str(folder)), folder)
    np.testing.assert_array_equal(again["test_loss"], found["test_loss"])
    with pytest.raises(ValueError, match="beside: "):
        EXPERIMENT.run(config(beside=("from_0",)), folder)


@pytest.mark.slow
def test_a_stored_level_is_trained_again(tmp_path, compiled_quickly):
    # From step 0: tickets hold no carry, so that later ones begin without a memory.
    words = [*EXPERIMENT.tiny.split(), "--rewind-step", "0it", "--beside", "one_shot"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert EXPERIMENT.main([*words, "--out", str(first)]) == 0
    words = ["--from", str(first), "--level", "1", "--out", str(second)]
    assert EXPERIMENT.main(words) == 0
    runs = []
    for folder in (first, second):
        with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as found:
            runs.append(found.load())
    there, again = (one["test_loss"].sel(level=1, arm="ticket") for one in runs)
    np.testing.assert_array_equal(again, there)
    assert "procedure" in runs[0].dims and "procedure" not in runs[1].dims


# --- what is said of it ---------------------------------------------------------------


def results(ticket, others):
    """Made-up losses: of tickets, and of all that they are compared with."""
    arms, levels = ("ticket", "reinit", "random_mask"), np.arange(3)
    rng = np.random.default_rng(0)

    def losses(*lead, value):
        return value + 1e-3 * rng.normal(size=(*lead, 3, 3))

    main = losses(1, 3, value=others)
    main[:, 0] = losses(value=ticket)
    main[..., 0] = 2.0 + 1e-3 * rng.normal(size=(1, 1, 3))
    beside = losses(2, value=others)
    axes = ("chain", "arm", "replica", "level")
    return xr.Dataset(
        {
            "test_loss": (axes, main),
            "test_perplexity": (axes, np.exp(main)),
            "test_error": (axes, main / 9),
            "diverged": (axes, np.zeros(main.shape, bool)),
            "early_stop_step": (axes, np.full(main.shape, -1)),
            "density": (axes, np.broadcast_to(0.4**levels, main.shape)),
            "layer_density": (
                (*axes, "layer"),
                np.broadcast_to(0.4**levels, main.shape)[..., None],
            ),
            "beside_test_loss": (("procedure", *axes[2:]), beside),
            "beside_test_perplexity": (("procedure", *axes[2:]), np.exp(beside)),
            "beside_test_error": (("procedure", *axes[2:]), beside / 9),
            "beside_diverged": (("procedure", *axes[2:]), np.zeros(beside.shape, bool)),
        },
        {
            "chain": ["imp"],
            "arm": list(arms),
            "replica": [0, 1, 2],
            "level": levels,
            "procedure": ["from_0", "one_shot"],
            "layer": ["head/kernel"],
        },
        {"rewind_step": 30},
    )


@pytest.mark.parametrize(
    "ticket, others, better, matching",
    [(2.0, 2.5, "yes", "undecided"), (2.5, 2.0, "no", "no")],
    ids=["better", "worse"],
)
def test_each_claim_says_what_the_losses_say(ticket, others, better, matching):
    cfg = language.PRESETS["shakespeare-lstm"].config
    judged = procedures.judge(results(ticket, others), cfg)
    found = {(one.claim, one.where["level"]): one.verdict for one in judged}
    for claim in procedures.PROCEDURES:
        name = f"better than {procedures.PROCEDURES[claim][0]}"
        # At the first level one shot is the ticket itself.
        assert {level for own, level in found if own == name} == (
            {2} if claim == "one_shot" else {1, 2}
        )
    for (claim, _), verdict in found.items():
        assert verdict.metric == lj.verdicts.LOSS
        if claim == "matching":
            assert verdict.tolerance == cfg.tolerance == 0.01
            assert verdict.answer in (matching, "yes" if ticket < 2.4 else "no")
        else:
            assert (claim, verdict.answer) == (claim, better)


def test_a_network_that_diverged_is_left_out_by_name():
    made = results(2.0, 2.5)
    made["beside_diverged"][0, 1, 2] = True
    cfg = language.PRESETS["shakespeare-lstm"].config
    (verdict,) = (
        one.verdict
        for one in procedures.judge(made, cfg)
        if one.claim == "better than rewinding to step 0" and one.where["level"] == 2
    )
    assert verdict.excluded == ("replica 1",) and verdict.n == 2


def test_tables_and_figures_of_results_show_every_line():
    pytest.importorskip("matplotlib")
    cfg = language.PRESETS["shakespeare-lstm"].config
    made = results(2.0, 2.5)
    outcome = Outcome(made, cfg, "shakespeare-lstm", procedures.judge(made, cfg))
    names = ["ticket", "reinit", "random mask"]
    names += [label for _, label in procedures.PROCEDURES.values()]
    (table,) = language.tables(outcome)
    assert table.header == ["per token", "level", "density %", *names]
    assert [row[2] for row in table.rows] == 3 * ["100.0", "40.0", "16.0"]
    assert [row[0] for row in table.rows[::3]] == [
        "loss (nats)",
        "perplexity",
        "error (%)",
    ]
    assert table.rows[1][3].startswith("2.000 [") and table.rows[1][4][:3] == "2.5"
    drawn = {name: (figure, mine) for name, figure, *mine in language.figures(outcome)}
    axes = drawn["procedures"][0].axes[0]
    assert "perplexity" in axes.get_ylabel()
    assert {one.claim for one in drawn["procedures"][1][0]} == {
        "better than rewinding to step 0",
        "better than one shot",
    }
    assert len(drawn["perplexity"][1][0]) == 2 * 3


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedules": ("geometric", "linear")}, "schedules=.*one alone"),
        ({"retrains": ("rewind", "finetune")}, "retrains=.*one alone"),
        ({"beside": ("finetune",)}, "beside='finetune'; it must be one of from_0"),
        ({"beside": ("from_0", "from_0")}, "beside=.*each once"),
        ({"rewind_step": "0it"}, "rewind_step=0it; it must be after step 0"),
        ({"sweep_learning_rate": (0.1, 0.2)}, "sweep=.*there is no sweep"),
        ({"data": "mnist"}, "data='mnist'; it must be one of tiny_shakespeare"),
        ({"model": "mlp-4"}, "model='mlp-4': name='mlp-4'; it must be one of lstm"),
        ({"model": "lstm-1-4", "dropout": 1.5}, "model='lstm-1-4': dropout=1.5"),
        ({"length": 0}, "length=0; it must be 1 or more"),
        ({"length": 5000}, "markov: tokens of 'train'=16000; it must be"),
        ({"subset": 0}, "subset=0; it must be between 1 and 16000"),
        ({"validation": 10}, "validation=10; it must be None"),
        ({"evaluated": 10}, "evaluated=10; it must be None"),
        ({"embeddings": "some"}, "embeddings='some'"),
    ],
)
def test_fields_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        procedures.prepare(config(**changes))


def test_the_fields_of_a_recipe_reach_task_and_network():
    cfg = config(subset=500, validation=0, length=7, model="gru-1-4", batch_size=3)
    task = recipes.make_task(cfg)
    assert not task.validates
    assert task.data["train"]["ids"].shape == (499 // 3 // 7, 3, 8)
    assert recipes.metric(cfg) == lj.verdicts.LOSS and recipes.note(cfg) == ""
    model = language_models.make_model(dataclasses.replace(cfg, dropout=0.3))
    assert (model.cell, model.units, model.dropout) == ("gru", 4, 0.3)
    params = task.shapes[0]
    every = masks.total(params, masks.of_task(task))
    kept = recipes.make_task(dataclasses.replace(cfg, embeddings="kept"))
    table = params["embedding"]["embedding"].size
    assert masks.total(params, masks.of_task(kept)) == every - table


def test_the_paper_s_preset_has_its_numbers(monkeypatch):
    """Yu et al. 2020, section 3.1, on a text of WikiText-2's size."""
    train = np.zeros(2_088_628, np.int32)
    arrays = {
        split: {"ids": own} for split, own in (("train", train), ("test", train[:5000]))
    }
    made = text.Texts(arrays, text.Vocabulary(33_278), "wikitext2")
    monkeypatch.setattr(language_models, "_read", lambda name: made)
    cfg = language.PRESETS["wikitext2-lstm-paper"].config
    setup = procedures.prepare(cfg)
    assert setup.task.steps_per_epoch == 1392
    assert (setup.plan.steps, setup.plan.rewind_step) == (13_920, 1392)
    (chain,) = setup.plan.chains
    assert (chain.scope, chain.densities.fraction, cfg.levels) == ("global", 0.2, 20)
    assert (cfg.optimizer, cfg.learning_rate, cfg.epsilon) == ("adam", 1e-3, 1e-3)
    params = setup.task.shapes[0]
    everything = sum(x.size for x in lj.trees.by_path(params).values())
    assert masks.total(params, masks.of_task(setup.task)) == everything == 50_065_078
    beside = procedures.plan_beside(setup)
    assert beside.rewind_steps == (0, 1392) and beside.arms == ("ticket",)
    assert [one.one_shot for one in beside.chains] == [False, True]


def test_every_preset_trains_a_language_model():
    for preset in language.PRESETS.values():
        assert preset.config.task == "language_model"
        assert preset.config.data in language_models.UNITS
