"""Tasks: classification against NumPy, and that other kinds need nothing but a Task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import imp, means
from lottery_jax.execution import Execution

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def _logits(params, x):
    """An MLP with one hidden layer, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    h = np.maximum(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"], 0)
    return h @ params["head"]["kernel"] + params["head"]["bias"]


def _error_and_loss(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(labels)), labels].mean()
    return (logits.argmax(axis=1) != labels).mean(), loss


@pytest.fixture(scope="module")
def mlp():
    task = toys.classification(lj.models.make("mlp-9", 4, bias="torch"))
    return task, task.init(jax.random.key(0))[0]


# --- classification -------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("evaluation_batch", [25, 1000])
def test_evaluation_counts_every_example_once(mlp, split, evaluation_batch):
    params = mlp[1]
    task = toys.classification(
        lj.models.make("mlp-9", 4, bias="torch"), evaluation_batch=evaluation_batch
    )
    metrics = jax.jit(task.evaluate, static_argnums=4)(
        params, {}, task.data, jax.random.key(0), split
    )
    arrays = task.data[split]
    error, loss = _error_and_loss(_logits(params, arrays["image"]), arrays["label"])
    number = len(arrays["label"])
    assert round(float(metrics["error"]) * number) == round(error * number)
    assert 0 < metrics["error"] < 1
    np.testing.assert_allclose(
        [*map(metrics.get, ("error", "loss"))], [error, loss], 1e-5
    )
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())


