"""What a user gives: a wrong thing is refused by name, before anything is compiled."""

import dataclasses
import functools
import inspect
import json
import re
import types
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import (
    connectivity,
    data,
    environments,
    imp,
    supermask,
    training,
    transfer,
)
from lottery_jax.connectivity import Measure, branches, points
from lottery_jax.types import Network, Task

pytestmark = pytest.mark.usefixtures("compiled_quickly")

_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: "backend_compile" in event and _compiled.append(event)
)


def refused(call, message):
    """The call is refused with a message that begins so, and compiles nothing."""
    before = len(_compiled)
    with pytest.raises(ValueError) as raised:
        call()
    assert re.match(message, str(raised.value)), str(raised.value)
    assert len(_compiled) == before, "something was compiled first"


def test_compiling_is_noticed():
    before = len(_compiled)
    jax.jit(lambda x: x * 3)(np.float32(2))
    assert len(_compiled) > before


# --- a data set of one's own ----------------------------------------------------------


def with_array(split, field, array):
    """The toy set with another array."""
    made = toys.dataset()
    arrays = made.arrays | {split: made.arrays[split] | {field: array}}
    return made._replace(arrays=arrays)


def changed(split, field, change):
    """The toy set with an array that was written to."""
    array = toys.dataset().arrays[split][field].copy()
    change(array)
    return with_array(split, field, array)


def put(place, value):
    return lambda array: array.__setitem__(place, value)


TOY = toys.dataset()
LABEL, IMAGE = TOY.arrays["train"]["label"], TOY.arrays["train"]["image"]

