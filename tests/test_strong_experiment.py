"""The experiment on strong lottery tickets: what it measures and concludes."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest

import lottery_jax as lj
from experiments import strong_lth
from lottery_jax import strong

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Figures and the command are tried for all experiments alike."""
    flags = strong_lth.EXPERIMENT.tiny.split()
    cfg = strong_lth.EXPERIMENT.parse(flags).config
    with contextlib.redirect_stderr(io.StringIO()):
        return strong_lth.EXPERIMENT.run(cfg, tmp_path_factory.mktemp("run")), cfg


@pytest.mark.slow
def test_the_experiment_measures_what_its_twins_are(finished):
    found, cfg = finished
    assert found.sizes["replica"] == 2
    assert (found["bound"] >= found["attack"]).all() and (found["attack"] > 0).all()
    assert (found["test_bound"] >= found["test_difference"].max("example")).all()
    assert (found["target_weights"] == 64 * 4 + 4 * 10).all()
    assert (found["random_weights"] == 8 * (64 * 68 + 4 * 14)).all()
    assert (found["kept_weights"] < found["random_weights"]).all()
    # Each replica has draws, a target and a network of its own.
    for name in ("single_error", "attack", "target_error"):
        assert not np.array_equal(*found[name].values), name
    judged = strong_lth.judge(found, cfg)
    parts = [one.where["construction"] for one in judged]
    assert parts == ["single", "subset", "golden", "golden", "network", "network"]


def test_slopes_are_those_of_the_lines():
    xr = pytest.importorskip("xarray")
    picks, candidates = np.array([8, 32, 128]), np.array([4, 6, 10])

    def lines(y):
        values = np.stack([y, 9 * y], -1)[None].repeat(2, 0)
        return values

    found = xr.Dataset(
        {
            "single_error": (("replica", "pick", "statistic"), lines(3.0 / picks**1.5)),
            "subset_error": (
                ("replica", "candidate", "statistic"),
                lines(5.0 * 2.0 ** (-0.75 * candidates)),
            ),
        },
        {"pick": picks, "candidate": candidates, "statistic": ["median", "worst"]},
    )
    slopes = strong_lth.slopes(found)
    np.testing.assert_allclose(slopes["single"], [-1.5, -1.5])
    np.testing.assert_allclose(slopes["subset"], [-0.75, -0.75])


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("model", "conv-2", "model='conv-2'"),
        (
            "model",
            "residual-mlp-8",
            "model='residual-mlp-8'; it must be a chain of dense",
        ),
        ("picks", (8,), "picks=.*; it must be two or more"),
        ("candidates", (4, 30), "candidates=30; it must be between 1 and 24"),
        ("golden_eps", (0.1, 1.0), r"golden_eps=1.0; it must be in \(0, 1\)"),
        ("eps", 0.0, r"eps=0.0; it must be in \(0, 1\)"),
        ("neurons", 0, "neurons=0; it must be 1 or more"),
    ],
)
def test_a_configuration_of_no_sense_is_refused(field, value, message):
    cfg = strong_lth.PRESETS["digits"].config
    with pytest.raises(ValueError, match=message):
        strong_lth.prepare(dataclasses.replace(cfg, **{field: value}))


def test_the_toolkit_shows_it():
    assert lj.strong is strong
