"""Tickets of pre-trained networks, as a user meets them: what is found, moved and said."""

import dataclasses

import jax
import numpy as np
import pytest
from segments import watched

import lottery_jax as lj
from experiments import pretraining
from experiments.experiment import Outcome
from experiments.pretraining import compared, trained
from experiments.pretraining.config import dense
from lottery_jax import masks, trees
from lottery_jax.execution import Where

xr = pytest.importorskip("xarray")

EXPERIMENT = pretraining.EXPERIMENT
WORDS = EXPERIMENT.tiny.split()

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def config(**changes):
    return dataclasses.replace(EXPERIMENT.parse(WORDS).config, **changes)


def load(folder):
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        return results.load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly):
    """The folder of a small run, its results, and what was trained in it."""
    folder, seen = tmp_path_factory.mktemp("pretraining") / "run", []
    with watched(folder, seen):
        assert EXPERIMENT.main([*WORDS, "--out", str(folder)]) == 0
    return folder, load(folder), seen


# --- a small run ----------------------------------------------------------------------

STARTS = ["simclr", "supervised", "random"]
MASKS = STARTS[:2] + [f"digits from {start}" for start in STARTS]


@pytest.mark.slow
def test_results_name_starts_tickets_targets_and_layers(tiny):
    _, results, _ = tiny
    coordinates = {
        "target": ["digits", "held_out"],
        "origin": STARTS,
        "source": STARTS[:2],
        "probe": ["nearest neighbours", "linear"],
        "arm": ["ticket", "random_mask"],
        "carried": ["ticket", "reinit"],
        "level": [0, 1],
        "travelling": [1],
        "mask": MASKS,
        "other": MASKS,
        "layer": ["conv_1/kernel", "dense_0/kernel", "dense_1/kernel"],
        "replica": [0, 1],
    }
    found = {k: results[k].values.tolist() for k in results.coords}
    assert found == coordinates
    for name in results:
        assert np.isfinite(results[name]).all(), name
    densities = results["native_density"].sel(level=1)
    np.testing.assert_allclose(densities, 0.45, atol=2e-3)


@pytest.mark.slow
def test_a_random_start_is_a_draw_of_the_targets_own_law(tiny):
    _, results, _ = tiny
    setup = pretraining.prepare(config())["digits"]
    done = lj.training.train_replicas(setup.task, setup.tx, 3, [0, 1], validate_every=2)
    error = lj.training.evaluate(setup.task, done.networks, "test")["error"]
    at = results["native_test_error"].sel(
        target="digits", origin="random", arm="ticket", level=0
    )
    np.testing.assert_array_equal(at, error)


@pytest.mark.slow
def test_masks_have_themselves_in_common_whole(tiny):
    _, results, _ = tiny
    shares = compared.shares(results, "both")
    for name in MASKS:
        assert (shares.sel(mask=name, other=name) == 1).all()
    # As many weights survive in each, so it is the same seen from either.
    np.testing.assert_allclose(
        shares.transpose("mask", "other", ...), shares.transpose("other", "mask", ...)
    )
    by_chance = compared.shares(results, "chance")
    assert (by_chance > 0).all() and (by_chance < 1).all()


@pytest.mark.slow
def test_interrupted_again_and_again_it_does_nothing_else_twice(tiny, tmp_path):
    folder, results, whole = tiny
    ends = [next(i for i, at in enumerate(whole) if word in at[0]) for word in (
        "points/supervised", "found/simclr", "from-random", "held_out/carried"
    )]  # fmt: skip
    seen, stops = [], [whole[i] for i in ends]
    with watched(tmp_path, seen, stops):
        for _ in stops:
            with pytest.raises(KeyboardInterrupt):
                EXPERIMENT.run(config(), tmp_path)
        again = EXPERIMENT.run(config(), tmp_path)
    assert len(seen) <= len(whole) + 2 * len(stops)
    for name in results:
        np.testing.assert_array_equal(again[name], results[name], err_msg=name)


@pytest.mark.slow
def test_figures_tables_and_claims_are_there(tiny):
    folder, results, _ = tiny
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {"starts", "tickets", "overlap"}
    text = (folder / "table.md").read_text()
    for words in (
        "own ticket from SimCLR start",
        "nearest neighbours",
        "digits from random",
    ):
        assert words in text
    claims = {one.claim for one in compared.judge(results, config())}
    assert claims == {
        claim.format(name)
        for name in ("SimCLR", "supervised")
        for claim in (
            "{0} start better than random start",
            "own ticket from {0} start matches dense",
            "{0} ticket matches dense",
            "{0} ticket better than random mask",
            "{0} ticket better than its mask on random weights",
            "own ticket from {0} start better than {0} ticket",
        )
    }


# --- what starts where ----------------------------------------------------------------


@pytest.fixture(scope="module")
def setups():
    return pretraining.prepare(config(pretrainings=("simclr",)))


def drawn(task, number=2):
    """Networks of a task, each drawn under another key, and full masks."""
    keys = lj.keys.of_replicas(7, range(number)).init
    params, state, _ = jax.vmap(task.init)(keys)
    networks = lj.Network(params, state)
    return lj.imp.tickets_from([masks.ones_like(params)], networks)[0]


@pytest.mark.slow
def test_a_start_has_the_body_of_pre_training_and_the_head_of_the_target(setups):
    source, goal = setups[dense("simclr")].task, setups["held_out"].task
    given = drawn(source)
    start = trained.begun(trained.landed(given, goal, 3, [5, 8]))
    keys = lj.keys.of_replicas(3, [5, 8]).init
    for i, ticket in enumerate(given):
        own = trees.by_path(goal.init(keys[i])[0])
        for path, leaf in trees.by_path(trees.rows(start.params, i)).items():
            like = (
                own[path]
                if path.startswith("head")
                else trees.by_path(ticket.params)[path]
            )
            np.testing.assert_array_equal(leaf, like)