DATASETS = {
    "labels from 1": (
        lambda: with_array("train", "label", LABEL + 1),
        rf"arrays\['train'\]\['label'\]\[{int(np.argmax(LABEL == 3))}\]=4; it must be in "
        r"\[0, 4\), the classes of toy: they count from 0",
    ),
    "a negative label": (
        lambda: changed("test", "label", put(7, -1)),
        r"arrays\['test'\]\['label'\]\[7\]=-1; it must be in \[0, 4\)",
    ),
    "a label of no class in validation": (
        lambda: changed("validation", "label", put(39, 4)),
        r"arrays\['validation'\]\['label'\]\[39\]=4",
    ),
    "one-hot labels": (
        lambda: with_array("train", "label", np.eye(4, dtype=np.int32)[LABEL]),
        r"arrays\['train'\]\['label'\].shape=\(150, 4\); it must be .* argmax",
    ),
    "labels in a column": (
        lambda: with_array("train", "label", LABEL[:, None]),
        r"arrays\['train'\]\['label'\].shape=\(150, 1\); it must be \[examples\]",
    ),
    "float labels": (
        lambda: with_array("train", "label", LABEL.astype(np.float32)),
        r"arrays\['train'\]\['label'\].dtype=float32; it must be an integer type",
    ),
    "bool labels": (
        lambda: with_array("train", "label", LABEL > 1),
        r"arrays\['train'\]\['label'\].dtype=bool",
    ),
    "a list of labels": (
        lambda: with_array("train", "label", LABEL.tolist()),
        r"arrays\['train'\]\['label'\]=.*; it must be a NumPy array",
    ),
    "more labels than images": (
        lambda: with_array("test", "label", np.zeros(360, np.int32)),
        r"len\(arrays\['test'\]\['label'\]\)=360; it must be 60, the number of images",
    ),
    "more images than labels": (
        lambda: with_array("validation", "image", IMAGE[:41]),
        r"len\(arrays\['validation'\]\['label'\]\)=40; it must be 41",
    ),
    "a nan pixel": (
        lambda: changed("validation", "image", put((5, 2), np.nan)),
        r"arrays\['validation'\]\['image'\]\[5, 2\]=nan; it must be finite",
    ),
    "an infinite pixel": (
        lambda: changed("test", "image", put((59, 7), -np.inf)),
        r"arrays\['test'\]\['image'\]\[59, 7\]=-inf",
    ),
    "a pixel beyond float32": (
        lambda: with_array("train", "image", IMAGE.astype(np.float64) * 1e200),
        r"arrays\['train'\]\['image'\]\[0, 0\]=.*e\+(199|200); it must be finite",
    ),
    "integer images": (
        lambda: with_array("train", "image", IMAGE.astype(np.int64)),
        r"arrays\['train'\]\['image'\].dtype=int64; it must be uint8, or real",
    ),
    "complex images": (
        lambda: with_array("train", "image", IMAGE.astype(np.complex64)),
        r"arrays\['train'\]\['image'\].dtype=complex64",
    ),
    "bool images": (
        lambda: with_array("train", "image", IMAGE > 0),
        r"arrays\['train'\]\['image'\].dtype=bool",
    ),
    "images that are objects": (
        lambda: with_array("train", "image", IMAGE.astype(object)),
        r"arrays\['train'\]\['image'\].dtype=object",
    ),
    "another shape in a split": (
        lambda: with_array("test", "image", np.zeros((60, 9), np.float32)),
        r"arrays\['test'\]\['image'\].shape=\(60, 9\); it must be \[examples, 8\]",
    ),
    "another dtype in a split": (
        lambda: with_array("test", "image", np.zeros((60, 8), np.uint8)),
        r"arrays\['test'\]\['image'\].dtype=uint8; it must be float32, as in train",
    ),
    "an empty split": (
        lambda: TOY._replace(
            arrays=TOY.arrays | {"validation": {"image": IMAGE[:0], "label": LABEL[:0]}}
        ),
        r"len\(arrays\['validation'\]\['label'\]\)=0; it must be 1 or more",
    ),
    "no training split": (
        lambda: TOY._replace(arrays={"test": TOY.arrays["test"]}),
        r"arrays=\['test'\]; it must be a dict",
    ),
    "a misspelt split": (
        lambda: TOY._replace(arrays=TOY.arrays | {"val": TOY.arrays["test"]}),
        "arrays: split='val'; it must be one of train, validation, test",
    ),
    "arrays without splits": (
        lambda: TOY._replace(arrays=TOY.arrays["train"]),
        "arrays: split='image'; it must be one of train",
    ),
    "a split that is a pair": (
        lambda: TOY._replace(arrays=TOY.arrays | {"test": (IMAGE, LABEL)}),
        r"arrays\['test'\]=.*; it must be a dict of image and label",
    ),
    "no labels": (
        lambda: TOY._replace(arrays=TOY.arrays | {"test": {"image": IMAGE}}),
        r"arrays\['test'\]=\['image'\]; it must be a dict of image and label",
    ),
    "a further array": (
        lambda: with_array("train", "weight", np.ones(150)),
        r"arrays\['train'\]=\['image', 'label', 'weight'\]; .* and nothing else",
    ),
    "no arrays": (lambda: TOY._replace(arrays=None), "arrays=None; it must be a dict"),
    "one class": (
        lambda: TOY._replace(num_classes=1),
        "num_classes=1; it must be 2 or more",
    ),
    "no whole classes": (
        lambda: TOY._replace(num_classes=4.0),
        "num_classes=4.0; it must be a whole number, 2 or more",
    ),
    "fewer classes than labels": (
        lambda: TOY._replace(num_classes=3),
        r"arrays\['train'\]\['label'\]\[\d+\]=3; it must be in \[0, 3\)",
    ),
    "a shape that does not fit": (
        lambda: TOY._replace(shape=(2, 4)),
        r"arrays\['train'\]\['image'\].shape=\(150, 8\); .* since shape=\(2, 4\)",
    ),
    "a number as shape": (lambda: TOY._replace(shape=8), "shape=8; it must be a tuple"),
    "means of too many channels": (
        lambda: TOY._replace(mean=(0.0,) * 3),
        r"len\(mean\)=3; it must be 1, or 8: one for each channel",
    ),
    "a mean of nan": (
        lambda: TOY._replace(mean=(np.nan,)),
        r"mean\[0\]=nan; it must be a finite number",
    ),
    "a mean in words": (
        lambda: TOY._replace(mean="0.5"),
        r"mean\[0\]='0.5'; it must be a finite number",
    ),
    "no mean": (lambda: TOY._replace(mean=()), r"len\(mean\)=0; it must be 1, or 8"),
    "std 0": (lambda: TOY._replace(std=(0.0,)), r"std\[0\]=0.0; it must be above 0"),
    "a negative std": (
        lambda: TOY._replace(std=(1.0,) * 7 + (-1.0,)),
        r"std\[7\]=-1.0; it must be above 0",
    ),
    "std nan": (lambda: TOY._replace(std=(np.nan,)), r"std\[0\]=nan; it must be a fin"),
    "a name that is none": (lambda: TOY._replace(name=3), "name=3; it must be text"),
    "arrays alone": (lambda: TOY.arrays, "dataset=a dict; it must be a .*Dataset"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_of_no_sense_is_refused_by_split_field_value_and_place(name):
    make, message = DATASETS[name]
    dataset = make()
    model = lj.models.make("mlp-4", 4)
    refused(lambda: lj.tasks.classification(dataset, model, batch_size=10), message)


@pytest.mark.parametrize(
    "dtype", ["uint8", "float16", "bfloat16", "float32", "float64"]
)
def test_images_of_every_dtype_that_can_be_normalised_are_fine(dtype):
    arrays = {
        split: {
            "image": np.abs(fields["image"]).astype(jnp.dtype(dtype)),
            "label": fields["label"].astype(np.uint8),
        }
        for split, fields in TOY.arrays.items()
    }
    found = data.check(TOY._replace(arrays=arrays))
    assert found.arrays["test"]["image"] is arrays["test"]["image"]
    if dtype != "uint8":
        for bad in (np.nan, np.inf):
            arrays["test"]["image"][3, 1] = bad
            refused(
                lambda: data.check(TOY._replace(arrays=arrays)),
                rf"arrays\['test'\]\['image'\]\[3, 1\]={bad}",
            )


def test_numbers_of_numpy_become_those_of_python_and_arrays_are_not_copied():
    given = TOY._replace(
        num_classes=np.int64(4),
        shape=[np.int32(8)],
        mean=np.zeros(8, np.float32),
        std=np.float64(2.0),
    )
    found = data.check(given)
    assert found[1:5] == (4, (8,), (0.0,) * 8, (2.0,))
    hash(found[1:])
    assert found.arrays["train"]["image"] is IMAGE
    on_device = {
        split: {name: jnp.asarray(x) for name, x in fields.items()}
        for split, fields in TOY.arrays.items()
    }
    assert data.check(TOY._replace(arrays=on_device)).num_classes == 4


# --- a model of one's own -------------------------------------------------------------


class Dense(nn.Module):
    """One layer; `change` is what becomes of its logits."""

    classes: int = 4
    change: types.FunctionType = lambda x: x

    @nn.compact
    def __call__(self, x, train=False):
        return self.change(nn.Dense(self.classes, name="head")(x))


class Wordless(nn.Module):
    """No weights."""

    def __call__(self, x):
        return x[:, :4]


class Wider(nn.Module):
    """Other logits in evaluation."""

    @nn.compact
    def __call__(self, x, train=False):
        wide = nn.Dense(6, name="head")(x)
        return wide[:, :4] if train else wide


class Noisy(nn.Module):
    """Dropout that nothing turns off."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.Dropout(0.2, deterministic=False)(x))


class Caching(nn.Module):
    """Attention that goes on token by token."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], 2, 4)
        x = nn.MultiHeadDotProductAttention(2, decode=True, name="attention")(x)
        return nn.Dense(4, name="head")(x.reshape(x.shape[0], -1))


class Remembering(nn.Module):
    """Keeps the batch before."""

    @nn.compact
    def __call__(self, x, train=False):
        last = self.variable("last", "batch", jnp.zeros, x.shape)
        before, last.value = last.value, x
        return nn.Dense(4, name="head")(x - before)


class SownBeside(nn.Module):
    """Sows into the collection of its norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        self.sow("batch_stats", "seen", x)
        return nn.Dense(4, name="head")(x)


class Promoted(nn.Module):
    """A state that has another dtype after a step."""

    @nn.compact
    def __call__(self, x, train=False):
        seen = self.variable("seen", "mean", jnp.zeros, (), jnp.bfloat16)
        if train:
            seen.value = jnp.mean(x)
        return nn.Dense(4, name="head")(x)


def linear(key):
    return {"kernel": jax.random.normal(key, (8, 4))}


def product(params, images):
    return images @ params["kernel"]


def stateful(params, model_state, images):
    return images @ params["kernel"], model_state


def of_functions(init, apply):
    return lj.tasks.classification(TOY, init=init, apply=apply, batch_size=50)


def of_module(model):
    return lj.tasks.classification(TOY, model, batch_size=50)


MODELS = {
    "fewer logits than classes": (
        lambda: of_module(Dense(3)),
        r"model=Dense: its logits have shape \(50, 3\); it must be \(50, 4\)",
    ),
    "more logits than classes": (
        lambda: of_module(Dense(5)),
        r"model=Dense: its logits have shape \(50, 5\); it must be \(50, 4\)",
    ),
    "more logits in evaluation": (
        lambda: of_module(Wider()),
        r"model=Wider: in evaluation its logits have shape \(50, 6\)",
    ),
    "integer logits": (
        lambda: of_module(Dense(change=lambda x: x.astype(jnp.int32))),
        "model=Dense: its logits have dtype int32; it must be real",
    ),
    "complex logits": (
        lambda: of_module(Dense(change=lambda x: x + 1j)),
        "model=Dense: its logits have dtype complex64; it must be real",
    ),
    "a tuple of logits": (
        lambda: of_module(Dense(change=lambda x: (x, x))),
        r"model=Dense: its logits are \(.*\); it must be one array \(50, 4\)",
    ),
    "functions that return a tuple": (
        lambda: of_functions(linear, lambda params, images: (images[:, :4], {})),
        r"apply=.*<lambda>: its logits are \(.*\); it must be one array",
    ),
    "functions that return too few": (
        lambda: of_functions(linear, lambda params, images: images[:, :3]),
        r"apply=.*<lambda>: its logits have shape \(50, 3\)",
    ),
    "no params": (
        lambda: of_functions(lambda key: {}, lambda params, images: images[:, :4]),
        r"init: params=\{\}; it must be arrays to train",
    ),
    "params that are integers": (
        lambda: of_functions(lambda key: {"n": jnp.ones(3, jnp.int32)}, product),
        r"init: leaf 'n' of the params=int32 of shape \(3,\); it must be real",
    ),
    "params that are keys": (
        lambda: of_functions(lambda key: {"kernel": key}, product),
        r"init: leaf 'kernel' of the params=key<fry>",
    ),
    "params that are functions": (
        lambda: of_functions(lambda key: linear(key) | {"act": jax.nn.relu}, product),
        r"init: leaf 'act' of the params=.*relu; it must be an array .*eqx.filter",
    ),
    "a state of text": (
        lambda: of_functions(lambda key: (linear(key), {"mode": "on"}), stateful),
        "init: leaf 'mode' of the model state='on'; it must be an array",
    ),
    "a module without weights": (
        lambda: of_module(Wordless()),
        "model=Wordless: it has no params; there must be some to train",
    ),
    "a class": (
        lambda: of_module(Dense),
        "model=.*Dense; it must be a Linen module, an instance and no class",
    ),
    "init that is no function": (
        lambda: of_functions({"kernel": 1}, product),
        "init=a dict; it must be a function",
    ),
    "noise in evaluation": (
        lambda: of_module(Noisy()),
        'model=Noisy: Dropout_0 needs PRNG for "dropout" in evaluation',
    ),
    "a cache": (
        lambda: of_module(Caching()),
        r"model=Caching: with its collections \['cache'\] a call cannot follow another",
    ),
    "a state of each example": (
        lambda: of_module(Remembering()),
        r"model=Remembering: .*\(its collections \['last'\] grow with every call or with",
    ),
    "sown beside statistics": (
        lambda: of_module(SownBeside()),
        "model=SownBeside: collection 'batch_stats' holds 'seen', which grows",
    ),
    "a state of another dtype": (
        lambda: of_module(Promoted()),
        "model=Promoted: leaf 'seen/mean' of the model state is bfloat16 at first and",
    ),
    "a state that grows": (
        lambda: of_functions(
            lambda key: (linear(key), ()),
            lambda p, state, x: (x @ p["kernel"], (*state, x)),
        ),
        r"apply=.*: only the one that apply returns has a leaf '0'.*nnx.pop",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_does_not_fit_is_refused_by_name(name):
    call, message = MODELS[name]
    refused(call, message)


def trained(task, steps=6):
    """Two networks after some steps."""
    tx, keys = optax.sgd(0.1), lj.keys.of_replicas(0, (0, 1))
    runs = training.fresh(task, tx, keys.init, keys.noise)
    return training.train(task, tx, runs, steps)


def one_step(task):
    """The loss of one batch, and its gradient."""
    params, state, stream = jax.jit(task.init)(jax.random.key(0))
    batch = task.batch(task.data, jnp.arange(10), jax.random.key(1), jnp.int32(0))
    loss = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (value, _), gradient = loss(params, state, stream, batch, jax.random.key(2))
    return value, gradient


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_logits_of_half_precision_are_fine(dtype):
    task = toys.classification(Dense(change=lambda x: x.astype(dtype)), batch_size=10)
    half, whole = (one_step(t) for t in (task, toys.classification(Dense())))
    np.testing.assert_allclose(half[0], whole[0], rtol=0.02)
    for a, b in zip(*map(jax.tree.leaves, (half[1], whole[1]))):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02)


def test_a_table_that_a_function_closes_over_is_a_constant_and_no_weight():
    table = np.linspace(-1, 1, 8, dtype=np.float32)
    closed = of_functions(linear, lambda p, x: (x * table[None]) @ p["kernel"])
    made = toys.dataset()
    arrays = {
        split: fields | {"image": fields["image"] * table}
        for split, fields in made.arrays.items()
    }
    scaled = lj.tasks.classification(
        made._replace(arrays=arrays), init=linear, apply=product, batch_size=50
    )
    toys.assert_close(one_step(closed), one_step(scaled))


# --- what a module leaves behind ------------------------------------------------------


class Plain(nn.Module):
    """Two layers around Flax's BatchNorm; subclasses leave something behind."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = self.leave(nn.relu(x))
        return nn.Dense(4, name="head")(x)

    def leave(self, x):
        return x


class Intermediates(Plain):
    """Sows where Flax suggests it."""

    def leave(self, x):
        self.sow("intermediates", "seen", x)
        return x


class OwnCollection(Plain):
    """Sows into a collection that `init` makes."""

    def leave(self, x):
        self.sow("metrics", "mean", jnp.mean(x))
        self.sow("metrics", "size", x.shape[0])
        return x


class Perturbed(Plain):
    """A perturbation has a row for every example."""

    def leave(self, x):
        return self.perturb("tap", x)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Intermediates(), OwnCollection(), Perturbed()])
