"""Classifiers that are trained and measured under attack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import tasks, training
from lottery_jax.data import Dataset
from lottery_jax.tasks import Attack, adversarial
from lottery_jax.tasks.adversarial import _START, attacked

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MEAN, STD, SHAPE, CLASSES, WIDTH = (0.3, 0.55), (0.25, 0.4), (3, 2, 2), 4, 7
KEY = jax.random.key(3, impl="threefry2x32")
TRAIN, TEST, BATCH = 50, 30, 20


def pixels(number, seed=0):
    """Images in two colours; their corners are black and white, so that the box counts."""
    found = np.random.default_rng(seed).integers(0, 256, (number, *SHAPE))
    found[:, 0, 0], found[:, 2, 1] = 0, 255
    return found.astype(np.uint8)


def dataset(**changes):
    rng = np.random.default_rng(1)

    def split(number, seed):
        label = rng.integers(0, CLASSES, number).astype(np.int32)
        return {"image": pixels(number, seed), "label": label}

    arrays = {"train": split(TRAIN, 0), "test": split(TEST, 2)}
    own = dict(arrays=arrays, num_classes=CLASSES, shape=SHAPE, mean=MEAN, std=STD)
    return Dataset(**own | {"name": "toy", "note": None} | changes)


DATA = dataset()


def init(key):
    """Two layers of plain arrays, the weights large: attacks matter."""
    a, b = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(a, (12, WIDTH))},
        "head": {"kernel": jax.random.normal(b, (WIDTH, CLASSES))},
    }


def apply(params, images):
    hidden = images.reshape(len(images), -1) @ params["hidden"]["kernel"]
    return jax.nn.relu(hidden) @ params["head"]["kernel"]


def classification(data=DATA, **options):
    return tasks.classification(
        data,
        **{"init": init, "apply": apply} | {"batch_size": BATCH, "drop_last": True},
        **options,
    )


def with_norm(**options):
    """The same with BatchNorm; the last batch of an epoch is padded."""

    class Net(toys.NormNet):
        def __call__(self, x, train=False, weights=None):
            return super().__call__(x.reshape(len(x), -1), train, weights)

    return tasks.classification(DATA, Net(), batch_size=BATCH, **options)


def first_batch(task, step=0):
    return task.batch(task.data, task.order(KEY, jnp.int32(step)), KEY, jnp.int32(step))


# --- in NumPy -------------------------------------------------------------------------


class InNumpy:
    """The same networks and attacks, in pixels of [0, 1] and float64, gradients by hand."""

    def __init__(self, params):
        self.first, self.last = (
            np.asarray(params[name]["kernel"], np.float64)
            for name in ("hidden", "head")
        )

    def says(self, image, label):
        """Losses, answers, and the gradients of each loss in pixels and in weights."""
        x = ((image - MEAN) / STD).reshape(len(image), -1)
        hidden = np.maximum(x @ self.first, 0)
        logits = hidden @ self.last
        away = np.exp(logits - logits.max(1, keepdims=True))
        share = away / away.sum(1, keepdims=True)
        rows = np.arange(len(label))
        loss = -np.log(share[rows, label])
        d_logits = share.copy()
        d_logits[rows, label] -= 1
        d_hidden = (d_logits @ self.last.T) * (hidden > 0)
        d_image = (d_hidden @ self.first.T).reshape(image.shape) / STD
        weights = (x.T @ d_hidden / len(label), hidden.T @ d_logits / len(label))
        return loss, logits.argmax(1), d_image, weights

    def attack(self, image, label, attack, offset=None):
        found = image
        if offset is not None:
            found = np.clip(image + attack.radius * offset, 0, 1)
        for _ in range(attack.steps):
            found = found + attack.step_size * np.sign(self.says(found, label)[2])
            near = np.clip(found, image - attack.radius, image + attack.radius)
            found = np.clip(near, 0, 1)
        return found


@pytest.mark.parametrize(
    "attack",
    [
        Attack.fgsm(0.1),
        Attack.pgd(0.05, 4, random_start=False),
        Attack.pgd(0.2, 5, 0.06),
        Attack.pgd(1.0, 2, 0.7),
    ],
    ids=str,
)
def test_the_loss_and_its_gradients_are_those_of_images_attacked_in_numpy(attack):
    task = adversarial(classification(), DATA, attack)
    params, state, stream = task.init(KEY)
    batch = first_batch(task)
    rows = np.asarray(task.order(KEY, jnp.int32(0)))
    image, label = (DATA.arrays["train"][name][rows] for name in ("image", "label"))
    offset = None
    if attack.random_start:
        draw = jax.random.fold_in(KEY, _START)
        offset = jax.random.uniform(draw, image.shape, jnp.float32, -1, 1)
        offset = np.asarray(offset, np.float64)
    reference = InNumpy(params)
    moved = reference.attack(image / 255, label, attack, offset)
    assert np.abs(moved - image / 255).max() > 0.9 * attack.radius
    loss, answer, _, weights = reference.says(moved, label)
    both = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (found, (_, _, metrics)), gradients = both(params, state, stream, batch, KEY)
    np.testing.assert_allclose(found, loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], (answer != label).mean(), rtol=1e-6)
    for name, wanted in zip(("hidden", "head"), weights):
        np.testing.assert_allclose(gradients[name]["kernel"], wanted, atol=1e-4)
    clean = reference.says(image / 255, label)[0].mean()
    assert loss.mean() > clean + 0.1  # it is an attack


def test_what_is_measured_is_the_worst_of_the_first_examples_in_numpy():
    measured = Attack.pgd(0.1, 3, random_start=False)
    task = adversarial(
        classification(),
        DATA,
        None,
        measured=measured,
        examples=25,
        evaluation_batch=10,
    )
    params, state, _ = task.init(KEY)
    found = task.evaluate(params, state, task.data, KEY, "test")
    image, label = (DATA.arrays["test"][name][:25] for name in ("image", "label"))
    reference = InNumpy(params)
    loss, answer, _, _ = reference.says(image / 255, label)
    moved = reference.attack(image / 255, label, measured)
    worse, after, _, _ = reference.says(moved, label)
    wanted = {
        "loss": np.maximum(loss, worse).mean(),
        "error": ((answer != label) | (after != label)).mean(),
        "clean_error": (answer != label).mean(),
        "commonest_answer": np.bincount(answer).max() / 25,
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert wanted["error"] > wanted["clean_error"]


def test_one_step_of_the_radius_is_the_worst_case_of_a_linear_network():
    data = dataset()
    labels = {s: own | {"label": own["label"] % 2} for s, own in data.arrays.items()}
    data = data._replace(arrays=labels, num_classes=2)
    task = tasks.classification(
        data,
        init=lambda key: {"w": jax.random.normal(key, (12, 2))},
        apply=lambda p, x: x.reshape(len(x), -1) @ p["w"],
        batch_size=BATCH,
        drop_last=True,
    )
    radius = 0.15
    under = adversarial(task, data, Attack.fgsm(radius))
    params, state, stream = task.init(KEY)
    batch = first_batch(task)
    found = float(under.loss(params, state, stream, batch, KEY)[0])
    # Of two classes the loss falls with one linear function of the image: at the corner
    # of the ball and the box where that is lowest, nothing is worse.
    mean, std = (np.broadcast_to(x, SHAPE).ravel() for x in (MEAN, STD))
    w = np.asarray(params["w"], np.float64)
    own = np.asarray(batch["label"])
    x = np.asarray(batch["image"], np.float64).reshape(BATCH, -1) * std + mean
    towards = np.sign((w[:, 1 - own] - w[:, own]).T)
    corner = np.clip(x + radius * towards, 0, 1)

    def losses(p):
        margin = np.einsum("bi,ib->b", (p - mean) / std, w[:, own] - w[:, 1 - own])
        return np.log1p(np.exp(-margin))

    np.testing.assert_allclose(found, losses(corner).mean(), rtol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = np.clip(x + radius * rng.uniform(-1, 1, x.shape), 0, 1)
        assert (losses(other) <= losses(corner) + 1e-9).all()


# --- properties -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_no_attack_leaves_the_radius_or_the_range_of_pixels(seed):
    rng = np.random.default_rng(seed)
    colours = int(rng.choice([1, 3]))
    mean = tuple(rng.uniform(0, 1, colours).tolist())
    std = tuple(rng.uniform(0.05, 2, colours).tolist())
    radius, steps = (
        float(rng.choice([1 / 255, 0.03, 0.3, 1.0])),
        int(rng.integers(1, 6)),
    )
    step = float(rng.uniform(radius / steps, 2 * radius))
    attack = Attack(radius, step, steps, bool(seed % 2))
    image = rng.integers(0, 256, (16, 5, 5, colours)).astype(np.uint8)
    image[0], image[1] = 0, 255
    offset = rng.uniform(-1, 1, image.shape).astype(np.float32) if seed % 2 else None
    shown = lj.data.normalize(jnp.asarray(image), mean, std)
    found = attacked(
        lambda x: jnp.sin(40 * x), shown, attack, offset, mean=mean, std=std
    )
    moved = np.asarray(found, np.float64) * std + mean
    away = np.abs(moved - image / 255)
    rounding = 1e-6 * (1 + 1 / min(std))
    assert away.max() <= radius + rounding
    assert away.max() >= 0.5 * min(radius, step)
    assert moved.min() >= -rounding and moved.max() <= 1 + rounding
    assert found.dtype == jnp.float32 and found.shape == image.shape


def test_more_restarts_are_never_weaker():
    inner, found = classification(), []
    params, state, _ = inner.init(KEY)
    for restarts in (1, 4):
        measured = Attack.pgd(0.1, 2, 0.05, restarts=restarts)
        task = adversarial(inner, DATA, None, measured=measured)
        found.append(task.evaluate(params, state, task.data, KEY, "test"))
    weaker, stronger = found
    assert stronger["error"] >= weaker["error"] >= weaker["clean_error"]
    assert stronger["loss"] > weaker["loss"]  # some start is better
    assert stronger["clean_error"] == weaker["clean_error"]


def test_starts_of_what_is_measured_are_the_examples_own():
    """They depend on no key, on no batch, and on no other example."""
    inner = classification()
    params, state, _ = inner.init(KEY)
    found = [
        adversarial(
            inner, DATA, Attack.pgd(0.1, 2), examples=n, evaluation_batch=size
        ).evaluate(params, state, inner.data, jax.random.key(seed), "test")["loss"]
        for n, size, seed in ((30, 500, 0), (30, 7, 1), (7, 7, 0))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    rest = {s: {k: x[7:] for k, x in own.items()} for s, own in inner.data.items()}
    moved = adversarial(inner, DATA, Attack.pgd(0.1, 2))
    moved = moved.evaluate(params, state, rest, KEY, "test")["loss"]
    apart = (30 * found[0] - 7 * found[2]) / 23  # of the others, at their own places
    assert abs(apart - moved) > 1e-5  # elsewhere an example has another start


def test_a_replica_alone_is_the_same_to_the_bit():
    task = adversarial(with_norm(), DATA, Attack.pgd(0.1, 2))
    tx = optax.sgd(0.1, momentum=0.9)

    def train(ids):
        return training.train_replicas(task, tx, 4, ids, validate_every=2)

    one, three = train([1]), train([0, 1, 2])
    toys.assert_equal(
        lj.trees.rows(lj.trees.host(three.state.network), 1),
        lj.trees.rows(lj.trees.host(one.state.network), 0),
    )
    losses = three.curves.values["train_loss"][:, -1]
    assert len(set(losses.tolist())) == 3


def test_padding_disturbs_nothing():
    """The last of three batches holds ten examples, and ten of weight 0."""
    inner = with_norm()
    params, state, stream = inner.init(KEY)
    batch = first_batch(inner, 2)
    padded = np.asarray(batch["weight"]) == 0
    assert padded.sum() == 10
    for batch_norm in ("train", "evaluation"):
        task = adversarial(inner, DATA, Attack.pgd(0.1, 3), batch_norm=batch_norm)
        other = np.array(batch["image"])
        other[padded] = other[padded][::-1] + 0.1
        loss = jax.jit(task.loss)
        found = [
            loss(params, state, stream, batch | {"image": image}, KEY)
            for image in (batch["image"], jnp.asarray(other))
        ]
        toys.assert_equal(found[0], found[1])


@pytest.mark.parametrize("batch_norm", ["train", "evaluation"])
def test_the_attack_leaves_nothing_in_the_states(batch_norm):
    inner = with_norm()
    seen = []

    def loss(params, model_state, stream, batch, key):
        value, (after, stream, metrics) = inner.loss(
            params, model_state["inner"], stream, batch, key
        )
        seen.append(batch["image"])
        after = {"inner": after, "calls": model_state["calls"] + 1}
        return value, (after, stream, metrics)

    def of_inner(function):
        return lambda params, state, *rest: function(params, state["inner"], *rest)

    counted = inner._replace(
        init=lambda key: (lambda p, s, n: (p, {"inner": s, "calls": jnp.int32(0)}, n))(
            *inner.init(key)
        ),
        loss=loss,
        outputs=of_inner(inner.outputs),
        evaluate=of_inner(inner.evaluate),
    )
    attack = Attack.pgd(0.1, 3)
    task = adversarial(counted, DATA, attack, batch_norm=batch_norm)
    params, state, stream = task.init(KEY)
    batch = first_batch(task)
    _, (after, _, _) = task.loss(params, state, stream, batch, KEY)
    assert int(after["calls"]) == 1
    *_, images = seen  # those of the loss itself; the attack's are traced
    assert float(jnp.abs(images - batch["image"]).max()) > 0.1
    again = inner.loss(params, state["inner"], stream, batch | {"image": images}, KEY)
    toys.assert_equal(after["inner"], again[1][0])


def test_the_mode_of_batch_norm_changes_the_attack():
    inner = with_norm()
    params, state, stream = inner.init(KEY)
    batch = first_batch(inner)
    found = [
        float(
            adversarial(inner, DATA, Attack.fgsm(0.3), batch_norm=mode).loss(
                params, state, stream, batch, KEY
            )[0]
        )
        for mode in ("train", "evaluation")
    ]
    # The attack that climbs the trained loss is the stronger one there.
    assert found[0] > found[1]


def test_without_an_attack_it_is_the_plain_loss_to_the_bit():
    inner = with_norm()
    task = adversarial(inner, DATA, None, measured=Attack.fgsm(0.1))
    drawn, batch = inner.init(KEY), first_batch(inner)
    toys.assert_equal(task.loss(*drawn, batch, KEY), inner.loss(*drawn, batch, KEY))


def test_an_anchored_task_is_attacked_through_its_anchor():
    attack = Attack.pgd(0.1, 3)
    inner = with_norm()
    plain = adversarial(inner, DATA, attack)
    around = tasks.anchored(plain)
    inside = adversarial(tasks.anchored(inner), DATA, attack)
    params, state, stream = plain.init(KEY)
    mask = lj.masks.ones_like(params)
    mask["hidden"]["kernel"] = jnp.abs(params["hidden"]["kernel"]) > 0.2
    network = tasks.anchor(lj.Network(params, state), mask, "freeze")
    batch = first_batch(plain)

    def seen(task, params, state):
        value, (after, _, _) = task.loss(params, state, stream, batch, KEY)
        return value, after, task.evaluate(params, state, task.data, KEY, "test")

    wanted = seen(plain, params, state)
    for task in (around, inside):
        value, after, found = seen(task, *network)
        toys.assert_equal((value, after.inner, found), wanted)
    assert inside.predict is not None and inside.statistics is not None


def test_pixels_that_end_at_another_white():
    """Scans of 0 to 16: a radius of a tenth moves a stored pixel by 1.6."""
    found = lj.data.load("digits")
    inner = tasks.classification(found, lj.models.make("mlp-4", 10), batch_size=32)
    with pytest.raises(ValueError, match=r"white=255; it must be 16 or a little more"):
        adversarial(inner, found, Attack.fgsm(0.1))
    task = adversarial(inner, found, Attack.fgsm(0.1), white=16)
    images = []

    def loss(params, state, stream, batch, key):
        images.append(batch["image"])
        return inner.loss(params, state, stream, batch, key)

    task = adversarial(inner._replace(loss=loss), found, Attack.fgsm(0.1), white=16)
    drawn, batch = task.init(KEY), first_batch(task)
    task.loss(*drawn, batch, KEY)
    stored = [
        255 * (np.asarray(x) * found.std + found.mean)
        for x in (batch["image"], images[-1])
    ]
    assert stored[1].min() > -1e-3 and stored[1].max() < 16 + 1e-3
    np.testing.assert_allclose(np.abs(stored[1] - stored[0]).max(), 1.6, rtol=1e-4)


# --- what makes no sense --------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Attack.fgsm(0.0), r"radius=0.0; it must be in \(0, 1\]"),
        (lambda: Attack.fgsm(8), r"radius=8; it must be between 0 and 1"),
        (lambda: Attack.pgd(-0.1, 3), r"radius=-0.1; it must be between 0 and 1"),
        (lambda: Attack.fgsm(float("nan")), r"radius=nan; it must be between 0 and 1"),
        (lambda: Attack.fgsm("8/255"), r"radius='8/255'; it must be a number"),
        (lambda: Attack.pgd(0.1, 0), r"steps=0; it must be 1 or more"),
        (lambda: Attack.pgd(0.1, 2.0), r"steps=2.0; it must be a whole number"),
        (
            lambda: Attack.pgd(0.1, 3, 0.0),
            r"step_size=0.0; it must be 0.0333333 or more",
        ),
        (lambda: Attack.pgd(0.1, 3, 0.02), r"step_size=0.02; .* do not reach the edge"),
        (
            lambda: Attack.pgd(0.1, 3, 0.3),
            r"step_size=0.3; it must be between 0 and 0.2",
        ),
        (
            lambda: Attack.pgd(0.1, 3, random_start=False, restarts=2),
            r"restarts=2; it must be 1 without a random start",
        ),
        (lambda: Attack.pgd(0.1, 3, restarts=0), r"restarts=0; it must be 1 or more"),
        (
            lambda: Attack(0.1, 0.1, random_start=1),
            r"random_start=1; it must be True or False",
        ),
    ],
)
def test_attacks_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FGSM = Attack.fgsm(0.1)


def wrapped(task=None, data=DATA, attack=FGSM, **options):
    return adversarial(
        classification() if task is None else task, data, attack, **options
    )


OTHER = DATA._replace(arrays=DATA.arrays | {"test": dataset().arrays["train"]})
SCALED = DATA._replace(mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: wrapped(task=3), r"task=3; it must be a lottery_jax.Task"),
        (
            lambda: wrapped(attack="pgd"),
            r"attack='pgd'; it must be a tasks.Attack, or None",
        ),
        (lambda: wrapped(attack=None), r"measured=None; it must be a tasks.Attack"),
        (lambda: wrapped(measured=10), r"measured=10; it must be a tasks.Attack"),
        (
            lambda: wrapped(attack=Attack.pgd(0.1, 3, restarts=2)),
            r"attack.restarts=2; it must be 1 in training",
        ),
        (lambda: wrapped(examples=0), r"examples=0; it must be 1 or more"),
        (lambda: wrapped(batch_norm="eval"), r"batch_norm='eval'; it must be one of"),
        (lambda: wrapped(evaluation_batch=0), r"evaluation_batch=0; it must be 1"),
        (lambda: wrapped(white=100), r"white=100; it must be 255 or a little more"),
        (lambda: wrapped(white=256), r"white=256; it must be between 1 and 255"),
        (
            lambda: wrapped(data=OTHER),
            r"task.data\['test'\]\['image'\]=.*; it must be made of the data set",
        ),
        (
            lambda: wrapped(data=SCALED),
            r"task.batch: image=values from .*uint8 pixels that are normalised by mean",
        ),
        (
            lambda: wrapped(classification()._replace(outputs=None)),
            r"task.outputs=None; it must be a function",
        ),
        (
            lambda: wrapped(toys.language_model()),
            r"task.data\['train'\]\['image'\]=",
        ),
        (
            lambda: wrapped(toys.classification(), toys.dataset()),
            r"dataset='toy' \(float32\); it must be a data set of uint8 images",
        ),
        (
            lambda: wrapped(data=lj.data.load("mnist1d")),
            r"dataset='mnist1d' \(float.*\); it must be a data set of uint8 images",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_attacks_are_told_apart_by_their_numbers():
    own = Attack.pgd(np.float32(0.5), np.int64(5))
    assert own == Attack.pgd(0.5, 5) and hash(own) == hash(Attack.pgd(0.5, 5))
    assert [type(x) for x in dataclasses.astuple(own)] == [float, float, int, bool, int]
    assert Attack.pgd(0.1, 10).step_size == pytest.approx(0.025)
    assert Attack.pgd(0.1, 1).step_size == 0.1
    assert Attack.fgsm(0.1) == Attack(0.1, 0.1, 1, False, 1)