def test_heads_and_the_first_layer_count_in_no_density_of_any_task(setups):
    for name, setup in setups.items():
        flags = masks.resolve(setup.task.shapes[0], masks.of_task(setup.task))
        counted = {p for p, on in zip(trees.paths(setup.task.shapes[0]), flags) if on}
        assert counted == {"conv_1/kernel", "dense_0/kernel", "dense_1/kernel"}, name


def test_pre_trainings_see_the_same_images_and_targets_all_or_the_others(setups):
    cfg = config()
    both = pretraining.prepare(cfg)
    points = [both[dense(name)].task.data["train"] for name in cfg.pretrainings]
    np.testing.assert_array_equal(points[0]["image"], points[1]["image"])
    assert set(points[1]["label"]) == {0, 1, 2, 3, 4}
    assert set(both["digits"].task.data["test"]["label"]) == set(range(10))
    held = both["held_out"].task.data["test"]
    test = lj.data.load("digits", validation=0).arrays["test"]
    later = test["label"] >= 5
    np.testing.assert_array_equal(held["image"], test["image"][later])
    np.testing.assert_array_equal(held["label"], test["label"][later] - 5)


def test_probes_are_of_the_start_alone(setups):
    cfg = config(pretrainings=("simclr",))
    source = setups[dense("simclr")].task
    ready = {"simclr": drawn(source)}
    setup = setups["digits"]._replace(cfg=cfg)
    found = trained.probed("digits", setup, ready, [0, 1], Where())
    assert found.shape == (2, 2, 2) and (found >= 0).all() and (found <= 1).all()
    ready = {"simclr": drawn(source)[::-1]}  # the other way round
    again = trained.probed("digits", setup, ready, [0, 1], Where())
    np.testing.assert_array_equal(again[0], found[0, :, ::-1])
    np.testing.assert_array_equal(again[1], found[1])


# --- verdicts -------------------------------------------------------------------------


def test_verdicts_compare_what_they_say():
    names = {"target": ["digits"], "origin": ["simclr", "random"], "source": ["simclr"]}
    arms = {"arm": ["ticket", "random_mask"], "carried": ["ticket", "reinit"]}
    levels = {"level": [0, 1], "travelling": [1], "replica": [0, 1, 2]}
    noise = np.array([0.0, 0.001, 0.002])
    native = np.zeros((1, 2, 2, 3, 2))
    native[0, 0, 0] = np.array([0.20, 0.21])[None] + noise[:, None]  # SimCLR's tickets
    native[0, 0, 1] = (
        np.array([0.20, 0.40])[None] + noise[:, None]
    )  # their random masks
    native[0, 1] = 0.3 + noise[:, None]  # from random weights
    carried = np.stack([0.25 + noise, 0.35 + noise])[None, None, :, None]
    own = ("target", "origin", "arm", "replica", "level")
    moved = ("target", "source", "carried", "travelling", "replica")
    results = xr.Dataset(
        {
            "native_test_error": (own, native),
            "native_diverged": (own, np.zeros_like(native)),
            "native_density": (own, np.ones_like(native)),
            "carried_test_error": (moved, carried),
            "carried_diverged": (moved, np.zeros_like(carried)),
        },
        names | arms | levels,
    )
    found = {
        (one.claim, one.where["level"]): one.verdict.answer
        for one in compared.judge(results, config())
    }
    assert found == {
        ("SimCLR start better than random start", 0): "yes",
        ("SimCLR start better than random start", 1): "yes",
        ("own ticket from SimCLR start matches dense", 1): "no",
        ("SimCLR ticket matches dense", 1): "no",
        ("SimCLR ticket better than random mask", 1): "yes",
        ("SimCLR ticket better than its mask on random weights", 1): "yes",
        ("own ticket from SimCLR start better than SimCLR ticket", 1): "yes",
    }


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ("digits", "imagenet")}, "targets='imagenet'; it must be one of"),
        ({"targets": ("digits", "digits")}, "targets"),
        (
            {"targets": ("mnist1d",)},
            "targets='mnist1d'; it must be sets whose examples",
        ),
        ({"pretrainings": ()}, "pretrainings"),
        (
            {"levels": (2, 1)},
            r"levels=\(2, 1\); there must be some, and they must rise",
        ),
        ({"classes": None}, "classes=None; it must be 2 to 8: held_out needs"),
        ({"classes": 9}, "classes=9; it must be 2 to 8"),
        ({"task": "contrastive"}, "task='contrastive'; it must be 'classification'"),
        ({"labels": 5000}, "labels=5000; it must lie in"),
        ({"simclr_batch_size": 1}, "batch_size=1"),
        ({"temperature": 0.0}, "temperature=0.0; it must be above 0"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"data": "mnist1d", "targets": ("mnist1d",), "model": "mlp-8"}, "mnist1d"),
        ({"kept": ("stem",)}, "stem"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        pretraining.prepare(config(**changes))


@pytest.mark.slow
@pytest.mark.data
def test_every_preset_makes_sense(prepared_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_data("cifar10")))
    for name, preset in EXPERIMENT.presets.items():
        if name == "resnet18-cifar10":
            continue  # minutes of tracing: the same fields at another size
        cfg = dataclasses.replace(preset.config, targets=preset.config.targets[:1])
        setups = pretraining.prepare(cfg)
        assert {dense(one) for one in cfg.pretrainings} < set(setups)
        assert isinstance(Outcome(xr.Dataset(), cfg, name, []).networks, str)
