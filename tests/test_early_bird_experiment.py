"""The experiment on Early-Bird tickets: what it trains, concludes and shows."""

import jax
import numpy as np
import pytest
import quick

from experiments import early_bird as experiment
from experiments.experiment import Outcome
from lottery_jax import keys, trees

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

EPOCHS = np.arange(1.0, 9.0)


def results_of(found=(5.0, 6.0, 5.0)):
    """Results as the experiment leaves them: 3 replicas, draws at epochs 1, 4 and 8."""
    xr = pytest.importorskip("xarray")
    axes = ("criterion", "density", "draw", "arm", "replica")
    by_replica = np.array([0.0, 0.001, 0.002])
    # By draw and arm: inherited, rewound, random mask.
    error = np.array([[0.15, 0.2, 0.3], [0.12, 0.16, 0.3], [0.1, 0.14, 0.3]])
    error = error[None, None, ..., None] + by_replica
    early = np.array([0.102, 0.15, 0.3])[None, None, :, None] + by_replica
    early = np.where(np.isfinite(found), early, np.nan)
    apart = 0.4 / np.minimum(EPOCHS[:, None], EPOCHS[None])
    np.fill_diagonal(apart, 0)
    return xr.Dataset(
        {
            "test_error": (axes, error),
            "diverged": (axes, np.zeros_like(error)),
            "alive": (axes, np.full_like(error, 30.0)),
            "early_test_error": ((*axes[:2], *axes[3:]), early),
            "early_diverged": ((*axes[:2], *axes[3:]), np.where(early > 0, 0, np.nan)),
            "dense_test_error": (("replica",), 0.1 + by_replica),
            "early_epoch": (("criterion", "density", "replica"), [[list(found)]]),
            "distance": (
                ("criterion", "density", "replica", "epoch", "other_epoch"),
                np.broadcast_to(apart, (1, 1, 3, 8, 8)),
            ),
            "prunable": ((), 100),
        },
        {
            "criterion": ["magnitude"],
            "density": [0.3],
            "draw": [1.0, 4.0, 8.0],
            "arm": list(experiment.ARMS),
            "replica": [0, 1, 2],
            "epoch": EPOCHS,
            "other_epoch": EPOCHS,
        },
    )


def test_verdicts_compare_the_early_bird_with_the_last_mask_and_the_controls():
    judged = experiment.judge(results_of(), experiment.Config())
    assert all(j.where == {"criterion": "magnitude", "density": 0.3} for j in judged)
    assert {j.claim: j.verdict.answer for j in judged} == {
        "early bird as good as the last": "yes",
        "the first as good as the last": "no",
        "early bird rewound as good as the last rewound": "no",
        "early bird as good as dense": "yes",
        "early bird better than random mask": "yes",
        "early bird better than rewound": "yes",
    }
    of = {j.claim: j.verdict for j in judged}
    last = of["early bird as good as the last"]
    assert last.n == 3 and last.tolerance == 0.005
    np.testing.assert_allclose(last.estimate, 0.002, atol=1e-7)


def test_replicas_without_an_early_bird_are_left_out_by_name_and_shown_as_such():
    results = results_of((5.0, np.nan, 5.0))
    judged = experiment.judge(results, experiment.Config())
    own = {j.claim: j.verdict for j in judged}
    assert own["early bird as good as the last"].n == 2
    assert own["the first as good as the last"].n == 3
    outcome = Outcome(results, experiment.Config(), "mnist1d", judged)
    assert "epoch 5, none, 5 of 8" in experiment.conclusions(outcome)[0]
    nobody = results_of((np.nan,) * 3)
    judged = experiment.judge(nobody, experiment.Config())
    own = {j.claim: j.verdict for j in judged}
    assert own["early bird better than random mask"].answer == "undecided"
    (table,) = experiment.tables(
        Outcome(nobody, experiment.Config(), "mnist1d", judged)
    )
    assert table.rows[0][3:7] == ["none", "", "", ""]


