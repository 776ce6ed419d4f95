"""The experiment on pruning at initialisation: what it concludes and shows."""

import numpy as np
import pytest

from experiments import at_init as experiment
from experiments.experiment import Outcome

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def results_of(errors, densities=(0.2, 0.02)):
    """Results as the experiment leaves them: errors by method and check, 3 replicas."""
    xr = pytest.importorskip("xarray")
    axes = ("method", "density", "check", "replica")
    methods, checks = list(errors), list(experiment.CHECKS)
    error = np.full((len(methods), len(densities), 4, 3), np.nan)
    for i, method in enumerate(methods):
        for check, value in errors[method].items():
            error[i, :, checks.index(check)] = value + np.array([0.0, 0.001, 0.002])
    density = np.where(np.isfinite(error), 0.1, np.nan)[..., None].repeat(2, axis=-1)
    return xr.Dataset(
        {
            "test_error": (axes, error),
            "diverged": (axes, np.where(np.isfinite(error), 0, np.nan)),
            "alive": (axes, np.where(np.isfinite(error), 10, np.nan)),
            "layer_density": ((*axes, "layer"), density),
            "dense_test_error": (("replica",), np.full(3, 0.1)),
        },
        {
            "method": methods,
            "density": list(densities),
            "check": checks,
            "replica": [0, 1, 2],
            "layer": ["a/kernel", "b/kernel"],
        },
    )


ERRORS = {
    "snip": {"original": 0.2, "shuffled": 0.19, "reinit": 0.204, "inverted": 0.4},
    experiment.AFTER: {"original": 0.1, "shuffled": 0.2, "reinit": 0.15},
    "random": {"original": 0.25},
}


def test_verdicts_say_what_hurts_and_what_does_not():
    results = results_of(ERRORS)
    judged = experiment.judge(results, experiment.Config())
    at = {(j.where["method"], j.claim): j.verdict for j in judged}
    answers = {key: verdict.answer for key, verdict in at.items()}
    assert answers == {
        ("snip", "better than shuffled"): "no",
        ("snip", "shuffled does not hurt"): "yes",
        ("snip", "better than reinit"): "yes",  # and yet within the tolerance
        ("snip", "reinit does not hurt"): "yes",
        ("snip", "better than inverted"): "yes",
        ("snip", "inverted does not hurt"): "no",
        ("snip", "better than random"): "yes",
        ("snip", "better than magnitude after training"): "no",
        (experiment.AFTER, "better than shuffled"): "yes",
        (experiment.AFTER, "shuffled does not hurt"): "no",
        (experiment.AFTER, "better than reinit"): "yes",
        (experiment.AFTER, "reinit does not hurt"): "no",
    }
    found = at["snip", "reinit does not hurt"]
    assert found.tolerance == 0.005 and found.n == 3
    np.testing.assert_allclose(found.estimate, 0.004)


def test_a_network_that_lost_a_layer_is_said_so_wherever_it_is_judged_or_shown():
    results = results_of(ERRORS)
    results["layer_density"][0, 1, 0, 2, 1] = 0.0
    judged = experiment.judge(results, experiment.Config())
    said = [(j.where, j.claim, j.verdict.answer) for j in judged if j.verdict.reason]
    where = {"method": "snip", "density": 0.02}
    checks = ("shuffled", "reinit", "inverted")
    assert said == [(where, f"{c} does not hurt", "undecided") for c in checks]
    outcome = Outcome(results, experiment.Config(), "mnist1d", judged)
    (table,) = experiment.tables(outcome)
    cells = {(row[0], row[1]): row[2:] for row in table.rows}
    assert cells["snip", "2"][-1] == "original 1" and cells["snip", "20"][-1] == ""
    assert cells["snip", "20"][0] == "79.9 [79.8, 80.0]"
    assert cells["random", "20"][1:] == ["", "", "", ""]
    assert "dense 90.0 [90.0, 90.0]" in table.title
    names = [name for name, _ in experiment.figures(outcome)]
    after = "magnitude_after_training"
    assert names == ["methods", "snip", "layers_snip", after, f"layers_{after}"]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"densities": (0.5, 1.0)}, "density=1.0"),
        ({"densities": (0.5, 0.5)}, "densities"),
        ({"methods": ()}, "methods"),
        ({"score_batches": 0}, "score_batches=0"),
        ({"synflow_rounds": 0}, "synflow_rounds=0"),
        ({"exclude": ("output",)}, "exclude=.*output"),
    ],
)
def test_fields_that_make_no_sense_are_named(change, match):
    cfg = experiment.Config(model="mlp-4", subset=200, **change)
    with pytest.raises(ValueError, match=match):
        experiment.prepare(cfg)
