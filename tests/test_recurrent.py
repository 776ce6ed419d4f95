"""Language models against NumPy written out in float64: values, gradients, laws, names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lottery_jax import activations, models, naming, trees
from lottery_jax.models import Decoder, Recurrent, language

pytestmark = pytest.mark.usefixtures("compiled_quickly")

VOCABULARY, BATCH, TIME = 11, 3, 7
RNG = np.random.default_rng(0)
IDS = RNG.integers(VOCABULARY, size=(BATCH, TIME)).astype(np.int32)
FOLLOWING = RNG.integers(VOCABULARY, size=(BATCH, TIME)).astype(np.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_in_numpy(params, x, states, cell):
    """`[B, T, C]` to `[B, T, units]`, step by step and gate by gate."""
    w, u = params["input"], params["hidden"]
    gates = 4 if cell == "lstm" else 3
    h, c = states[0], states[-1]
    out = []
    for t in range(x.shape[1]):
        a = np.split(x[:, t] @ w["kernel"] + w["bias"], gates, axis=1)
        b = np.split(h @ u["kernel"] + u["bias"], gates, axis=1)
        if cell == "lstm":
            i, f, o = (sigmoid(a[k] + b[k]) for k in (0, 1, 3))
            c = f * c + i * np.tanh(a[2] + b[2])
            h = o * np.tanh(c)
        else:
            r, z = (sigmoid(a[k] + b[k]) for k in (0, 1))
            h = (1 - z) * np.tanh(a[2] + r * b[2]) + z * h
        out.append(h)
    return np.stack(out, axis=1), (h, c) if cell == "lstm" else (h,)


def recurrent_in_numpy(model, params, ids, carry):
    x, after = params["embedding"]["embedding"][ids], []
    for i in range(model.layers):
        states = [s[i] for s in carry]
        x, last = layer_in_numpy(params[f"layer_{i}"], x, states, model.cell)
        after.append(last)
    if model.tied:
        logits = x @ params["embedding"]["embedding"].T + params["head"]["bias"]
    else:
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return logits, [np.stack(s) for s in zip(*after)]


def norm_in_numpy(params, x):
    away = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((away**2).mean(-1, keepdims=True) + 1e-5)
    return away / deviation * params["scale"] + params["bias"]


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def decoder_in_numpy(model, params, ids):
    """Head by head, token by token."""
    e = params["embeddings"]
    x = e["word"]["embedding"][ids] + e["position"]["embedding"][: ids.shape[1]]
    size = model.width // model.heads
    for i in range(model.layers):
        own = params[f"layer_{i}"]
        y = norm_in_numpy(own["attention"]["norm"], x)
        q, k, v = (affine(own["attention"][n], y) for n in ("query", "key", "value"))
        mixed = np.zeros_like(y)
        for head in range(model.heads):
            at = slice(head * size, (head + 1) * size)
            for t in range(ids.shape[1]):
                scores = np.einsum("bd,bsd->bs", q[:, t, at], k[:, : t + 1, at])
                shares = np.exp(scores / np.sqrt(size))
                shares /= shares.sum(1, keepdims=True)
                mixed[:, t, at] = np.einsum("bs,bsd->bd", shares, v[:, : t + 1, at])
        x = x + affine(own["attention"]["output"], mixed)
        x = x + affine(
            own["outer"], gelu(affine(own["inner"], norm_in_numpy(own["norm"], x)))
        )
    x = norm_in_numpy(params["norm"], x)
    if model.tied:
        return x @ e["word"]["embedding"].T
    return affine(params["head"], x)


RECURRENT = [
    Recurrent(VOCABULARY, 6, 2, "lstm"),
    Recurrent(VOCABULARY, 6, 2, "gru"),
    Recurrent(VOCABULARY, 5, 1, "lstm", tied=True),
]
DECODERS = [
    Decoder(VOCABULARY, 8, 2, 2, TIME),
    Decoder(VOCABULARY, 8, 1, 4, TIME + 2, inner=5, tied=False),
]
ALL = [*RECURRENT, *DECODERS]


def name(model):
    kind = getattr(model, "cell", "transformer")
    return f"{kind}-tied" if model.tied else kind


def a_carry(model):
    return tuple(
        jnp.asarray(RNG.normal(size=x.shape) * 0.5, jnp.float32)
        for x in model.initial(BATCH)
    )


def shapes(model):
    inputs = (IDS, model.initial(BATCH)) if hasattr(model, "initial") else (IDS,)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def drawn(model, scale=0.5):
    """Params, larger than those drawn, so that nothing is nearly linear; and the inputs."""
    inputs = (IDS, a_carry(model)) if hasattr(model, "initial") else (IDS,)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), shapes(model)
    )
    return params, inputs


def wide(tree):
    return jax.tree.map(lambda p: np.asarray(p, np.float64), tree)


def in_numpy(model, params, inputs):
    """Logits, and what is carried on."""
    if len(inputs) == 1:
        return decoder_in_numpy(model, params, inputs[0]), ()
    return recurrent_in_numpy(model, params, inputs[0], wide(inputs[1]))


@functools.cache
def program(model, train=False):
    """`(params, *inputs)` and a key in training, to logits and what is carried on."""

    def run(params, *inputs, key=None):
        rngs = {} if key is None else {"dropout": key}
        out = model.apply({"params": params}, *inputs, train=train, rngs=rngs)
        return out if len(inputs) > 1 else (out, ())

    return jax.jit(run)


@functools.cache
def with_slopes(model):
    """`(params, *inputs)` to the loss, what the model says, and the gradient."""

    def loss(params, *inputs):
        logits, carry = program(model)(params, *inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, FOLLOWING)
        return losses.mean(), (logits, carry)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_in_numpy(model, params, inputs):
    logits = in_numpy(model, params, inputs)[0]
    chosen = np.take_along_axis(logits, FOLLOWING[..., None], -1)[..., 0]
    return (np.log(np.exp(logits).sum(-1)) - chosen).mean()


@pytest.mark.parametrize("model", ALL, ids=name)
def test_logits_and_states_are_those_of_numpy(model):
    params, inputs = drawn(model)
    (_, (logits, carry)), _ = with_slopes(model)(params, *inputs)
    wanted, states = in_numpy(model, wide(params), inputs)
    assert logits.shape == (BATCH, TIME, VOCABULARY) and logits.dtype == jnp.float32
    assert np.abs(wanted).max() > 1  # more than rounding
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    assert len(carry) == len(states)
    for x, y in zip(carry, states):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ALL, ids=name)
def test_gradients_are_the_slopes_of_numpy_s_loss(model):
    params, inputs = drawn(model)
    (value, _), gradient = with_slopes(model)(params, *inputs)
    at, gradient = wide(params), wide(gradient)
    np.testing.assert_allclose(value, loss_in_numpy(model, at, inputs), rtol=1e-5)
    rng, h = np.random.default_rng(1), 1e-5
    for path, leaf in trees.by_path(at).items():
        # Along a direction of this leaf alone.
        way = rng.normal(size=leaf.shape)

        def moved(by, path=path, way=way):
            names = trees.paths(at)
            leaves = [
                x + by * way if own == path else x
                for own, x in zip(names, jax.tree.leaves(at))
            ]
            params = jax.tree.unflatten(jax.tree.structure(at), leaves)
            return loss_in_numpy(model, params, inputs)

        slope = (moved(h) - moved(-h)) / (2 * h)
        found = (trees.by_path(gradient)[path] * way).sum()
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("model", RECURRENT, ids=name)
def test_a_text_in_two_windows_is_the_text_in_one(model):
    params, (ids, carry) = drawn(model)
    logits, after = program(model)(params, ids, carry)
    first, between = program(model)(params, ids[:, :4], carry)
    second, end = program(model)(params, ids[:, 4:], between)
    joined = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(joined, logits, atol=1e-6)
    for x, y in zip(end, after):
        np.testing.assert_allclose(x, y, atol=1e-6)
    # A text begins with zeros, and the carry matters.
    fresh, _ = program(model)(params, ids[:, 4:], model.initial(BATCH))
    assert np.abs(fresh - second).max() > 1e-2
    assert all(not x.any() for x in model.initial(BATCH))


def test_a_decoder_sees_nothing_of_what_comes_later():
    model = DECODERS[1]  # its output layer is another table than the one that is moved
    params, _ = drawn(model)
    ids = np.arange(TIME, dtype=np.int32)[None]  # each token once

    def logits(words):
        own = params["embeddings"] | {"word": {"embedding": words}}
        return model.apply({"params": params | {"embeddings": own}}, ids)[0]

    slopes = jax.jit(jax.jacrev(logits))(params["embeddings"]["word"]["embedding"])
    # [time, vocabulary, token, width]: how the logits at a place depend on a token.
    moved = np.abs(slopes).max((1, 3))[:, :TIME]
    later = np.triu(np.ones((TIME, TIME), bool), 1)
    assert (moved[later] == 0).all()
    assert (moved[~later] > 0).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dropout_is_between_layers_and_nowhere_else(cell):
    for layers in (1, 2):
        model = Recurrent(VOCABULARY, 6, layers, cell, dropout=0.5)
        params, inputs = drawn(model)
        quiet, carry = program(model)(params, *inputs)
        noisy, moved = program(model, True)(params, *inputs, key=jax.random.key(3))
        far = np.abs(quiet - noisy).max()
        assert far < 1e-5 if layers == 1 else far > 1e-2
        # What lies before the first dropout does not know of it.
        np.testing.assert_allclose(carry[0][0], moved[0][0], atol=1e-6)
    assert np.abs(carry[0][1] - moved[0][1]).max() > 1e-3


def test_a_decoder_draws_in_training_alone():
    model = Decoder(VOCABULARY, 8, 1, 2, TIME, dropout=0.3)
    params, inputs = drawn(model)
    assert model.clone(dropout=0.0) == DECODERS[0].clone(layers=1, dropout=0.0)
    still = program(model.clone(dropout=0.0))(params, *inputs)[0]
    np.testing.assert_array_equal(program(model)(params, *inputs)[0], still)
    keys = jax.random.split(jax.random.key(0), 2)
    noisy = [program(model, True)(params, *inputs, key=key)[0] for key in keys]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-2


@pytest.mark.parametrize("model", ALL[1:4], ids=name)
def test_narrow_activations_leave_logits_and_states_wide(model):
    params, inputs = drawn(model, scale=0.2)
    wanted = program(model)(params, *inputs)
    with activations.stored_as("bfloat16"):
        found = program(model)(params, *inputs)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, atol=0.05)
    assert (found[0] != wanted[0]).any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_all_leaves_of_a_recurrent_network_follow_one_law(cell):
    model = Recurrent(200, 64, 2, cell)
    init = jax.jit(lambda key: model.init(key, IDS[:1, :1], model.initial(1)))
    made = init(jax.random.key(0))["params"]
    made, bound = jax.tree.map(np.asarray, made), 1 / np.sqrt(64)
    for path, leaf in trees.by_path(made).items():
        size = leaf.size
        assert np.abs(leaf).max() <= bound, path
        # Within five standard errors of U(-bound, bound).
        spread = bound / np.sqrt(3)
        assert np.abs(leaf.mean()) < 5 * spread / np.sqrt(size), path
        assert np.abs(leaf.std() / spread - 1) < 5 * np.sqrt(0.2 / size), path


def test_a_decoder_s_kernels_and_embeddings_are_drawn_narrowly():
    model = Decoder(200, 64, 1, 2, 50)
    made = jax.jit(lambda key: model.init(key, IDS[:1]))(jax.random.key(0))["params"]
    made = jax.tree.map(np.asarray, made)
    for path, leaf in trees.by_path(made).items():
        last = path.rpartition("/")[2]
        if last in ("kernel", "embedding"):
            assert np.abs(leaf.std() / 0.02 - 1) < 5 / np.sqrt(2 * leaf.size), path
        else:
            assert (leaf == (last == "scale")).all(), path


def test_the_paper_s_network_has_its_number_of_weights():
    """Yu et al.'s, in PyTorch's count: two biases of each gate."""
    model = language.make("lstm-2-650", 33_278, dropout=0.5)
    ids = jax.ShapeDtypeStruct((30, 50), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, model.initial(30))
    table, layer = 33_278 * 650, 2 * 650 * 4 * 650 + 2 * 4 * 650
    total = sum(x.size for x in jax.tree.leaves(shapes))
    assert total == 2 * table + 33_278 + 2 * layer


def counted(model):
    made = shapes(model)
    flags = trees.matching(made, model.prunable_patterns)
    names = zip(trees.paths(made), jax.tree.leaves(flags))
    return made, {own for own, flag in names if flag}


@pytest.mark.parametrize("name", ["lstm-2-6", "gru-1-6", "transformer-2-8-2"])
def test_what_counts_as_prunable(name):
    recurrent = not name.startswith("transformer")
    made, all_of_it = counted(language.make(name, VOCABULARY))
    leaves = set(trees.paths(made))
    kernels = {path for path in leaves if path.endswith("/kernel")}
    tables = {path for path in leaves if path.endswith("/embedding")}
    assert all_of_it == (leaves if recurrent else kernels | tables)
    _, without = counted(language.make(name, VOCABULARY, embeddings="kept"))
    assert without == all_of_it - tables
    if recurrent:
        model = language.make(name, VOCABULARY, embeddings="kept")
        assert counted(model.clone(biases="kept"))[1] == kernels
        # Tied, the bias of the output layer is one of them.
        tied = language.make(name, VOCABULARY, tied=True)
        assert counted(tied)[1] == set(trees.paths(counted(tied)[0]))
    shapes = {path: leaf.shape for path, leaf in trees.by_path(made).items()}
    for path in kernels:
        assert naming.is_weight(path, shapes)
        assert naming.fans(path, shapes) == shapes[path]


def test_names_make_their_networks():
    assert language.make("lstm-2-650", 9) == Recurrent(9, 650, 2, "lstm")
    assert language.make("gru-1-8", 9, dropout=0.3, tied=True) == Recurrent(
        9, 8, 1, "gru", 0.3, True
    )
    assert language.make("transformer-4-128-8", 9, positions=32) == Decoder(
        9, 128, 4, 8, 32
    )
    assert models.language is language


@pytest.mark.parametrize(
    "name", ["lstm", "lstm-2", "lstm-0-8", "rnn-2-8", "transformer-4-128", "gru-1-2-3"]
)
def test_unknown_names_are_refused_with_the_forms(name):
    with pytest.raises(
        ValueError, match=f"name='{name}'.*" + re.escape(language.FORMS)
    ):
        language.make(name, 9)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Recurrent(0), "vocabulary=0; it must be 1 or more"),
        (lambda: Recurrent(9, units=0), "units=0; it must be 1 or more"),
        (lambda: Recurrent(9, layers=0), "layers=0; it must be 1 or more"),
        (lambda: Recurrent(9, cell="rnn"), "cell='rnn'; it must be one of lstm, gru"),
        (lambda: Recurrent(9, dropout=1.0), r"dropout=1.0; it must be a share in \[0"),
        (lambda: Recurrent(9, biases="none"), "biases='none'; it must be one of"),
        (lambda: Decoder(9, 10, heads=3), "heads=3; it must be a divisor of width=10"),
        (lambda: Decoder(9, inner=0), "inner=0; it must be 1 or more"),
        (lambda: Decoder(9, positions=0), "positions=0; it must be 1 or more"),
        (lambda: Decoder(9, dropout=-0.1), r"dropout=-0.1; it must be a share in \[0"),
        (lambda: Decoder(9, embeddings="x"), "embeddings='x'; it must be one of"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_text_longer_than_the_positions_is_refused():
    model = Decoder(VOCABULARY, 8, 1, 2, TIME - 1)
    with pytest.raises(ValueError, match=f"window={TIME}; it must be at most 6"):
        model.init(jax.random.key(0), IDS)
