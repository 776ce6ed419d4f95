"""Contrastive pre-training: its loss against NumPy, and that tickets of it travel."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from experiments import identity, recipes
from experiments.kinds import contrasts
from lottery_jax import connectivity, imp, keys, masks, training, transfer, trees
from lottery_jax.connectivity import Measure
from lottery_jax.data import Views
from lottery_jax.execution import Execution

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TX = optax.sgd(0.05, momentum=0.9)


# --- the loss -------------------------------------------------------------------------


def written_out(first, second, temperature):
    """Equation 1 of Chen et al. 2020, pair by pair, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    number, losses, wrong = len(first), [], []
    for i in range(2 * number):
        partner = (i + number) % (2 * number)
        cosines = z @ z[i]
        others = [k for k in range(2 * number) if k != i]
        below = sum(np.exp(cosines[k] / temperature) for k in others)
        losses.append(-np.log(np.exp(cosines[partner] / temperature) / below))
        wrong.append(max(others, key=lambda k: cosines[k]) != partner)
    return np.mean(losses), np.mean(wrong)


def projections(number=5, width=3, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(number, width))
    second = first + 0.8 * rng.normal(size=(number, width))
    return np.float32(first), np.float32(second)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_what_is_written_out(temperature):
    first, second = projections()
    found = lj.tasks.nt_xent(first, second, temperature)
    expected = written_out(first, second, temperature)
    assert 0 < expected[1] < 1
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_the_gradient_is_that_of_what_is_written_out():
    first, second = projections(3, 2)
    both = (first, second)

    def loss(both):
        return lj.tasks.nt_xent(*both, 0.3)[0]

    found = quick.jit(jax.grad(loss))(both)
    for which in (0, 1):
        for place in np.ndindex(3, 2):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [x.astype(np.float64) for x in both]
                moved[which][place] += step
                ends.append(written_out(*moved, 0.3)[0])
            slope = (ends[0] - ends[1]) / 2e-5
            assert abs(float(found[which][place]) - slope) < 1e-5 * max(1, abs(slope))


def test_it_depends_on_directions_alone_and_is_least_where_partners_agree():
    first, second = projections()
    longer = first * np.float32([[1], [2], [0.5], [30], [4]])
    np.testing.assert_allclose(
        lj.tasks.nt_xent(longer, second, 0.5),
        lj.tasks.nt_xent(first, second, 0.5),
        rtol=1e-5,
    )
    corners = np.eye(5, dtype=np.float32)
    apart = lj.tasks.nt_xent(corners, corners, 0.5)
    # Partners at cosine 1, the eight others at 0.
    np.testing.assert_allclose(apart[0], np.log(1 + 8 * np.exp(-2)), rtol=1e-6)
    assert float(apart[1]) == 0
    alike = np.ones((5, 3), np.float32)
    np.testing.assert_allclose(
        lj.tasks.nt_xent(alike, alike, 0.5)[0], np.log(9), rtol=1e-6
    )


