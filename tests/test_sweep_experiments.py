"""Sweeps on the command line: fields of a recipe, and what is said of each setting."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from experiments import at_init, curves, imp, recipes
from lottery_jax import records
from lottery_jax.optimizers import settings

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RECIPE = recipes.Recipe(steps="20it", drops=("8it",), warmup="3it")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_a_swept_optimizer_is_the_one_with_these_fields(optimizer, schedule):
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, schedule=schedule)
    fields = {"learning_rate": 0.02, "weight_decay": 0.1}
    if optimizer == "sgd":
        fields["momentum"] = 0.5
    swept = {f"sweep_{name}": (value, 0.25) for name, value in fields.items()}
    swept["sweep_warmup"] = ("1ep", "0it")
    make = recipes.make_optimizer(dataclasses.replace(recipe, **swept), 10, sweeps=True)
    assert [*recipes.sweep(dataclasses.replace(recipe, **swept), 10)] == [
        name for name in recipes.SWEPT if f"sweep_{name}" in swept
    ]
    params = {"w": jnp.array([0.3, -2.0])}

    def steps(tx):
        def step(carry, _):
            updates, state = tx.update(carry[0], carry[1], carry[0])
            return (jax.tree.map(jnp.add, carry[0], updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), length=12)[1]["w"]

    def at(values):
        return steps(settings.at(make, values))

    for warmup, name in ((10.0, "1ep"), (0.0, "0it")):
        values = {n: jnp.float32(x) for n, x in (fields | {"warmup": warmup}).items()}
        plain = dataclasses.replace(recipe, **fields, warmup=name)
        expected = steps(recipes.make_optimizer(plain, 10))
        np.testing.assert_allclose(jax.jit(at)(values), expected, rtol=1e-6)
        assert np.abs(expected).max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sweep_learning_rate=(0.1, 0.1)), "sweep_learning_rate: .*all different"),
        (
            dict(sweep_weight_decay=(-1.0,)),
            "sweep_weight_decay=-1.0; it must be 0.0 or",
        ),
        (dict(sweep_momentum=(0.5,)), "sweep_momentum=.*; it must be empty: only opt"),
        (dict(sweep_warmup=("ten",)), "sweep_warmup: 'ten' is no step"),
    ],
)
def test_values_of_no_sense_are_refused_by_field(change, message):
    with pytest.raises(ValueError, match=message):
        recipes.make_optimizer(dataclasses.replace(RECIPE, **change), 10)


@pytest.mark.parametrize("experiment", [curves.EXPERIMENT, at_init.EXPERIMENT])
def test_experiments_without_a_sweep_refuse_its_fields(experiment):
    cfg = experiment.presets[experiment.default].config
    cfg = dataclasses.replace(cfg, sweep_warmup=("0it", "1it"))
    with pytest.raises(
        ValueError, match="sweep_warmup=.* it must be empty: there is no sweep"
    ):
        experiment.prepare(cfg)


@pytest.mark.slow
def test_a_study_says_what_each_setting_is(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = imp.EXPERIMENT.tiny.split() + ["--arms", "ticket"]
    sweep = [
        "--sweep-learning-rate",
        "0.001",
        "0.1",
        "--sweep-weight-decay",
        "0",
        "0.5",
    ]
    assert imp.main([*flags, *sweep, "--out", str(folder)]) == 0
    found = records.load(folder / "results.nc")
    assert found["test_error"].dims[:3] == ("chain", "learning_rate", "weight_decay")
    assert found["learning_rate"].values.tolist() == [0.001, 0.1]

    # As the same study at one of the settings.
    alone = tmp_path / "alone"
    fixed = ["--learning-rate", "0.1", "--weight-decay", "0.5", "--out", str(alone)]
    assert imp.main([*flags, *fixed]) == 0
    at = found.sel(learning_rate=0.1, weight_decay=0.5)
    for name, x in records.load(alone / "results.nc").data_vars.items():
        np.testing.assert_array_equal(at[name].values, x.values, name)

    names = [
        f"imp, learning_rate={rate}, weight_decay={decay}"
        for rate in ("0.001", "0.1")
        for decay in ("0", "0.5")
    ]
    folded = imp.by_chain(found)
    assert folded["chain"].values.tolist() == names
    np.testing.assert_array_equal(folded["test_loss"][3], at["test_loss"][0])
    judged = json.loads((folder / "verdicts.json").read_text())
    assert {one["chain"] for one in judged} == {*names}
    table = (folder / "table.md").read_text()
    errors = found["validation_error"].isel(step=-1, level=0, chain=0, arm=0)
    best = errors.mean("replica").stack(at=("learning_rate", "weight_decay"))
    rate, decay = best["at"].values[int(best.argmin())]
    setting = settings.words({"learning_rate": rate, "weight_decay": decay})[2:]
    assert f"dense is best at {setting} (by validation_error); test accuracy" in table
    for name in names:
        assert f"{name.removeprefix('imp, ')}: " in table.partition("dense is best")[2]

    # The same command trains nothing; another sweep is another run.
    capsys.readouterr()
    assert imp.main([*flags, *sweep[:3], "--out", str(folder)]) == 2
    assert "sweep_weight_decay: [0.0, 0.5] there, None now" in capsys.readouterr().err
    again = ["--from", str(folder), "--level", "1"]
    assert imp.main([*again, "--out", str(tmp_path / "again")]) == 0
    retrained = records.load(tmp_path / "again" / "results.nc")
    toys.assert_equal(
        retrained["test_loss"].values, found["test_loss"].isel(level=[1]).values
    )
    assert imp.main([*again, "--sweep-weight-decay", "1"]) == 2
    assert "whose tickets are those of each setting" in capsys.readouterr().err