def test_what_a_module_only_leaves_behind_changes_nothing(model):
    # Padded batches and statistics: all as if nothing was left.
    task, plain = toys.classification(model), toys.classification(Plain())
    assert task.statistics is not None and set(task.shapes[1]) == {"batch_stats"}
    toys.assert_equal(one_step(task), one_step(plain))


@pytest.mark.slow
def test_a_study_and_a_path_of_networks_that_sow():
    task, plan = toys.classification(OwnCollection()), imp.Plan(6, arms=("ticket",))
    study = imp.run(task, optax.sgd(0.1), plan, levels=1, replicas=2)
    assert np.isfinite(study.records["test_loss"][1]).all()
    measure = Measure(3, "recompute", ("test",), statistics_batches=2)
    stack = jax.tree.map(lambda x: x[0], study.rewound)
    path = connectivity.paths(task, stack, [(0, 1)], measure)
    assert np.isfinite(path.loss).all()


class Spectral(nn.Module):
    """Spectral norm keeps vectors that go on from step to step."""

    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.SpectralNorm(nn.Dense(4, name="head"))
        return layer(x, update_stats=train)


class Summing(nn.Module):
    """Sown values that are added up keep their shape: they are a state."""

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            add = dict(reduce_fn=jnp.add, init_fn=lambda: jnp.float32(0))
            self.sow("total", "steps", jnp.float32(1), **add)
        else:
            self.variable("total", "steps", lambda: jnp.float32(0))
        return nn.Dense(4, name="head")(x)


@pytest.mark.slow
def test_collections_that_keep_their_shapes_are_carried():
    state = trained(of_module(Spectral())).state.model_state["batch_stats"]
    first = of_module(Spectral()).init(jax.random.key(0))[1]["batch_stats"]
    assert jax.tree.structure(state) == jax.tree.structure(first)
    u = next(x for path, x in lj.trees.by_path(state).items() if path.endswith("/u"))
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1, rtol=1e-4)
    task = of_module(Summing())
    params, state, stream = task.init(jax.random.key(0))
    batch = task.batch(task.data, jnp.arange(10), jax.random.key(1), jnp.int32(0))
    for step in (1, 2):
        _, (state, _, _) = task.loss(params, state, stream, batch, jax.random.key(2))
        assert state["total"]["steps"] == step