def test_the_table_and_the_figures_show_epochs_and_accuracy():
    results = results_of()
    outcome = Outcome(results, experiment.Config(), "mnist1d", [])
    (table,) = experiment.tables(outcome)
    assert table.rows == [
        [
            "magnitude",
            "30",
            "30.0",
            "5.3 [5.0, 6.0]",
            "89.7 [89.6, 89.8]",
            "84.9 [84.8, 85.0]",
            "69.9 [69.8, 70.0]",
            "84.9 [84.8, 85.0]",
            "89.9 [89.8, 90.0]",
            "85.9 [85.8, 86.0]",
        ]
    ]
    figures = dict(experiment.figures(outcome))
    assert list(figures) == ["drawn", "distances", "queue"]
    drawn = figures["drawn"].axes[0]
    assert drawn.get_title() == "magnitude 30%"
    marked = [line for line in drawn.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in marked] == [5.0, 6.0]
    (image,) = figures["distances"].axes[0].images
    np.testing.assert_allclose(np.asarray(image.get_array())[0, 1:], 0.4)
    # The rule looks at the newest mask and the four before it.
    queue = figures["queue"].axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(queue[:, 0], [5, 6, 7, 8])
    np.testing.assert_allclose(queue[:, 1], 0.4 / np.array([1, 2, 3, 4]))
    from matplotlib import pyplot

    pyplot.close("all")


def test_without_an_arm_nothing_is_said_of_it():
    results = results_of().sel(arm=["inherited"])
    judged = experiment.judge(results, experiment.Config())
    assert [j.claim for j in judged] == [
        "early bird as good as the last",
        "the first as good as the last",
        "early bird as good as dense",
    ]
    (table,) = experiment.tables(
        Outcome(results, experiment.Config(), "mnist1d", judged)
    )
    assert table.header[4:] == [
        "early bird, inherited",
        *(f"epoch {draw}, inherited" for draw in (1, 8)),
    ]


def test_random_masks_have_the_counts_of_every_layer_and_whole_channels():
    cfg = experiment.Config(
        data="digits", model="resnet-8-4", subset=100, criteria=("channels",)
    )
    task = experiment.make_task(cfg)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), task.shapes[0]
    )
    of_one = experiment.mask_of(cfg, task, "channels")

    def both(key, params):
        drawn = of_one(0.5, params)
        return drawn.mask, experiment.shuffled(key, drawn, cfg, task)

    own, other = trees.host(quick.jit(both)(keys.of_seed(1), params))
    first, second = (
        {path: m.sum() for path, m in trees.by_path(mask).items()}
        for mask in (own, other)
    )
    assert first == second
    kernels = [m["stage_2_block_0"]["conv_1"]["kernel"] for m in (own, other)]
    lived = []
    for kernel in kernels:
        rows, columns = kernel.any((0, 1, 3)), kernel.any((0, 1, 2))
        whole = np.broadcast_to(np.outer(rows, columns), kernel.shape)
        np.testing.assert_array_equal(kernel, whole)
        assert not rows.all() and not columns.all()
        lived.append(rows)
    assert (lived[0] != lived[1]).any()


@pytest.mark.parametrize(
    "change, match",
    [
        ({"densities": (0.05,)}, "density 0.05 are further apart than 0.1"),
        ({"densities": (0.97,)}, "density 0.97"),
        ({"densities": (0.5, 0.5)}, "densities"),
        ({"densities": (1.0,)}, "densities=1.0"),
        ({"criteria": ()}, "criteria"),
        ({"criteria": ("channels",)}, "criteria: 'channels' needs BatchNorm.*dense_0"),
        ({"arms": ("rewound",)}, "'inherited' among them"),
        ({"arms": ("inherited", "reinit")}, "arms='reinit'"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"window": 1}, "window=1"),
        ({"mask_every": "0it"}, "mask_every=0"),
        ({"mask_every": "3it"}, "mask_every=3it.*window=5"),
        ({"draws": ("2it", "21it")}, "draws=21it.*mask_every=1it"),
        ({"scale_l1": -1.0}, "scale_l1=-1.0"),
    ],
)
def test_fields_that_make_no_sense_are_named(change, match):
    own = {"steps": "12it", "mask_every": "1it", "draws": ("2it",)} | change
    cfg = experiment.Config(model="mlp-4", subset=200, **own)
    with pytest.raises(ValueError, match=match):
        experiment.prepare(cfg)


def test_the_l1_penalty_acts_on_the_scales_of_norms_alone():
    params = {"norm": {"scale": np.float32([2, -3]), "bias": np.float32([1, 1])}}
    zeros = jax.tree.map(np.zeros_like, params)
    found = experiment._slimmed(0.5, zeros, params)
    assert found["norm"]["scale"].tolist() == [0.5, -0.5]
    assert not found["norm"]["bias"].any()
