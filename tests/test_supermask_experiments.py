"""Supermasks and edge-popup as experiments: what is compared with what."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

import lottery_jax as lj
from experiments import edge_popup, frozen, recipes, supermask
from experiments.kinds import images
from lottery_jax.execution import Where

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

SHAPES = {"fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
PRESETS = [(one, name) for one in (supermask, edge_popup) for name in one.PRESETS]


def small(module, **changes):
    """The default preset, on an MLP of a few weights."""
    own = dict(model="mlp-4", subset=200, steps="2it", score_steps="2it", replicas=2)
    cfg = module.PRESETS["mnist1d"].config
    if module is edge_popup:
        own["widths"] = ()
    return dataclasses.replace(cfg, **(own | changes))


@pytest.fixture
def fake_data(monkeypatch):
    """Random images in the shapes of sets that would have to be prepared."""

    def fake(name, *, validation=None, **_):
        random = np.random.default_rng(0)

        def split(number):
            images = random.integers(0, 256, (number, *SHAPES[name]), np.uint8)
            return {"image": images, "label": np.zeros(number, np.int32)}

        parts = {"train": split(2000), "validation": split(10), "test": split(10)}
        one = (0.5,) * SHAPES[name][-1]
        return lj.data.Dataset(parts, 10, SHAPES[name], one, one, name)

    images._load_data.cache_clear()
    real = lj.data.load
    monkeypatch.setattr(
        lj.data, "load", lambda n, **o: (fake if n in SHAPES else real)(n, **o)
    )
    yield
    images._load_data.cache_clear()


# --- what is run ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), PRESETS)
def test_every_preset_makes_tasks_of_weights_and_of_scores(module, name, fake_data):
    is_streamed = images.streamed(module.PRESETS[name].config)
    with recipes.by_size() if is_streamed else contextlib.nullcontext():
        setups = module.prepare(module.PRESETS[name].config)
    for key, (cfg, task, tx, *_) in setups.items():
        of_scores = key != "trained" and not key.endswith("weights")
        assert hasattr(task.shapes[1], "weights") == of_scores
        weights = {"w": np.ones(3, np.float32)}
        updates, _ = tx.update(weights, tx.init(weights), weights)
        assert jax.tree.map(np.shape, updates) == {"w": (3,)}
        assert task.validates and (is_streamed or cfg.replicas > 1)


BAD = [
    (supermask, {"validation": 0}, "validation=0; it must be 1 or more"),
    (supermask, {"task": "language"}, "task='language'; it must be 'classification'"),
    (supermask, {"levels": 0}, "levels=0; it must be 1 or more"),
    (supermask, {"samples": 0}, "samples=0; it must be 1 or more"),
    (supermask, {"rates": (("head", 0.1),)}, "rates: no pattern matches the layer"),
    (supermask, {"score_learning_rate": -1.0}, "score_learning_rate=-1.0; it must be"),
    (supermask, {"score_steps": "soon"}, "score_steps: 'soon' is no step"),
    (edge_popup, {"densities": (0.5, 0.3)}, "densities=(0.5, 0.3); they must rise"),
    (edge_popup, {"densities": (0.5, 1.0)}, "densities=1.0; it must be"),
    (edge_popup, {"laws": ()}, "laws=(); there must be one at least"),
    (edge_popup, {"width_density": 0.4}, "width_density=0.4; it must be one of"),
    (edge_popup, {"widths": ("mlp-8",)}, "widths=('mlp-8',); they must be different"),
]


@pytest.mark.parametrize(("module", "changes", "message"), BAD)
def test_what_makes_no_sense_is_refused_by_its_name(module, changes, message):
    with pytest.raises(ValueError) as refused:
        module.prepare(small(module, **changes))
    assert message in str(refused.value)


def test_scores_have_an_optimizer_of_their_own():
    cfg = small(supermask, score_learning_rate=0.25, score_batch_size=50)
    own = frozen.of_scores(cfg)
    assert (own.learning_rate, own.batch_size, own.optimizer) == (0.25, 50, "adam")
    setups = supermask.prepare(cfg)
    assert setups["trained"].task.steps_per_epoch == 2
    assert setups["learned"].task.steps_per_epoch == 4


# --- what is masked -------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """Initial weights of two replicas, and what is frozen of them by kind."""
    cfg = small(supermask)
    setups = supermask.prepare(cfg)
    dense = frozen.fresh(setups["trained"], [0, 1], Where(), setups["trained"].task)
    parts = {
        name: frozen.fresh(
            setups["learned"],
            [0, 1],
            Where(),
            supermask.masked(cfg, rescale=False, law=law),
        ).state
        for name, law in supermask.WEIGHTS.items()
    }
    rows = lj.trees.rows
    own = rows(lj.trees.host(dense.state.params), slice(2))
    return own, {
        name: rows(lj.trees.host(state.model_state.weights), slice(2))
        for name, state in parts.items()
    }


def test_masks_and_weights_are_trained_from_one_draw(drawn):
    own, kinds = drawn
    jax.tree.map(np.testing.assert_array_equal, own, kinds["initial"])


def test_constants_have_the_signs_of_the_draw_and_one_size_in_each_layer(drawn):
    own, kinds = drawn
    for path, constant in lj.trees.by_path(kinds["constant"]).items():
        before = lj.trees.by_path(own)[path]
        np.testing.assert_array_equal(np.sign(constant), np.sign(before))
        if path.endswith("kernel"):
            for w, draw in zip(constant, before):
                np.testing.assert_allclose(np.abs(w), draw.std(), rtol=1e-5)


def test_heuristic_masks_keep_what_numpy_keeps():
    cfg = small(supermask, levels=3)
    task = supermask.prepare(cfg)["trained"].task
    random = np.random.default_rng(0)
    initial, final = (
        jax.tree.map(
            lambda x: random.standard_normal(x.shape).astype(np.float32), task.shapes[0]
        )
        for _ in range(2)
    )
    scores = lj.scores.large_final_same_sign(final, initial)
    counts = supermask.kept(cfg, task)
    found = supermask._masks(scores, counts, task)
    kernels = [p for p in lj.trees.paths(initial) if p.endswith("kernel")]
    rates = {p: 0.1 if "head" in p else 0.2 for p in kernels}
    sizes = {p: lj.trees.by_path(initial)[p].size for p in kernels}
    for level, mask in enumerate(found):
        for path, m in lj.trees.by_path(mask).items():
            if path not in kernels:
                assert m.all()
                continue
            w, f = (lj.trees.by_path(t)[path].ravel() for t in (initial, final))
            alive = sizes[path]
            for _ in range(level):
                alive -= round(rates[path] * alive)
            best = np.argsort(np.where(w > 0, f, -f))[-alive:]
            wanted = np.isin(np.arange(w.size), best)
            np.testing.assert_array_equal(np.ravel(m), wanted)


# --- what is concluded ----------------------------------------------------------------


def heuristics(validation, test):
    """Results with the given errors of heuristic masks, `[level]`, one replica."""
    shape = (len(supermask.CRITERIA), 2, 2, 1, len(test))
    error = np.full(shape, 0.9)
    error[0, :, 0, 0], error[0, :, 1, 0] = validation, test
    axes = ("criterion", "weights", "split", "replica", "level")
    return xr.Dataset(
        {
            "heuristic_error": (axes, error),
            "heuristic_density": (("level",), 0.5 ** np.arange(len(test))),
        },
        {
            "criterion": list(supermask.CRITERIA),
            "weights": list(supermask.WEIGHTS),
            "split": list(supermask.SPLITS),
            "replica": [0],
            "level": np.arange(len(test)),
        },
    )


def test_validation_chooses_the_density_and_no_mask_is_none():
    found = supermask.best(
        heuristics(validation=[0.1, 0.5, 0.3, 0.4], test=[0.0, 0.2, 0.6, 0.1])
    )
    assert found["error"].values.tolist() == [[0.6], [0.6]]
    assert found["density"].values.tolist() == [[0.25], [0.25]]


def popped(error, width, trained):
    """Results of three replicas: `[law, density]`, `[model, law]`, `[model]`."""
    noise = np.array([-1e-3, 0.0, 1e-3])
    laws = [edge_popup.NORMAL, edge_popup.CONSTANT]
    axes = ("law", "density", "replica")
    return xr.Dataset(
        {
            "error": (axes, np.array(error)[..., None] + noise),
            "validation_error": (axes, np.array(error)[..., None] + noise),
            "width_error": (
                ("model", "law", "replica"),
                np.array(width)[..., None] + noise,
            ),
            "trained_error": (("model", "replica"), np.array(trained)[:, None] + noise),
        },
        {
            "law": laws,
            "density": [0.1, 0.5, 0.9],
            "model": ["mlp-4", "mlp-8"],
            "replica": [0, 1, 2],
        },
    )


def test_a_maximum_at_an_end_is_no_inverted_u():
    results = popped(
        error=[[0.4, 0.3, 0.2], [0.3, 0.1, 0.2]],
        width=[[0.5, 0.4], [0.3, 0.4]],
        trained=[0.3, 0.2],
    )
    judged = edge_popup.judge(results, small(edge_popup))
    answers = {
        (one.claim, *one.where.values()): one.verdict.answer
        for one in judged
        if not one.claim.startswith("matches")
    }
    assert answers == {
        ("best between the ends", edge_popup.NORMAL, 0.9): "no",
        ("best between the ends", edge_popup.CONSTANT, 0.5): "yes",
        ("constants better than normal weights", 0.1): "yes",
        ("constants better than normal weights", 0.5): "yes",
        ("constants better than normal weights", 0.9): "no",
        ("width closes the gap", edge_popup.NORMAL): "yes",  # from 0.2 to 0.1
        ("width closes the gap", edge_popup.CONSTANT): "no",  # from 0.1 to 0.2
    }


def test_replicas_that_diverged_are_nan_and_named():
    results = popped(
        error=[[0.4, 0.3, 0.4], [0.3, 0.1, 0.2]],
        width=[[0.5, 0.4], [0.3, 0.4]],
        trained=[0.3, 0.2],
    )
    results["error"][0, 1, 2] = np.nan
    (first, *_) = edge_popup.judge(results, small(edge_popup))
    assert first.verdict.n == 2 and first.verdict.excluded == ("replica 2",)