class NamedNoise(nn.Module):
    """Noise that is drawn under names of its own, beside dropout."""

    names: tuple[str, ...] = ("dropout", "drop_path")

    @nn.compact
    def __call__(self, x, train=False):
        for name in self.names:
            drop = nn.Dropout(0.5, deterministic=not train, rng_collection=name)
            x = drop(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(4, name="head")(x)


@pytest.mark.parametrize("names", [("dropout",), ("drop_path", "noise")])
def test_statistics_are_recomputed_with_noise_of_any_name(names):
    task = toys.classification(NamedNoise(names))
    params, state, _ = jax.jit(task.init)(jax.random.key(0))
    rows = points.statistics_slice(task, 3)
    recomputed = jax.jit(lambda p, s: points.recompute(task, p, s, rows))
    found = recomputed(params, state)["batch_stats"]["norm"]
    # The very same noise at other weights and with another state to begin with.
    other = jax.tree.map(lambda x: x + 1, (params, state))
    toys.assert_equal(recomputed(*other)["batch_stats"]["norm"], found)
    # Each draw keeps half and doubles it: the mean stays, second moments double.
    images = task.data["train"]["image"][np.asarray(rows).ravel()]
    square = (images**2).mean(0) * 2 ** len(names)
    own = found["var"] + found["mean"] ** 2
    np.testing.assert_allclose(own.mean(), square.mean(), rtol=0.2)


def test_noise_of_two_names_is_drawn_apart():
    both = NamedNoise(("dropout", "noise"))
    model = lj.tasks._models.linen(both, (64,), False)
    ones = jnp.ones((50, 64))
    params, state = jax.jit(model.init)(jax.random.key(0))
    with nn.intercept_methods(_dropouts := Outputs()):
        model.apply(params, state, ones, train=True, key=jax.random.key(1))
    first, second = (np.asarray(x) != 0 for x in _dropouts.seen)
    # Were they the same, all that survives one would survive the other.
    assert 0.4 < second[first].mean() < 0.6


class Outputs:
    """Notes what dropout lets through."""

    def __init__(self):
        self.seen = []

    def __call__(self, call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            self.seen.append(out)
        return out


# --- statistics beyond the networks ---------------------------------------------------


@functools.cache
def normed():
    """A task with statistics, and two networks."""
    task = toys.classification()
    like = jax.tree.map(
        lambda x: np.zeros((2, *x.shape), x.dtype), Network(*task.shapes[:2])
    )
    return task, like


OUTSIDE, INSIDE = (-0.5, 0.0, 1.0), (0.0, 0.5, 1.0)


def interpolated(alphas):
    return Measure(alphas, "interpolate", ("test",))


BEYOND = {
    "paths": lambda task, stack: connectivity.paths(
        task, stack, [(0, 1)], interpolated(OUTSIDE), extrapolate=True
    ),
    "error_along_path": lambda task, stack: connectivity.error_along_path(
        task,
        *(lj.trees.rows(stack, i) for i in (0, 1)),
        interpolated(OUTSIDE),
        extrapolate=True,
    ),
    "barrier_matrix": lambda task, stack: connectivity.barrier_matrix(
        task, stack, interpolated(OUTSIDE), extrapolate=True
    ),
    "evaluate_many": lambda task, stack: connectivity.evaluate_many(
        task, stack, [[0, 1]], [[1.5, -0.5]], interpolated(3)
    ),
    "evaluate_many, no mean": lambda task, stack: connectivity.evaluate_many(
        task, stack, [[0, 1]], [[1.0, 1.0]], interpolated(3)
    ),
    "plane": lambda task, stack: connectivity.plane(
        task, *(lj.trees.rows(stack, i) for i in (0, 1, 1)), interpolated(3)
    ),
    "error_along_curve": lambda task, stack: connectivity.error_along_curve(
        task,
        *(lj.trees.rows(stack, i) for i in (0, 1)),
        (lj.trees.rows(stack, 0).params,),
        interpolated(3),
        kind="bezier",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_statistics_are_interpolated_between_the_networks_alone(name):
    task, stack = normed()
    refused(lambda: BEYOND[name](task, stack), "batch_norm='interpolate': ")


def test_a_curve_ends_at_its_ends():
    for t in (-0.1, 1.5, np.nan):
        refused(
            lambda t=t: lj.tasks.coefficients("bezier", t), f"t={t}; it must be bet"
        )


def test_beyond_the_networks_statistics_are_recomputed_or_there_are_none():
    task, stack = normed()
    points.check_between(stack.model_state, "recompute", np.array([[1.5, -0.5]]))
    points.check_between({}, "interpolate", np.array([[1.5, -0.5]]))
    thirds = np.full((1, 3), 1 / 3, np.float32)
    points.check_between(stack.model_state, "interpolate", thirds)


# --- layers that lose their last weight -----------------------------------------------


def toy_study(levels, chain=None, arms=("ticket",), **options):
    task = toys.classification(lj.models.make("mlp-6", 4))
    chain = imp.Chain(densities=imp.Geometric(0.9)) if chain is None else chain
    plan = imp.Plan(steps=4, chains=(chain,), arms=arms)
    return imp.run(task, optax.sgd(0.1), plan, levels=levels, replicas=2, **options)


class HeadFirst:
    """A score by which the head goes first, before all of the hidden layer."""

    def __call__(self, key, inputs):
        score = jax.tree.map(jnp.abs, inputs.trained)
        head = jax.tree.map(lambda x: x - 100, score["head"])
        return score | {"head": head}


@pytest.mark.slow
def test_a_layer_that_loses_its_last_weight_is_said_once_and_recorded(tmp_path):
    chain = imp.Chain(densities=imp.Geometric(0.4), score=HeadFirst())
    arms = ("ticket", "random_mask")  # 48 + 24 weights: the head goes at level 1
    with pytest.warns(RuntimeWarning) as told:
        study = toy_study(2, chain, arms, where=lj.Where(folder=tmp_path))
    said = [str(w.message) for w in told if "last weight" in str(w.message)]
    assert len(said) == 1 and said[0].startswith("level 1: layers have lost their last")
    for arm in arms:
        for replica in (0, 1):
            text = f"chain 'imp', arm '{arm}', replica {replica}: head/kernel"
            assert text in said[0]
    expected = [
        imp.Emptied("imp", arm, replica, 1, "head/kernel")
        for arm in arms
        for replica in (0, 1)
    ]
    assert study.emptied == expected
    assert study.records["alive"][1][0, 0].tolist() == [[72, 43, 26]] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = toy_study(2, chain, arms, where=lj.Where(folder=tmp_path))
    assert again.emptied == expected


def test_levels_at_which_no_weight_is_left_are_refused_at_the_start():
    # 72, 7, 1, then 1 - round(0.9) = 0.
    refused(
        lambda: toy_study(4),
        "levels=4: of the 72 prunable weights the chain 'imp' would keep none at level "
        "3; levels must be at most 2",
    )
    layerwise = imp.Chain(densities=imp.Linear(0.3), scope="layerwise")
    refused(lambda: toy_study(4, layerwise), "levels=4 .* levels can be at most 3")


# --- every argument of every entrance -------------------------------------------------


def plain_task():
    return toys.classification(lj.models.make("mlp-6", 4))


@functools.cache
def given():
    """A task, an optimizer, keys, and a stack of two networks; nothing is trained."""
    task, tx = plain_task(), optax.sgd(0.1)
    keys = lj.keys.of_replicas(0, (0, 1))
    params, state, _ = task.shapes
    stack = jax.tree.map(
        lambda x: np.zeros((2, *x.shape), x.dtype), Network(params, state)
    )
    mask = jax.tree.map(lambda x: np.ones(x.shape, bool), stack.params)
    opt_state = jax.tree.map(lambda x: x, jax.eval_shape(tx.init, params))
    train_state = lj.TrainState(stack.params, {}, (), opt_state, mask)
    runs = training.Runs(train_state, keys.noise, np.zeros(2, int), np.zeros(2, int))
    one = lj.trees.rows(stack, 0)
    found = [
        [lj.tickets.Ticket(lj.trees.rows(mask, i), one.params, {}, {}) for i in (0, 1)]
    ]
    return types.SimpleNamespace(**locals())


_NO_TASK = [
    (lambda: lj.tasks.classification, "task=.*classification; it must be a .*Task"),
    (lambda: TOY, "task=a Dataset; it must be a lottery_jax.Task"),
]
_NO_TX = [
    (lambda: optax.adam, "tx=.*adam; it must be an optax.GradientTransformation"),
    (lambda: 1e-3, "tx=0.001; it must be an optax"),
]
_NO_WHERE = [("runs/one", "where='runs/one'; it must be a lottery_jax.Where")]
_NO_START = [
    (lambda: given().one.params, "start=a dict; it must be a .*Network"),
    (
        lambda: given().one._replace(params={"w": np.ones(3)}),
        "start: its leaves",
    ),
    (
        lambda: jax.tree.map(lambda x: x[..., :1], given().one),
        "start: leaf 'params/dense_0/bias' has shape",
    ),
    (
        lambda: jax.tree.map(lambda x: np.stack([x] * 7), given().one),
        r"start: leaf 'params/dense_0/bias' has shape \(7, .* one entry per replica",
    ),
    (
        lambda: jax.tree.map(lambda x: x.astype(int), given().one),
        "start: leaf 'params/dense_0/bias' has dtype int64; it must be float",
    ),
]

_NO_REPLICAS = [
    (0, "replicas=0; it must be 1 or more, how many, or a tuple of ids"),
    (2.0, "replicas=2.0; it must be a whole number, 1 or more, how many"),
    (True, "replicas=True; it must be a whole number"),
    ("3", "replicas='3'; it must be a whole number"),
    ([0.5], "replicas=0.5; it must be a whole number"),
    ([0, 0], r"replicas=\(0, 0\); there must be some, all different"),
    ([-1], "replicas=-1; it must be between 0 and"),
    ([2**31], "replicas=2147483648; it must be between 0 and"),
    ((), r"replicas=\(\); there must be some"),
]
_NO_STACK = [
    (lambda: given().stack.params, "networks=a dict; it must be a lottery_jax.Network"),
    (
        lambda: given().one._replace(params={"w": np.float32(1)}),
        r"networks: leaf 'params/w'=\(\); it must be a stack",
    ),
    (
        lambda: given().stack._replace(model_state={"mean": np.zeros(2)}),
        "networks: leaf 'model_state/mean' is one too many; the networks of this task",
    ),
    (
        lambda: given().one,
        "networks: leaf 'params/dense_0/kernel'=.*; it must be a stack",
    ),
    (
        lambda: jax.tree.map(lambda x: x[..., :1], given().stack),
        r"networks: shape of leaf 'params/dense_0/bias'=\(1,\); it must be \(6,\)",
    ),
]
_NO_SPLIT = [
    ("tset", r"split='tset'; it must be one that the task has: its data holds \["),
    (3, "split=3; it must be the name of a split"),
]
_NO_MEASURE = [
    (30, "measure=30; it must be a connectivity.Measure"),
    (lambda: Measure(splits="test"), "splits='test'; it must be a tuple of names"),
    (lambda: Measure(splits=("tset",)), "split='tset'; it must be one that"),
    (lambda: Measure(splits=()), r"splits=\(\); there must be some"),
    (lambda: Measure(batch_norm="reset"), "batch_norm='reset'; it must be one of"),
    (
        lambda: Measure(statistics_batches=2.0),
        "statistics_batches=2.0; it must be a wh",
    ),
    (lambda: Measure(statistics_batches=0), "statistics_batches=0; it must be 1 or"),
]
_ALPHAS = [
    (lambda: Measure(alphas=1), "alphas=1; it must be 2 or more"),
    (lambda: Measure(alphas=3.0), "alphas=3.0; it must be a whole number, 2 or more"),
    (lambda: Measure(alphas="30"), "alphas='30'; it must be a whole number"),
    (lambda: Measure(alphas=(0.0, 1.5, 1.0)), "alpha=1.5 lies outside"),
]
_NO_NETWORK = [(lambda: given().one.params, "{name}=a dict; it must be a .*Network")]


def _plan(**changes):
    return lambda: dataclasses.replace(imp.Plan(steps=10), **changes)


def _chain(**changes):
    return _plan(chains=(dataclasses.replace(imp.Chain(), **changes),))


_NO_PLAN = [
    (10, "plan=10; it must be an imp.Plan"),
    (_plan(steps=1e1), "steps=10.0; it must be a whole number, 1 or more"),
    (_plan(steps=True), "steps=True; it must be a whole number"),
    (_plan(steps="2ep"), "steps='2ep'; it must be a whole number"),
    (_plan(rewind_step="2ep"), "rewind_step='2ep'; it must be a whole number"),
    (_plan(rewind_step=2.0), "rewind_step=2.0; it must be a whole number"),
    (_plan(rewind_step=10), r"rewind_step=10 lies beyond the run; .*\[0, 10\)"),
    (_plan(validate_every=0), "validate_every=0; it must be 1 or more"),
    (_plan(validate_every=None), "validate_every=None; it must be a whole number"),
    (_plan(chains=imp.Chain()), "chains=a Chain; it must be a tuple of imp.Chain"),
    (_plan(chains=("imp",)), "chains='imp'; it must be a tuple of imp.Chain"),
    (_plan(arms="ticket"), "arms='ticket'; it must be a tuple of names"),
    (_plan(arms=(0,)), r"arms=\(0,\); it must be a tuple of names"),
    (_plan(level_optimizer=None), "level_optimizer=None; it must be one of"),
    (_plan(random_scope=2), "random_scope=2; it must be one of"),
    (_chain(name=3), "name=3; it must be text"),
    (_chain(densities=0.2), "densities=0.2; it must be a Geometric or a Linear"),
    (_chain(densities=imp.Geometric("0.2")), "fraction='0.2'; it must be a number"),
    (_chain(densities=imp.Linear(True)), "of_original=True; it must be a number"),
    (_chain(densities=imp.Geometric(by_layer=0.1)), "by_layer=0.1; it must be pairs"),
    (_chain(densities=imp.Geometric(by_layer=(("a",),))), "by_layer=.*must be pairs"),
    (_chain(one_shot="yes"), "one_shot='yes'; it must be True or False"),
    (_chain(rewind_step="1ep"), "rewind_step='1ep'; it must be a whole number"),
    (_chain(score=3), "score=3; it must be one of"),
]


def _analysis(**changes):
    return lambda: dataclasses.replace(connectivity.Plan(steps=10), **changes)


_NO_ANALYSIS = [
    (_plan(), "plan=a Plan; it must be a connectivity.Plan"),
    (_analysis(steps=1e1), "steps=10.0; it must be a whole number"),
    (_analysis(rewind_steps=3), "rewind_steps=3; it must be a tuple of steps"),
    (_analysis(rewind_steps=("1ep",)), "rewind_steps='1ep'; it must be a whole number"),
    (_analysis(rewind_steps=(10,)), r"rewind_steps=\(10,\); there must be some"),
    (_analysis(branches=2.0), "branches=2.0; it must be a whole number, 2 or more"),
    (_analysis(batch_norm="recompute"), "batch_norm='recompute'; it must be a tuple"),
    (_analysis(alphas=(0, 1)), r"alphas=\(0, 1\); it must be a whole number, 2 or"),
    (_analysis(splits="test"), "splits='test'; it must be a tuple of names"),
    (_analysis(splits=("tset",)), "split='tset'; it must be one that the task has"),
    (_analysis(statistics_batches=0), "statistics_batches=0; it must be 1 or more"),
    (_analysis(schedules="continued"), "schedules='continued'; it must be a tuple"),
    (_analysis(every=0), "every=0; it must be 1 or more"),
]


def _rigl(density=0.5, **options):
    return lambda: lj.dynamic.rigl(density, 2, 1, **options)


_NO_RULE = [
    (lambda: lj.dynamic.gradual_magnitude(0.5, 0, 4, 2), "rule: acts at step 4; it mu"),
    (lambda: lj.dynamic.rigl(0.5, 5, 3), "rule: end=5; it must end before stop=4"),
    (
        _rigl(granularity=lj.granularity.Block((4, 4))),
        r"granularity=Block\(\(4, 4\)\): 'dense_0/kernel', .* has 6 outputs, which 4 does",
    ),
    (
        _rigl(granularity=lj.granularity.NofM(2, 4), scope="uniform"),
        "n_of_m: 'head/kernel', .* divisible by m=4; name the leaf",
    ),
    (
        _rigl(0.01, granularity=lj.granularity.Channel()),
        "density=0.01; it must be so large that",
    ),
    (_rigl(exclude="nothing"), "pattern 'nothing' matches no leaf"),
    (lambda: _rigl()()._replace(every=2), "rule: was changed since it was made"),
]


def _runs(**changes):
    return lambda: given().runs._replace(**changes)


_NO_SWEEP = [
    (0.1, "sweep=0.1; it must be values by the names of hyperparameters"),
    ({}, "sweep={}; it must be values by the names"),
    ({"learning_rate": 0.1}, r"sweep\['learning_rate'\]=0.1; it must be a list"),
    ({"learning_rate": []}, r"sweep\['learning_rate'\]=\[\]; it must be some numbers"),
    ({"learning_rate": [1, 1]}, r"sweep\['learning_rate'\]=.*; it must be some .*diff"),
    (
        {"learning_rate": ["1"]},
        r"sweep\['learning_rate'\]\[0\]='1'; it must be a finite",
    ),
    ({"learning_rate": [1, 1e60]}, r"sweep\['learning_rate'\] in float32\[1\]=inf"),
    ({"replica": [1]}, "sweep='replica'; it must be a name that results do not have"),
    ({"learning_rate": [1]}, "tx=a Grad.*; it must be a function of learning_rate"),
]
PROJECTS = lj.models.make("mlp-3", 4, head="projection")


ENTRANCES = {
    "imp.run": (
        imp.run,
        lambda g: dict(task=g.task, tx=g.tx, plan=imp.Plan(steps=10), levels=1),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "plan": _NO_PLAN,
            "levels": [
                (-1, "levels=-1; it must be 0 or more"),
                (2.0, "levels=2.0; it must be a whole number, 0 or more"),
                (True, "levels=True"),
            ],
            "replicas": _NO_REPLICAS,
            "start": _NO_START,
            "metadata": [
                ("mnist", "metadata='mnist'; it must be a dict that JSON can hold"),
                ({"rate": np.ones(2)}, r"metadata\['rate'\]=.*JSON can hold"),
                ({1: 2}, "metadata=.*named by text"),
            ],
            "weights": [("kept", "weights='kept'; it must be one of stored, digest")],
            "sweep": _NO_SWEEP,
            "where": _NO_WHERE,
        },
    ),
    "imp.retrain": (
        imp.retrain,
        lambda g: dict(
            task=g.task,
            tx=g.tx,
            plan=imp.Plan(steps=10, arms=("ticket",)),
            found=g.found,
            level=1,
            replicas=2,
        ),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "plan": _NO_PLAN,
            "found": [
                (lambda: given().found[0][0], "found=a Ticket; it must be a list of"),
                (lambda: given().found[0], "found=a Ticket; it must be a list of tick"),
                ([["a.safetensors"] * 2], "found='a.safetensors'; it must be a list"),
                ([[]], "found: there must be a ticket for each of 1 chains"),
            ],
            "level": [(1.0, "level=1.0; it must be a whole number, 0 or more")],
            "replicas": _NO_REPLICAS,
            "dense": [([1], "dense=1; it must be a list of tickets for each chain")],
            "sweep": _NO_SWEEP,
            "where": _NO_WHERE,
        },
    ),
    "transfer.graft": (
        transfer.graft,
        lambda g: dict(ticket=g.found[0][0], task=g.task, key=g.keys.init[0]),
        {
            "ticket": [
                (3, "ticket=3; it must be a lottery_jax.tickets.Ticket"),
                (lambda: given().one, "ticket=a Network; it must be a lottery_jax.tic"),
                (
                    lambda: given().found[0][0]._replace(params={"w": np.ones(3)}),
                    "ticket.params must fit the task in all but its head",
                ),
            ],
            "task": _NO_TASK,
            "key": [(0, "key=int; it must be keys of threefry2x32")],
        },
    ),
    "transfer.grafted": (
        transfer.grafted,
        lambda g: dict(found=g.found, task=g.task, replicas=2),
        {
            "found": [
                (lambda: given().found[0], "found=a Ticket; it must be a list of tick"),
                ([["a.safetensors"] * 2], "found='a.safetensors'; it must be a list"),
                ([[]], "found: a chain has 0 tickets; it must be 2, one for each"),
                (
                    lambda: [[given().found[0][0]._replace(model_state={"n": 1})] * 2],
                    "ticket.model_state must fit the task in all but its head",
                ),
            ],
            "task": _NO_TASK,
            "seed": [],  # what it may be is for the keys to say
            "replicas": _NO_REPLICAS,
        },
    ),
    "data.grey28": (
        data.grey28,
        lambda g: dict(dataset=TOY),
        {
            "dataset": [
                (lambda: TOY.arrays, "dataset=a dict; it must be a .*Dataset"),
                (lambda: TOY, r"dataset: examples of toy=float32 of shape \(8,\)"),
            ]
        },
    ),
    "data.colour32": (
        data.colour32,
        lambda g: dict(dataset=TOY),
        {
            "dataset": [
                (lambda: TOY.arrays, "dataset=a dict; it must be a .*Dataset"),
                (lambda: TOY, r"dataset: examples of toy=float32 of shape \(8,\)"),
            ]
        },
    ),
    "lj.train": (
        lj.train,
        lambda g: dict(task=g.task, tx=g.tx, steps=4),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "steps": [
                (0, "steps=0; it must be 1 or more"),
                (1e3, "steps=1000.0; it must be a whole number, 1 or more"),
                ("2ep", "steps='2ep'; it must be a whole number"),
            ],
            "replicas": _NO_REPLICAS,
            "seed": [],  # what it may be is for the keys to say
            "validate_every": [(0, "validate_every=0; it must be 1 or more")],
            "keep": [
                ([2.5], r"keep=\[2.5\]; it must be steps, whole numbers"),
                ([5], r"keep=5; it must be in \[0, 4\], the steps of the runs"),
                ("last", "keep='last'; it must be steps"),
            ],
            "rule": [
                (
                    lj.dynamic.gradual_magnitude,
                    "rule=.*it must be a dynamic.MaskUpdate",
                ),
                *_NO_RULE,
            ],
            "start": _NO_START,
            "sweep": _NO_SWEEP,
            "where": _NO_WHERE,
        },
    ),
    "training.train": (
        training.train,
        lambda g: dict(task=g.task, tx=g.tx, runs=g.runs, stop=4),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "runs": [
                (lambda: given().train_state, "runs=a TrainState; it must be a .*Runs"),
                (_runs(state=3), "runs.state=3; it must be a TrainState"),
                (
                    lambda: given().runs._replace(
                        state=given().train_state._replace(
                            model_state={"n": np.ones(2)}
                        )
                    ),
                    "runs.state: leaf 'model_state/n' is one too many",
                ),
                (_runs(noise=np.zeros(2)), "runs.noise=ndarray of shape .* typed keys"),
                (_runs(joins=np.array([0, 0.5])), "joins=ndarray .*whole numbers"),
                (
                    _runs(joins=np.array([0, 4])),
                    r"joins=4; runs must start in \[0, 4\)",
                ),
                (_runs(offset=np.zeros(3, int)), r"offset has shape \(3,\)"),
                (_runs(hyper=[0.1]), "hyper=.*; it must be values .2. by the names"),
                (_runs(hyper={"x": [0.1]}), r"hyper\['x'\].shape=\(1,\); it must be"),
                (
                    _runs(hyper={"x": [0.1, 0.1]}),
                    "tx=a Grad.*; it must be a function of x",
                ),
            ],
            "stop": [(4.0, "stop=4.0; it must be a whole number, 1 or more")],
            "every": [(0, "every=0; it must be 1 or more")],
            "marks": [
                (2, "marks=2; it must be a tuple"),
                ([1.5], "marks=1.5; it must"),
            ],
            "keep": [([9], r"keep=9; it must be in \[0, 4\]")],
            "validate": [("test", "validate='test'; it must be True or False")],
            "rule": [(5, "rule=5; it must be a dynamic.MaskUpdate"), *_NO_RULE],
            "stage": [(1, "stage=1; it must be text")],
            "where": _NO_WHERE,
            "part_of": [("moment", "part_of='moment'; it must be a function or None")],
        },
    ),
    "training.fresh": (
        training.fresh,
        lambda g: dict(task=g.task, tx=g.tx, init=g.keys.init, noise=g.keys.noise),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "init": [
                (0, "init=0; it must be typed keys"),
                (np.zeros(2), "init=ndarray"),
            ],
            "noise": [
                (lambda: given().keys.init[:1], r"noise.shape=\(1,\); it must be")
            ],
            "start": _NO_START,
            "hyper": [
                ({"x": [0.1]}, r"hyper\['x'\].shape=\(1,\); it must be \(2,\)"),
                ({"x": [0.1, None]}, r"hyper\['x'\]\[1\]=None; it must be a finite"),
            ],
            "where": _NO_WHERE,
        },
    ),
    "training.evaluate": (
        training.evaluate,
        lambda g: dict(task=g.task, networks=g.stack),
        {
            "task": _NO_TASK,
            "networks": _NO_STACK,
            "split": _NO_SPLIT,
            "where": _NO_WHERE,
        },
    ),
    "connectivity.run": (
        connectivity.run,
        lambda g: dict(task=g.task, tx=g.tx, plan=connectivity.Plan(steps=10)),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "plan": _NO_ANALYSIS,
            "replicas": _NO_REPLICAS,
            "start": _NO_START,
            "where": _NO_WHERE,
        },
    ),
    "connectivity.paths": (
        connectivity.paths,
        lambda g: dict(
            task=g.task, networks=g.stack, pairs=[(0, 1)], measure=Measure(3)
        ),
        {
            "task": _NO_TASK,
            "networks": _NO_STACK,
            "pairs": [
                ((0, 1), r"pairs=\(0, 1\); it must be pairs of networks"),
                ([(0.0, 1.0)], "pairs=.*; it must be pairs of networks"),
                ([(0, 2)], r"pairs=\[\[0, 2\]\]; there must be some, of networks in"),
            ],
            "measure": _NO_MEASURE + _ALPHAS,
            "masks": [],  # by leaf, in tests of connectivity
            "projection": [("both", "projection='both'; it must be one of")],
            "extrapolate": [("yes", "extrapolate='yes'; it must be True or False")],
            "where": _NO_WHERE,
        },
    ),
    "connectivity.error_along_path": (
        connectivity.error_along_path,
        lambda g: dict(task=g.task, a=g.one, b=g.one, measure=Measure(3)),
        {
            "task": _NO_TASK,
            "a": _NO_NETWORK,
            "b": _NO_NETWORK,
            "measure": _NO_MEASURE + _ALPHAS,
            "masks": [],
            "extrapolate": [(1, "extrapolate=1; it must be True or False")],
            "chunk": [(0.5, "chunk=0.5; it must be a whole number")],
        },
    ),
    "connectivity.plane": (
        connectivity.plane,
        lambda g: dict(task=g.task, a=g.one, b=g.one, c=g.one, measure=Measure()),
        {
            "task": _NO_TASK,
            "a": _NO_NETWORK,
            "b": _NO_NETWORK,
            "c": _NO_NETWORK,
            "measure": _NO_MEASURE,
            "size": [(1, "size=1; it must be 2 or more")],
            "margin": [(-1.0, "margin=-1.0; it must be 0 or more")],
            "where": _NO_WHERE,
        },
    ),
    "connectivity.error_along_curve": (
        connectivity.error_along_curve,
        lambda g: dict(
            task=g.task,
            a=g.one,
            b=g.one,
            bends=(g.one.params,),
            measure=Measure(3),
            kind="bezier",
        ),
        {
            "task": _NO_TASK,
            "a": _NO_NETWORK,
            "b": _NO_NETWORK,
            "bends": [(lambda: given().one.params, "bends=a dict; it must be a tuple")],
            "measure": _NO_MEASURE + _ALPHAS,
            "kind": [("spline", "kind='spline'; it must be one of bezier, polygon")],
            "where": _NO_WHERE,
        },
    ),
    "connectivity.evaluate_many": (
        connectivity.evaluate_many,
        lambda g: dict(
            task=g.task,
            networks=g.stack,
            which=[[0, 1]],
            weights=[[0.5, 0.5]],
            measure=Measure(),
        ),
        {
            "task": _NO_TASK,
            "networks": _NO_STACK,
            "which": [
                ([[0.5, 1]], "which.dtype=float64; it must be that of whole numbers"),
                ([[0, 2]], r"which names networks outside of \[0, 2\)"),
            ],
            "weights": [
                ([["a", "b"]], "weights.dtype=.*; it must be that of real numbers"),
                ([[np.nan, 1.0]], r"weights\[0, 0\]=nan; it must be finite"),
                ([[1.0]], r"which has shape \(1, 2\) and weights \(1, 1\)"),
            ],
            "measure": _NO_MEASURE,
            "group": [(0, "group=0; it must be 1 or more")],
            "rows": [(1.5, "rows=1.5; it must be a whole number")],
            "where": _NO_WHERE,
        },
    ),
    "connectivity.predictions": (
        connectivity.predictions,
        lambda g: dict(task=g.task, networks=g.stack),
        {
            "task": _NO_TASK,
            "networks": _NO_STACK,
            "split": _NO_SPLIT,
            "where": _NO_WHERE,
        },
    ),
    "branches.train_trunk": (
        branches.train_trunk,
        lambda g: dict(
            task=g.task, tx=g.tx, init=g.keys.init, noise=g.keys.noise, steps=(0,)
        ),
        {
            "task": _NO_TASK,
            "tx": _NO_TX,
            "init": [(0, "init=0; it must be typed keys")],
            "noise": [(0, "noise=0; it must be typed keys")],
            "steps": [
                (3, "steps=3; it must be a tuple"),
                ((0.5,), "steps=0.5; it must be a whole number"),
                ((-1,), r"steps=\(-1,\); there must be some, 0 or more"),
            ],
            "start": _NO_START,
            "every": [(0, "every=0; it must be 1 or more")],
            "where": _NO_WHERE,
        },
    ),
    "environments.adapted": (
        environments.adapted,
        lambda g: dict(
            reset=lambda key, params: (jnp.zeros(2), 0),
            step=lambda key, state, action, params: (jnp.zeros(2), 0, 1, False, {}),
            params=None,
            name="still",
            actions=2,
            limit=5,
            low=0.0,
            best=5.0,
        ),
        {
            "reset": [(3, "reset=3; it must be a function")],
            "step": [("step", "step='?step'?; it must be a function")],
            "params": [([1], r"params=\[1\]; it must be hashable")],
            "name": [(3, "name=3; it must be the name of an environment")],
            "actions": [(2.0, "still: actions=2.0; it must be a whole number, 2 or")],
            "limit": [(None, "still: limit=None; it must be a whole number, 1 or")],
            "low": [(5.0, "still: best=5.0; it must be above low=5.0")],
            "best": [("much", "still: .*='?much'?; it must be a finite number")],
        },
    ),
    "tasks.actor_critic": (
        lj.tasks.actor_critic,
        lambda g: dict(
            environment=environments.cartpole(),
            model=lj.models.policy.make("actor-critic-3", 2),
        ),
        {
            "environment": [
                ("cartpole", "environment='?cartpole'?; it must be an env")
            ],
            "model": [(3, "model=3; it must be a Linen module")],
            "init": [(linear, "given are .'model', 'init'.; it must be either")],
            "apply": [(product, "given are .'model', 'apply'.; it must be either")],
            "games": [(1.5, "games=1.5; it must be a whole number, 1 or more")],
            "horizon": [(300, "horizon=300; it must be between 1 and 200, the long")],
            "gamma": [("0.9", "gamma='?0.9'?; it must be a number")],
            "entropy_weight": [(None, "entropy_weight=None; it must be a number")],
            "value_weight": [(-1, "value_weight=-1; it must be 0 or more")],
            "reward_scale": [(0, "reward_scale=0; it must be above 0")],
            "episodes": [(True, "episodes=True; it must be a whole number")],
            "validation": [(0, "validation=0; it must be True or False")],
            "actions": [(2, "actions=2; it must be one of sampled, greedy")],
            "leaves": [("biases", "leaves='biases'; it must be one of kernels, all")],
            "critic": [(False, "critic=False; it must be one of pruned, kept")],
            "prunable": [("kernel", "prunable='?kernel'?; it must be a function")],
            "exclude": [(("body",), "exclude=.*: pattern 'body' matches no leaf")],
            "head": [({"head": 1}, "head=a dict; it must be a tuple of names")],
        },
    ),
    "tasks.classification": (
        lj.tasks.classification,
        lambda g: dict(dataset=TOY, model=Dense(), batch_size=10),
        {
            "dataset": [(lambda: TOY.arrays, "dataset=a dict; it must be a .*Dataset")],
            "model": [(3, "model=3; it must be a Linen module")],
            "init": [(linear, "given are .'model', 'init'.; it must be either")],
            "apply": [(product, "given are .'model', 'apply'.; it must be either")],
            "batch_size": [
                (10.0, "batch_size=10.0; it must be a whole number, between 1 and 150"),
                (151, "batch_size=151; it must be between 1 and 150, the number of"),
            ],
            "drop_last": [(1, "drop_last=1; it must be True or False")],
            "augment": [("flip", "augment='flip'; it must be of")],
            "crop": [(4, "crop=4; it must be None, since it needs images")],
            "label_smoothing": [(1, "label_smoothing=1; it must be below 1")],
            "evaluation_batch": [(0.5, "evaluation_batch=0.5; it must be a whole")],
            "prunable": [("kernel", "prunable='kernel'; it must be a function")],
            "exclude": [
                (3, "exclude=3; it must be a tuple of names"),
                (("(",), r"exclude='\('; it must be a regular expression"),
                (("body",), "exclude=.*: pattern 'body' matches no leaf"),
            ],
            "head": [({"head": 1}, "head=a dict; it must be a tuple of names")],
        },
    ),
    "tasks.contrastive": (
        lj.tasks.contrastive,
        lambda g: dict(dataset=toys.pictures(), model=PROJECTS, batch_size=10),
        {
            "dataset": [
                (lambda: TOY.arrays, "dataset=a dict; it must be a .*Dataset"),
                (lambda: TOY, r"shape of an example=\(8,\); it must be \[H, W, 1\] or"),
            ],
            "model": [(3, "model=3; it must be a Linen module")],
            "init": [(linear, "given are .'model', 'init'.; it must be either")],
            "apply": [(product, "given are .'model', 'apply'.; it must be either")],
            "batch_size": [
                (10.0, "batch_size=10.0; it must be a whole number, between 2 and 44"),
                (1, "batch_size=1; it must be between 2 and 44, the training images"),
            ],
            "temperature": [
                ("low", "temperature='low'; it must be a number"),
                (0.0, "temperature=0.0; it must be above 0"),
            ],
            "views": [
                ("strong", "views='strong'; it must be a lottery_jax.data.Views")
            ],
            "evaluation_batch": [(1, "evaluation_batch=1; it must be 2 or more")],
            "prunable": [("kernel", "prunable='kernel'; it must be a function")],
            "exclude": [(("body",), "exclude=.*: pattern 'body' matches no leaf")],
            "head": [
                ({"head": 1}, "head=a dict; it must be a tuple of names"),
                (("body",), "head=.*: pattern 'body' matches no leaf"),
            ],
        },
    ),
    "tasks.curve": (
        lj.tasks.curve,
        lambda g: dict(task=g.task),
        {
            "task": _NO_TASK,
            "kind": [("line", "kind='line'; it must be one of bezier, polygon")],
            "bends": [(1.5, "bends=1.5; it must be a whole number, 1 or more")],
        },
    ),
    "supermask.task": (
        supermask.task,
        lambda g: dict(task=g.task, method=supermask.edge_popup(0.5)),
        {
            "task": _NO_TASK,
            "method": [
                ("popup", "method='popup'; it must be what supermask.bernoulli"),
                (
                    supermask.edge_popup(1e-3),
                    r"density=0.001; it must be above 0.02083, for layer 'head/kernel'",
                ),
            ],
            "law": [("normal", "law='normal'; it must be one of kaiming_normal, sig")],
            "scaled": [(1, "scaled=1; it must be True or False")],
        },
    ),
    "supermask.bernoulli": (
        supermask.bernoulli,
        lambda g: {},
        {
            "rescale": [(1, "rescale=1; it must be True or False")],
            "samples": [
                (-1, "samples=-1; it must be 0 or more"),
                (1.5, "samples=1.5; it must be a whole number"),
            ],
            "prunable": [],  # seen with the weights
            "inputs": [((0, 1), r"inputs=\(0, 1\); it must be a mapping")],
        },
    ),
    "supermask.edge_popup": (
        supermask.edge_popup,
        lambda g: dict(density=0.5),
        {
            "density": [
                (0.0, r"density=0.0; it must be in \(0, 1\)"),
                (1, r"density=1; it must be in \(0, 1\)"),
                ("half", r"density='half'; it must be a number in \(0, 1\)"),
            ],
            "prunable": [],  # seen with the weights
            "inputs": [({"w": 0.5}, r"inputs\['w'\]=0.5; it must be a whole number")],
        },
    ),
    "training.concatenate": (
        training.concatenate,
        lambda g: {},
        {
            "runs": [
                (3, "runs=3; it must be a sequence of training.Runs"),
                ([], r"runs=\(\); it must be a sequence of one"),
                ([3], r"runs\[0\]=3; it must be a training.Runs"),
            ],
        },
    ),
    "Where": (
        lj.Where,
        lambda g: {},
        {
            "execution": [((1, 1), r"execution=\(1, 1\); it must be an Execution")],
            "folder": [(3, "folder=3; it must be a path, or None")],
            "checkpoint_seconds": [
                ("30", "checkpoint_seconds='30'; it must be a number, 0 or more"),
                (-1, "checkpoint_seconds=-1; it must be 0 or more"),
            ],
            "watch": [("told", "watch='told'; it must be a function of a Progress")],
            "meeting": [],  # made by `processes`
            "window": [
                (0, "window=0; it must be 1 or more"),
                (2.5, "window=2.5; it must be a whole number, 1 or more"),
            ],
            "deadline": [(9, "deadline=9; it must be an execution.Deadline")],
            "clock": [],
            "held": [],
            "waited": [],
            "room": [],
        },
    ),
}