def test_projections_of_length_0_have_a_gradient():
    zeros = np.zeros((3, 2), np.float32)
    grad = jax.grad(lambda x: lj.tasks.nt_xent(x, zeros, 0.5)[0])(zeros)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("first", "second", "temperature", "message"),
    [
        (
            np.ones((1, 3)),
            np.ones((1, 3)),
            0.5,
            r"len\(first\)=1; it must be 2 or more",
        ),
        (
            np.ones((4, 3)),
            np.ones((4, 2)),
            0.5,
            r"first.shape=\(4, 3\); it must be \[B",
        ),
        (np.ones((4, 3, 1)), np.ones((4, 3, 1)), 0.5, r"first.shape=\(4, 3, 1\); it"),
        (np.ones((4, 3)), np.ones((4, 3)), 0.0, "temperature=0.0; it must be above 0"),
        (np.ones((4, 3)), np.ones((4, 3)), -1, "temperature=-1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, temperature, message):
    with pytest.raises(ValueError, match=message):
        lj.tasks.nt_xent(jnp.asarray(first), jnp.asarray(second), temperature)


# --- the task -------------------------------------------------------------------------


@functools.cache
def task():
    return toys.contrastive()


def test_a_step_is_the_loss_of_two_views_of_the_noise():
    pictures, model = toys.pictures(), lj.models.make("mlp-5", 4, head="projection")
    own = toys.contrastive(model, temperature=0.2, batch_size=10)
    params, state, stream = own.init(keys.of_seed(0))
    noise, step = keys.of_seed(1), jnp.int32(2)
    rows = own.order(noise, step)
    assert rows.shape == (10,) and own.steps_per_epoch == 4  # of 44: none is padded
    batch = own.batch(own.data, rows, noise, step)
    images = pictures.arrays["train"]["image"][rows].astype(np.float32) / 255
    key = jax.random.fold_in(noise, step)
    pair = lj.data.views.two(key, jnp.asarray(images), Views())
    for name, seen in zip(("first", "second"), pair):
        # A quotient may be rounded otherwise, which the hue magnifies.
        np.testing.assert_allclose(batch[name], (seen - 0.5) / 0.25, atol=1e-4)
    loss, (_, _, metrics) = own.loss(params, state, stream, batch, noise)
    z = [model.apply({"params": params}, batch[name]) for name in ("first", "second")]
    expected = written_out(*map(np.asarray, z), 0.2)
    np.testing.assert_allclose((loss, metrics["error"]), expected, rtol=1e-5)
    assert float(metrics["loss"]) == float(loss)
    np.testing.assert_allclose(
        own.outputs(params, state, batch), np.concatenate(z), rtol=1e-5, atol=1e-5
    )


def test_other_steps_and_other_noise_give_other_views():
    own, rows = task(), jnp.arange(10, dtype=jnp.int32)

    def first(seed, step):
        batch = own.batch(own.data, rows, keys.of_seed(seed), jnp.int32(step))
        return np.asarray(batch["first"])

    np.testing.assert_array_equal(first(0, 3), first(0, 3))
    assert (first(0, 3) != first(0, 4)).any() and (first(0, 3) != first(1, 3)).any()


def test_evaluation_is_of_the_same_views_whatever_the_key_and_of_full_batches():
    own = toys.contrastive(
        lj.models.make("mlp-5", 4, head="projection"), evaluation_batch=4
    )
    params, state, _ = own.init(keys.of_seed(0))
    run = quick.jit(own.evaluate, static_argnums=4)

    def at(data, seed=0):
        return run(params, state, data, keys.of_seed(seed), "test")

    whole = at(own.data)
    assert whole == at(own.data, 1)
    # 11 images: the last three fill no batch.
    test = {name: x.copy() for name, x in own.data["test"].items()}
    test["image"][8:] = 0
    assert whole == at(own.data | {"test": test})
    test["image"][7] = 0
    assert whole != at(own.data | {"test": test})
    # A split that is smaller than a batch is one.
    few = trees.rows(own.data["test"], slice(3))
    assert np.isfinite(float(at(own.data | {"test": few})["loss"]))


def test_views_of_ones_own_and_a_model_of_ones_own():
    """Vectors, seen with a little noise; a linear map without a library."""

    def noisy(key, x):
        a, b = jax.random.split(key)
        shape = x.shape
        return tuple(x + 0.1 * jax.random.normal(k, shape, jnp.float32) for k in (a, b))

    def init(key):
        return {"head": {"w": jax.random.normal(key, (8, 3), jnp.float32)}}

    def apply(params, x):
        return x @ params["head"]["w"]

    own = lj.tasks.contrastive(
        toys.dataset(),
        init=init,
        apply=apply,
        batch_size=50,
        views=noisy,
        prunable=masks.prunable,
    )
    done = lj.train(own, TX, 6, 1, validate_every=3)
    loss = done.curves.values["train_loss"][0]
    assert np.isfinite(loss).all() and loss[0] != loss[1]


def test_pruning_counts_what_is_outside_of_the_head():
    params = task().shapes[0]
    flags = masks.resolve(params, masks.of_task(task()))
    counted = {path for path, counts in zip(trees.paths(params), flags) if counts}
    kernels = {
        path
        for path in trees.paths(params)
        if path.endswith("kernel") and not path.startswith("head/")
    }
    assert counted == kernels and "stem/kernel" in kernels


# --- studies --------------------------------------------------------------------------

PLAN = imp.Plan(
    steps=6,
    rewind_step=2,
    chains=(imp.Chain("imp", imp.Geometric(0.5)),),
    arms=("ticket", "reinit"),
    validate_every=3,
)


def study(ids, folder=None, watch=None):
    where = lj.Where(Execution(1, 1), folder, 0, watch)
    return imp.run(task(), TX, PLAN, levels=1, replicas=ids, where=where)


@functools.cache
def straight():
    return study((0, 1))


@pytest.mark.slow
def test_a_study_prunes_what_is_outside_of_the_head():
    found = straight()
    # Of the chain, by arm, replica and level; fresh draws are trained from level 1 on.
    records = {name: values[0] for name, (_, values) in found.records.items()}
    assert not records["diverged"][0].any() and not records["diverged"][1, :, 1].any()
    counted = sum(
        int(np.prod(leaf.shape))
        for path, leaf in trees.by_path(task().shapes[0]).items()
        if path.endswith("kernel") and not path.startswith("head/")
    )
    half = round(counted * 0.5)
    assert (records["alive"][0] == [counted, half]).all()
    assert (records["alive"][1, :, 1] == half).all()
    (tickets,) = imp.tickets_of(found)
    for ticket in tickets:
        for path, leaf in trees.by_path(ticket.mask).items():
            assert leaf.all() or not path.startswith("head/")


@pytest.mark.slow
def test_what_is_pruned_stays_away():
    mask = imp.tickets_of(straight())[0][0].mask

    def begin(key):
        params, model_state, _ = task().init(key)
        return training.start(TX, lj.Network(params, model_state), (), mask)

    own = keys.of_replicas(0, (0, 1))
    start = np.zeros(2, int)
    runs = training.Runs(jax.vmap(begin)(own.init), own.noise, start, start)
    before = trees.by_path(trees.host(runs.state.params))
    where = lj.Where(Execution(1, 1))
    done = training.train(task(), TX, runs, 3, every=3, where=where)
    for path, leaf in trees.by_path(done.networks.params).items():
        alive = np.asarray(trees.by_path(mask)[path])
        assert not np.asarray(leaf)[:, ~alive].any()
        if path.endswith("kernel"):
            assert (np.asarray(leaf) != before[path])[:, alive].any()


def test_a_study_goes_on_where_it_was_killed(tmp_path):
    def stop(moment):
        if (moment.level, moment.done) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study((0, 1), tmp_path, stop)
    resumed = study((0, 1), tmp_path)
    toys.assert_same_records(straight().records, resumed.records)
    toys.assert_equal(straight().masks, resumed.masks)


@pytest.mark.slow
def test_a_replica_alone_has_the_numbers_that_it_has_among_others():
    alone = study((1,))
    toys.assert_same_records(straight().records, alone.records, np.s_[:, :, 1:2])


def classifier():
    model = lj.models.ResNet(4, (1,), 2)
    return lj.tasks.classification(toys.pictures(), model, batch_size=10)


def test_tickets_travel_between_pre_training_and_classes():
    pretraining, classes = task(), classifier()
    (tickets,) = imp.tickets_of(straight())
    there, mask = transfer.graft(tickets[0], classes, keys.of_seed(5))
    toys.assert_equal(
        jax.tree.map(jnp.shape, there.params),
        jax.tree.map(lambda x: x.shape, classes.shapes[0]),
    )
    # Weights are 0 off the mask from the graft on.
    carried = masks.apply(tickets[0].mask, tickets[0].params)
    own, theirs = trees.by_path(there.params), trees.by_path(carried)
    for path, leaf in own.items():
        if path.startswith("head/"):
            assert trees.by_path(mask)[path].all()
        else:
            np.testing.assert_array_equal(leaf, theirs[path])
    ticket = lj.tickets.Ticket(mask, there.params, there.model_state, {})
    back, again = transfer.graft(ticket, pretraining, keys.of_seed(6))
    for path, leaf in trees.by_path(again).items():
        np.testing.assert_array_equal(leaf, trees.by_path(tickets[0].mask)[path])
    assert set(trees.by_path(back.params)) == set(theirs)
    onto = transfer.mask_onto(tickets[0].mask, classes)
    toys.assert_equal(onto, mask)


def test_the_same_key_draws_the_same_network_but_for_its_head():
    one, other = (own.init(keys.of_seed(3))[0] for own in (task(), classifier()))
    mine, theirs = trees.by_path(one), trees.by_path(other)
    for path, leaf in theirs.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(mine[path], leaf)


@pytest.mark.slow
def test_paths_between_networks_recompute_their_statistics():
    init = jax.vmap(lambda key: lj.Network(*task().init(key)[:2]))
    networks = trees.host(init(keys.of_replicas(0, (0, 1)).init))
    how = Measure(3, "recompute", ("test",), statistics_batches=2)
    found = connectivity.paths(task(), networks, [(0, 1)], how)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.values))