@pytest.mark.parametrize("batch", [7, 1000])
def test_sums_of_the_parts_of_a_split_make_the_metrics_of_the_whole(mlp, batch):
    task = toys.classification(
        lj.models.make("mlp-9", 4, bias="torch"), evaluation_batch=batch
    )
    whole = task.data["train"]
    number = len(whole["label"])

    def found(arrays):
        data = {**task.data, "train": arrays}
        return task.evaluate(mlp[1], {}, data, jax.random.key(0), "train")

    # A part has whole batches, but for the last one.
    ends = [0, 2 * batch, 3 * batch, number] if 3 * batch < number else [0, number]
    with means.as_sums():
        parts = [
            found({name: x[low:high] for name, x in whole.items()})
            for low, high in zip(ends, ends[1:])
        ]
    expected = jax.jit(found)(whole)
    assert set(expected) == {"loss", "error"}
    for name, value in expected.items():
        own = [part[name] for part in parts]
        size = min(batch, number)
        sums = jnp.concatenate([x.sums for x in own])
        assert [x.batch for x in own] == [size] * len(own)
        assert sums.shape == (-(-number // size),)
        assert sum(x.number for x in own) == number
        put_together = means.Sums(sums, number, size).mean
        np.testing.assert_allclose(put_together, value, rtol=1e-6)
    with means.as_sums():
        together = found(whole)
    for name, value in found(whole).items():
        np.testing.assert_array_equal(together[name].mean, value)


def test_the_last_batch_is_the_mean_over_its_real_examples(mlp):
    task, params = mlp
    indices = np.asarray(toys.order_of(task, jax.random.key(3)))[-1]
    real = indices[indices >= 0]
    assert 0 < len(real) == toys.TRAIN % toys.BATCH < toys.BATCH
    batch = task.batch(task.data, jnp.asarray(indices), jax.random.key(0), jnp.int32(4))
    value, (_, _, metrics) = task.loss(params, {}, (), batch, jax.random.key(0))
    arrays = task.data["train"]
    error, loss = _error_and_loss(
        _logits(params, arrays["image"][real]), arrays["label"][real]
    )
    np.testing.assert_allclose([value, metrics["loss"]], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-6)


def test_padding_does_not_touch_batch_statistics():
    task = toys.classification()
    params, state, stream = task.init(jax.random.key(0))
    indices = toys.order_of(task, jax.random.key(3))[-1]
    batch = task.batch(task.data, indices, jax.random.key(0), jnp.int32(4))
    real = int(batch["weight"].sum())
    short = {name: x[:real] for name, x in batch.items()}
    loss = jax.jit(task.loss)
    long_one = loss(params, state, stream, batch, jax.random.key(0))
    short_one = loss(params, state, stream, short, jax.random.key(0))
    toys.assert_close(long_one, short_one, atol=1e-6)
    moved = long_one[1][0]["batch_stats"]["norm"]["mean"]
    assert (moved != state["batch_stats"]["norm"]["mean"]).any()


def test_norm_scales_and_biases_are_not_prunable(mlp):
    params = toys.classification().init(jax.random.key(0))[0]
    flags = lj.masks.prunable(params)
    assert flags["norm"] == {"scale": False, "bias": False}
    assert flags["hidden"] == {"kernel": True, "bias": False}


def test_images_are_augmented_by_key_and_step():
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)
    labels = np.arange(8, dtype=np.int32) % 4
    split = {"image": images, "label": labels}
    made = toys.dataset()._replace(
        arrays={"train": split, "test": split},
        shape=(6, 6, 3),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    model, indices = lj.models.make("mlp-4", 4), jnp.arange(8)
    plain = lj.tasks.classification(made, model, batch_size=8)
    assert not plain.validates

    def batch(task, key, step):
        return task.batch(task.data, indices, jax.random.key(key), jnp.int32(step))

    unchanged = batch(plain, 0, 0)["image"]
    np.testing.assert_allclose(unchanged, images / 255 / 0.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(unchanged, batch(plain, 1, 5)["image"])
    flipped = lj.tasks.classification(made, model, batch_size=8, augment=("flip",))
    seen = [
        batch(flipped, key, step)["image"] for key, step in ((0, 0), (0, 1), (1, 0))
    ]
    for x in seen:  # each image is itself or its mirror image
        same = (x == unchanged).all(axis=(1, 2, 3))
        mirrored = (x == unchanged[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same | mirrored).all()
    assert (seen[0] != seen[1]).any() and (seen[0] != seen[2]).any()
    both = lj.tasks.classification(made, model, batch_size=8, augment=("flip", "crop"))
    assert (batch(both, 0, 0)["image"] != batch(both, 0, 1)["image"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; it must be between 1 and 150"),
        ({"batch_size": 151}, "batch_size=151"),
        ({"augment": ("crop", "flip")}, "augment="),
        ({"augment": ("rotate",)}, "augment="),
        ({"augment": ("flip",)}, "needs images"),
    ],
)
def test_classification_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        toys.classification(**options)


# --- other kinds of training ----------------------------------------------------------


@pytest.mark.slow
def test_a_language_model_trains_and_prunes():
    task = toys.language_model()
    chains = (
        imp.Chain("imp"),
        # Gradients of the loss need batches of the task and its dropout keys.
        imp.Chain("taylor", imp.Geometric(0.5), score="taylor", scope="layerwise"),
    )
    plan = imp.Plan(
        steps=40,
        rewind_step=5,
        chains=chains,
        arms=("ticket", "reinit", "random_mask"),
        validate_every=20,
    )
    found = toys.watched(
        task, optax.adam(0.03), plan, (0, 1), Execution(1, 0), levels=2
    )
    # Training and pruning trace the loss, once each and what names its metrics, by the
    # time that level 1 begins; then nothing does.
    assert len(set(found.traces[4:])) == 1 and found.traces[-1] <= 5
    study = found.study
    records = {name: values for name, (_, values) in study.records.items()}
    assert list(records["layer"]) == ["layers/hidden", "layers/output"]
    sizes = 16 * 24, 24 * toys.VOCABULARY
    assert (records["alive"][0] == [552, 442, 354]).all()
    assert (records["alive"][1] == [552, 276, 138]).all()
    quarters = records["layer_density"][1, :, :, 2] * np.array(sizes)
    assert (quarters == np.array(sizes) / 4).all()
    # The embedding counts in no density and loses nothing.
    assert np.asarray(study.masks.embedding).all()
    assert (records["train_loss"][..., -1] < np.log(toys.VOCABULARY) - 0.5).all()
    assert (records["test_error"] < 1 - 1.5 / toys.VOCABULARY).all()
    assert np.isfinite(records["validation_loss"]).all()
    assert not records["diverged"].any()
    # The criteria disagree, and so do the tickets they find.
    one, other = (
        jax.tree.map(lambda m, i=i: m[i], study.masks.layers["hidden"]) for i in (0, 1)
    )
    assert (np.asarray(one) & ~np.asarray(other)).any()
    assert (np.asarray(other) & ~np.asarray(one)).any()


@pytest.mark.slow
def test_reinforcement_learning_trains_prunes_and_resumes(tmp_path):
    task, tx = toys.policy_gradient(), optax.adam(0.03)
    plan = imp.Plan(
        steps=40,
        rewind_step=5,
        chains=(imp.Chain("imp"), imp.Chain("taylor", score="taylor")),
        arms=("ticket", "reinit", "random_mask"),
        validate_every=20,
    )

    def run(folder=None, watch=None):
        where = lj.Where(Execution(1, 0), folder, 0, watch)
        return imp.run(task, tx, plan, levels=2, replicas=(0, 1), where=where)

    straight = run()
    records = {name: values for name, (_, values) in straight.records.items()}
    untrained = jax.jit(
        lambda key: task.evaluate(task.init(key)[0], (), task.data, key, "test")
    )
    untrained = [
        float(untrained(lj.keys.replica_keys(0, i).init)["loss"]) for i in (0, 1)
    ]
    assert (records["test_loss"][0, 0, :, 0] < np.array(untrained) - 0.3).all()
    assert (records["test_error"][:, 0] < 0.5).all()
    # The task reports a reward and no error: that is what is recorded.
    assert "train_error" not in records
    assert np.isfinite(records["train_loss"]).all()
    assert (records["train_reward"][..., 0] > 0).all()

    # Walkers and the keys they are reset by go through the checkpoint.
    def stop(moment):
        if (moment.level, moment.done) == (1, 40):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    resumed = run(tmp_path)
    toys.assert_same_records(straight.records, resumed.records)
    toys.assert_equal(straight.masks, resumed.masks)
    toys.assert_equal(straight.rewound, resumed.rewound)