@pytest.mark.parametrize("name", ENTRANCES)
def test_every_argument_is_in_the_table(name):
    function, _, table = ENTRANCES[name]
    assert set(table) == set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "field"), [(n, f) for n, (*_, table) in ENTRANCES.items() for f in table]
)
def test_an_argument_of_a_wrong_kind_is_refused_by_name(name, field):
    function, good, table = ENTRANCES[name]
    own = good(given())
    for wrong, message in table[field]:
        made_here = isinstance(wrong, types.LambdaType) and wrong.__name__ == "<lambda>"
        value = wrong() if made_here else wrong
        message = message.replace("{name}", field)
        refused(lambda v=value: function(**own | {field: v}), message)


def test_whole_numbers_of_numpy_are_whole_numbers():
    chain = imp.Chain(rewind_step=np.int64(2))
    plan = imp.check(
        imp.Plan(
            steps=np.int64(10),
            rewind_step=np.int32(1),
            chains=[chain],
            arms=["ticket"],
            validate_every=np.uint8(5),
        )
    )
    same = imp.Plan(10, 1, (imp.Chain(rewind_step=2),), ("ticket",), 5)
    assert plan == same and hash(plan) == hash(same)
    assert json.dumps(plan.as_json((0,))) == json.dumps(same.as_json((0,)))
    analysis = connectivity.Plan(np.int64(9), np.array([0, 3]), alphas=np.int64(3))
    assert connectivity.check(analysis) == connectivity.Plan(9, (0, 3), alphas=3)
    for three in (3, np.int64(3), [0, 1, 2], range(3), np.arange(3)):
        assert training.checked.replicas(three) == (0, 1, 2)