def test_small_dense_networks_are_drawn():
    network, mask = quick.jit(task().narrow, static_argnums=1)(keys.of_seed(0), 200)
    kept = masks.count(mask, masks.prunable(network.params))
    assert abs(int(kept) - 200) <= 40


# --- refused --------------------------------------------------------------------------


class Maps(nn.Module):
    """What comes out has an axis too many."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (1, 1), name="head")(x)


def of_pictures(**changes):
    return toys.pictures()._replace(**changes)


def with_images(change, split="train"):
    made = toys.pictures()
    arrays = {
        name: own | {"image": np.float32(own["image"]) / 255}
        for name, own in made.arrays.items()
    }
    arrays[split]["image"] = change(arrays[split]["image"])
    return made._replace(arrays=arrays)


def alone(split):
    made = toys.pictures()
    few = trees.rows(made.arrays[split], slice(1))
    return made._replace(arrays=made.arrays | {split: few})


MODEL = lj.models.make("mlp-3", 4, head="projection")
BAD = {
    "a batch of one": (dict(batch_size=1), "batch_size=1; it must be between 2 and 44"),
    "a large batch": (dict(batch_size=45), "batch_size=45; it must be between 2 and"),
    "evaluation of one": (
        dict(evaluation_batch=1),
        "evaluation_batch=1; it must be 2 or more",
    ),
    "temperature": (dict(temperature=0), "temperature=0; it must be above 0"),
    "a split of one": (
        dict(dataset=alone("validation")),
        r"arrays\['validation'\]=1; it must be 2 or more images",
    ),
    "vectors": (
        dict(dataset=toys.dataset()),
        r"shape of an example=\(8,\); it must be \[H, W, 1\] or \[H, W, 3\]",
    ),
    "two channels": (
        dict(dataset=toys.pictures(2)),
        r"shape of an example=\(8, 8, 2\); it must",
    ),
    "normalised images": (
        dict(dataset=with_images(lambda x: x - 0.5, "test")),
        r"arrays\['test'\]\['image'\]=real numbers in \[-0.5, 0.5\]; it must be uint8",
    ),
    "settings": (dict(views="strong"), "views='strong'; it must be a .*Views"),
    "one view": (dict(views=lambda key, x: x), "views=.*; it must be a .*Views"),
    "other views": (
        dict(views=lambda key, x: (x, x[:, 1:])),
        r"views: the second one=float32 of shape \(10, 7, 8, 3\); it must be float32",
    ),
    "integer views": (
        dict(views=lambda key, x: (x.astype(jnp.int32), x)),
        r"views: the first one=int32 of shape",
    ),
    "maps": (
        dict(model=Maps()),
        r"model=Maps: its logits have shape \(20, 8, 8, 3\); it must be \(20, any\)",
    ),
    "no head": (
        dict(head=("^projection/",)),
        "head=.*: pattern '.projection/' matches no leaf",
    ),
    "no model": (dict(model=None), r"given are \[\]; it must be either model, or"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_by_name(name):
    fields, message = BAD[name]
    good = {"dataset": toys.pictures(), "model": MODEL, "batch_size": 10}
    with pytest.raises(ValueError, match=f"^{message}"):
        lj.tasks.contrastive(**good | fields)


def test_float_images_in_the_known_range_are_fine():
    pair = []
    for dataset in (toys.pictures(), with_images(lambda x: x)):
        own = lj.tasks.contrastive(dataset, MODEL, batch_size=10)
        rows, step = jnp.arange(10, dtype=jnp.int32), jnp.int32(0)
        pair.append(own.batch(own.data, rows, keys.of_seed(0), step)["second"])
    # Divided by NumPy or on the device: a rounding, which the hue magnifies.
    np.testing.assert_allclose(*pair, atol=1e-4)


# --- from a recipe --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config(recipes.Recipe, contrasts.Contrasting):
    """A recipe that may be of contrastive pre-training."""


def recipe(**fields):
    fields = {"data": "digits", "model": "conv-2-2", "batch_size": 20} | fields
    return Config(task="contrastive", **fields)


def test_a_recipe_says_how_a_network_is_pre_trained():
    cfg = recipe(
        temperature=0.2, projection=3, projection_hidden=7, colour_strength=1.0
    )
    own = recipes.make_task(cfg)
    shapes = trees.by_path(own.shapes[0])
    assert shapes["head/hidden/kernel"].shape[1] == 7
    assert shapes["head/output/kernel"].shape == (7, 3)
    settings = contrasts.make_views(cfg)
    assert settings == Views(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    assert contrasts.make_views(recipe()) == Views()
    assert recipes.ticket_metadata(cfg, "x")["dataset"]["name"] == "digits"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0; it must be above 0"),
        ({"projection": 0}, "projection=0; it must be 1 or more"),
        ({"projection_hidden": 0}, "projection_hidden=0; it must be 1 or more"),
        ({"smallest_crop": 0.0}, r"smallest_crop=0.0; it must be in \(0, 1\]"),
        ({"colour_strength": 3.0}, "colour_strength=3.0; it must be between 0 and 2.5"),
        ({"grey_probability": 2.0}, "grey_probability=2.0; it must be between 0 and 1"),
        ({"blur_probability": -1.0}, "blur_probability=-1.0; it must be between"),
        ({"label_noise": 0.5}, "label_noise=0.5; it must be 0.0: task='contrastive'"),
        ({"augment": ("flip",)}, r"augment=\('flip',\); it must be \(\): task="),
        ({"crop": 4}, "crop=4; it must be None: task='contrastive' does not use it"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1; it must be 0.0: task="),
        ({"data": "mnist1d", "model": "mlp-3"}, r"shape of an example=\(40,\)"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        recipes.make_task(recipe(**fields))


def test_its_fields_are_refused_where_another_task_would_ignore_them():
    cfg = Config(data="digits", model="mlp-3", temperature=0.1)
    with pytest.raises(
        ValueError, match="temperature=0.1; it must be 0.5: task='class"
    ):
        recipes.make_task(cfg)
    with pytest.raises(ValueError, match="it is told by .*'temperature'.*no fields of"):
        recipes.make_task(recipes.Recipe(task="contrastive", data="digits"))


def test_runs_from_before_have_the_identity_that_they_had():
    stored = identity.as_config(recipes.Recipe())
    assert not {"from_class", "inputs", "temperature"} & set(stored)
    assert identity.as_config(recipes.Recipe(from_class=5))["from_class"] == 5
