"""Tickets under attack, as a user meets them: what is found, trained again, and said."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import adversarial, recipes
from experiments.adversarial import compared, config, trained
from experiments.experiment import Outcome
from lottery_jax import imp, verdicts

xr = pytest.importorskip("xarray")

EXPERIMENT = adversarial.EXPERIMENT
WORDS = EXPERIMENT.tiny.split()

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def parsed(*words):
    return EXPERIMENT.parse([*WORDS, *words]).config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    """The folder of a small run, and its results."""
    folder = tmp_path_factory.mktemp("adversarial") / "run"
    assert EXPERIMENT.main([*WORDS, "--out", str(folder)]) == 0
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        return folder, results.load()


@pytest.mark.slow
def test_results_have_all_networks_and_say_what_follows(tiny):
    folder, results = tiny
    found = {name: results[name].values.tolist() for name in results.coords}
    assert found == {
        "rate": [3e-3],
        "length": [2, 4],
        "finder": ["fgsm", "pgd"],
        "density": [0.2, 0.05],
        "arm": ["ticket", "reinit", "shuffled_weights"],
        "replica": [0, 1],
    }
    assert results["step"].values[:, 0].tolist() == [2, 2]
    np.testing.assert_array_equal(results["step"].values[:, 1], [np.nan, 4])
    curve = results["curve"]
    assert np.isfinite(curve.sel(length=4)).all()
    assert np.isnan(curve.sel(length=2).isel(point=1)).all()
    for of in ("", "dense_", "found_"):
        robust, clean = results[f"{of}error"], results[f"{of}clean_error"]
        assert (robust >= clean).all() and (robust <= 1).all()
    # A mask on fresh weights is another network; a dense one is no ticket.
    error = results["dense_curve"] - curve.sel(arm="ticket")
    assert float(abs(error).max()) > 0
    said = json.loads((folder / "verdicts.json").read_text())
    claims = {one["claim"] for one in said}
    assert {"ticket better than reinit", "dense collapses to one class"} <= claims
    places = [one for one in said if one["claim"] == "ticket better than reinit"]
    assert len(places) == 2 * 2 * 2  # lengths, finders, densities
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"robust", "clean", "density", "learning_20", "learning_5"}


@pytest.mark.slow
def test_masks_are_those_of_one_shot_pruning(tmp_path):
    """The finder's network is the study's level 0, and its largest weights the same."""
    cfg = parsed("--finders", "fgsm", "--densities", "0.2")
    setup = config.prepare(cfg)["fgsm"]
    found = trained.find("fgsm", setup, [0, 1], trained.Where(folder=tmp_path))
    chain = imp.Chain("imp", imp.Geometric(0.8), one_shot=True)
    plan = dataclasses.replace(setup.plan, chains=(chain,), arms=("ticket",))
    study = imp.run(setup.task, setup.tx, plan, levels=1, replicas=[0, 1])
    (row,) = imp.tickets_of(study)
    for i, ticket in enumerate(row):
        for path in ("dense_0", "head"):
            np.testing.assert_array_equal(
                ticket.mask[path]["kernel"], found.masks[0.2][path]["kernel"][i]
            )
    at_0 = study.records["test_error"][1][0, 0, :, 0]
    np.testing.assert_array_equal(at_0, found.tested["error"])


def test_training_again_warms_up_from_the_small_rate_and_drops_twice():
    cfg = parsed("--learning-rate", "0.01", "--lengths", "40it")
    cfg = dataclasses.replace(cfg, rates=(0.01, 0.1), optimizer="sgd", momentum=0.0)

    def rates(peak):
        recipe = config.again(cfg, peak, "40it", 10)
        tx = recipes.make_optimizer(recipe, 10)
        state, found = tx.init(np.float32(0)), []
        for _ in range(40):
            update, state = tx.update(np.float32(1), state, np.float32(0))
            found.append(-float(update))
        return np.array(found)

    risen = 0.01 + 0.09 * np.minimum(1, np.arange(40) / 4)
    dropped = 0.1 ** ((np.arange(40) >= 20).astype(int) + (np.arange(40) >= 30))
    np.testing.assert_allclose(rates(0.1), risen * dropped, rtol=1e-5)
    np.testing.assert_allclose(rates(0.01), 0.01 * dropped, rtol=1e-5)
    assert "warm-up from 0.01 over 4it" in recipes.in_words(
        config.again(cfg, 0.1, "40it", 10)
    )


# --- steps ----------------------------------------------------------------------------


def sooner(a, b):
    replicas = verdicts.Replicas([f"replica {i}" for i in range(len(a))])
    a, b = (np.array(x, float) for x in (a, b))
    return compared.sooner(a, b, 100, claim="sooner", replicas=replicas)


def test_who_never_reaches_an_accuracy_counts_as_if_at_the_last_step():
    never, gone = float("inf"), float("nan")
    plain = sooner([20, 20, 40], [60, 10, 80])
    assert (plain.answer, plain.reason) == ("undecided", "")
    assert plain.estimate == pytest.approx(-70 / 3)
    sure = sooner([20, 30, 40], [60, 70, 80])
    assert (sure.answer, sure.estimate) == ("yes", -40)
    controls = sooner([20, 20, 20], [never, never, never])
    assert (controls.answer, controls.estimate) == ("yes", -80)
    assert controls.reason == "never within 100 steps: 0 of 3, control 3 of 3"
    worse = sooner([never, never, never], [20, 20, 20])
    assert (worse.answer, worse.estimate) == ("no", 80)
    neither = sooner([never, 20, 20], [never, 60, 60])
    assert (neither.answer, neither.n) == ("undecided", 0)
    assert "1 of 3, control 1 of 3" in neither.reason
    # One that never arrives may have taken any time: nothing is sooner by that.
    assert sooner([10, 10, 10, never], [90, 92, 91, 99]).answer == "undecided"
    assert sooner([90, 92, 91, 99], [10, 10, 10, never]).answer == "undecided"
    # What diverged is left out, and is nothing that is never reached.
    found = sooner([20, 30, 40, 50], [60, 70, 80, gone])
    assert (found.answer, found.n, found.excluded) == ("yes", 3, ("replica 3",))
    assert sooner([20, 30, 40], [gone, gone, gone]).n == 0


def test_the_first_step_at_an_accuracy_is_read_off_the_curves():
    curve = np.array([[0.9, 0.6, 0.7, 0.5], [0.9, 0.8, 0.7, np.nan]])
    results = xr.Dataset(
        {
            "curve": (("length", "replica", "point"), curve[:, None]),
            "diverged": (("length", "replica"), [[0], [0]]),
            "step": (
                ("length", "point"),
                [[20.0, 40.0, 60.0, 80.0], [20.0, 40.0, 60.0, np.nan]],
            ),
        }
    )
    for reach, wanted in ((0.4, [40, np.inf]), (0.25, [30, 50]), (0.05, [20, 20])):
        found = compared.steps_to(results, reach).values[:, 0]
        np.testing.assert_allclose(found, wanted, err_msg=str(reach))
    gone = results.assign(diverged=(("length", "replica"), [[1], [0]]))
    found = compared.steps_to(gone, 0.3).values[:, 0]
    np.testing.assert_allclose(found, [np.nan, 60])  # diverged, and reached


@pytest.mark.slow
def test_several_rates_are_compared_and_a_collapse_is_named(tiny):
    """Results of another shape, made of those of the small run."""
    _, results = tiny
    twice = xr.concat([results, results], "rate").assign_coords(rate=[5e-4, 3e-3])
    twice["step"], twice["found_error"] = results["step"], results["found_error"]
    for name in ("found_clean_error", "found_diverged", "found_commonest_answer"):
        twice[name] = results[name]
    twice["error"][0] = np.clip(twice["error"][0] + 0.05, 0, 1)
    twice["error"][1] = twice["error"][1] - 0.05
    twice["commonest_answer"][:] = 1.0
    twice["dense_commonest_answer"][:] = 0.3
    cfg = dataclasses.replace(parsed(), rates=(5e-4, 3e-3))
    judged = compared.judge(twice, cfg)
    boosted = [one for one in judged if "highest rate" in one.claim]
    assert len(boosted) == 8 and all(one.verdict.answer == "yes" for one in boosted)
    gone = {one.claim: one.verdict.answer for one in judged if "collapses" in one.claim}
    assert gone["ticket collapses to one class"] == "yes"
    assert gone["dense collapses to one class"] != "yes"
    outcome = Outcome(twice, cfg, "toy", judged)
    assert len(compared.tables(outcome)[0].rows) == 2 * 2 * 4
    assert len(list(compared.figures(outcome))) == 5


# --- what makes no sense --------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ("--data mnist1d", "dataset='mnist1d' (float"),
        ("--radius 0", "radius=0.0; it must be in (0, 1]"),
        ("--radius 25", "radius=25.0; it must be between 0 and 1"),
        ("--step-size 0.5", "step_size=0.5; it must be between 0 and 0.2"),
        ("--attack-steps 0", "attack_steps=0; it must be 1 or more"),
        ("--measured-steps 0", "measured_steps=0; it must be 1 or more"),
        ("--restarts 0", "restarts=0; it must be 1 or more"),
        ("--examples 0", "examples=0; it must be 1 or more"),
        ("--densities 0.2 1.0", "densities=1.0; it must be in (0, 1)"),
        ("--densities 0.2 0.2", "densities=(0.2, 0.2); there must be some"),
        ("--reach 40", "reach=40.0; it must be in (0, 1)"),
        ("--rates 0.01 0.001", "rates=(0.01, 0.001); it must be rising"),
        ("--lengths 4it 2it", "lengths=('4it', '2it'); it must be rising"),
        ("--lengths 0it", "steps=0; it must be 1 or more"),
        ("--warmup-share 2", "warmup_share=2.0; it must be between 0.0 and 1.0"),
        ("--validation 0", "validation=0; it must be 1 or more"),
        ("--task classification", "attack"),
        ("--warmup-from 0.0001", "warmup_from=0.0001; it must be 0 with warmup='0it'"),
    ],
)
def test_fields_that_make_no_sense_are_refused(words, message, tmp_path, capsys):
    extra = ["--examples", "30"] if "--task" in words else []
    with pytest.raises((ValueError, SystemExit)) as error:
        cfg = parsed(*words.split(), *extra)
        EXPERIMENT.run(cfg, tmp_path / "run")
    said = f"{error.value} {capsys.readouterr().err}"
    assert message in said, said
    assert not (tmp_path / "run").exists()