@pytest.mark.slow
def test_replicas_may_be_how_many():
    task, tx = plain_task(), optax.sgd(0.1)
    plan = imp.Plan(steps=2, arms=("ticket",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no layer is lost
        by_number = imp.run(task, tx, plan, levels=0, replicas=2)
    assert by_number.emptied == []
    by_id = imp.run(task, tx, plan, levels=0, replicas=(0, 1))
    assert by_number.replicas == (0, 1)
    toys.assert_same_records(by_number.records, by_id.records)


# --- a task by hand -------------------------------------------------------------------


def hand_made(**changes):
    """The language model with something else in it."""
    return toys.language_model()._replace(**changes)


def loss_of(change):
    """Its loss, with something else returned."""
    inner = toys.language_model()
    return lambda *args: change(*inner.loss(*args))


def metrics_of(change):
    inner = toys.language_model()
    return lambda *args: change(inner.evaluate(*args))


def init_of(change):
    inner = toys.language_model()
    return lambda key: change(*inner.init(key))


HAND_MADE = {
    "data of lists": (
        lambda: hand_made(data=toys.language_model().data | {"n": [1, 2]}),
        r"task.data\['n/0'\]=1; it must be an array",
    ),
    "data of objects": (
        lambda: hand_made(data={"text": np.array(["a", None], object)}),
        r"task.data\['text'\].dtype=object; it must be that of numbers",
    ),
    "no init": (lambda: hand_made(init=None), "task.init=None; it must be a function"),
    "a loss by name": (
        lambda: hand_made(loss="cross_entropy"),
        "task.loss='cross_entropy'; it must be a function",
    ),
    "flags in place of their function": (
        lambda: hand_made(prunable={"a": True}),
        "task.prunable=a dict; it must be a function or None",
    ),
    "half an epoch": (
        lambda: hand_made(steps_per_epoch=2.5),
        "task.steps_per_epoch=2.5; it must be a whole number, 1 or more",
    ),
    "a list of patterns": (
        lambda: hand_made(exclude=["a"]),
        r"task.exclude=\['a'\]; it must be hashable, a tuple say",
    ),
    "a word for validates": (
        lambda: hand_made(validates="no"),
        "task.validates='no'; it must be True or False",
    ),
    "init without a stream": (
        lambda: hand_made(init=init_of(lambda p, m, s: (p, m))),
        r"task.init: it returns=tuple of 2; it must be \(params, model_state, stream",
    ),
    "integer weights": (
        lambda: hand_made(init=init_of(lambda p, m, s: ({"n": jnp.arange(3)}, m, s))),
        r"task.init: leaf 'n' of params=int32 \(3,\); it must be real",
    ),
    "a state of text": (
        lambda: hand_made(init=init_of(lambda p, m, s: (p, {"mode": "on"}, s))),
        "task.init: leaf 'mode' of model_state='on'; it must be an array",
    ),
    "no weights": (
        lambda: hand_made(init=init_of(lambda p, m, s: ((), m, s))),
        r"task.init: params=\(\); it must be arrays to train",
    ),
    "a loss alone": (
        lambda: hand_made(loss=loss_of(lambda value, aux: value)),
        r"task.loss: it returns=.*; it must be \(loss, \(states and metrics\)\)",
    ),
    "a loss with metrics alone": (
        lambda: hand_made(loss=loss_of(lambda value, aux: (value, aux[2]))),
        r"task.loss: it returns=dict; it must be \(model_state, stream_state, metrics",
    ),
    "a loss of each example": (
        lambda: hand_made(
            loss=loss_of(lambda value, aux: (value * jnp.ones(3), (*aux[:2], {})))
        ),
        r"task.loss: loss=shape \(3,\); it must be a real scalar",
    ),
    "a complex loss": (
        lambda: hand_made(
            loss=loss_of(lambda value, aux: (value + 1j, (*aux[:2], {})))
        ),
        "task.loss: loss=complex64; it must be a real number",
    ),
    "metrics of Python": (
        lambda: hand_made(
            loss=loss_of(lambda value, aux: (value, (*aux[:2], {"n": 1.0})))
        ),
        r"task.loss: metrics\['n'\]=1.0; it must be an array",
    ),
    "metrics without names": (
        lambda: hand_made(loss=loss_of(lambda value, aux: (value, (*aux[:2], value)))),
        "task.loss: metrics=.*; it must be a dict of arrays",
    ),
    "a state that grows": (
        lambda: hand_made(
            loss=loss_of(lambda value, aux: (value, ({"a": value}, *aux[1:])))
        ),
        "task.loss: only that of loss has a leaf 'a'",
    ),
    "a stream of another dtype": (
        lambda: hand_made(
            init=init_of(lambda p, m, s: (p, m, {"n": jnp.int32(0)})),
            loss=loss_of(lambda value, aux: (value, (aux[0], {"n": value}, aux[2]))),
        ),
        "task.loss: dtype of leaf 'n' of stream_state=float32; it must be int32",
    ),
    "no loss in evaluation": (
        lambda: hand_made(evaluate=metrics_of(lambda found: {"error": found["error"]})),
        r"task.evaluate: it returns=\['error'\]; it must be a dict with a scalar `loss`",
    ),
    "a number for an evaluation": (
        lambda: hand_made(evaluate=metrics_of(lambda found: found["loss"])),
        "task.evaluate: it returns=.*; it must be a dict of scalars",
    ),
    "an evaluated loss of each example": (
        lambda: hand_made(
            evaluate=metrics_of(lambda found: {"loss": found["loss"] * jnp.ones(2)})
        ),
        r"task.evaluate: loss=shape \(2,\); it must be a real scalar",
    ),
    "splits that it has not": (
        lambda: hand_made(data={"train": toys.language_model().data["train"]}),
        "split='validation'; it must be one that the task has: its data holds .'train'",
    ),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_task_by_hand_is_refused_by_its_field(name):
    make, message = HAND_MADE[name]
    task, tx, plan = make(), optax.sgd(0.1), imp.Plan(steps=4)
    refused(lambda: lj.train(task, tx, steps=4), message)
    refused(lambda: imp.run(task, tx, plan, levels=1), message)


def test_an_error_within_a_function_of_a_task_says_in_which():
    def broken(*args):
        raise ZeroDivisionError("own")

    for field in ("init", "batch", "loss"):
        with pytest.raises(ZeroDivisionError, match="own") as raised:
            lj.train(hand_made(**{field: broken}), optax.sgd(0.1), steps=4)
        assert any(f"in task.{field}," in note for note in raised.value.__notes__)


def test_every_kind_of_task_is_fine():
    tasks = (
        plain_task(),
        toys.language_model(),
        toys.policy_gradient(),
        toys.fragile(),
    )
    for task in (*tasks, lj.tasks.curve(plain_task())):
        assert isinstance(task, Task)
        training.check(task, splits=("validation", "test"))


def test_without_a_test_split_it_is_trained_and_no_study_made():
    train = TOY._replace(arrays={"train": TOY.arrays["train"]})
    task = lj.tasks.classification(train, lj.models.make("mlp-3", 4), batch_size=20)
    assert not task.validates
    with pytest.raises(ValueError, match="split='test'; it must be one that the task"):
        lj.imp.run(task, optax.sgd(0.1), lj.imp.Plan(steps=2), levels=0)
