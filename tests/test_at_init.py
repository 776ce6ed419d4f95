"""`at_init`: SNIP, GraSP and SynFlow against formulas written out, and their loops."""

import dataclasses
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import lottery_jax as lj
from lottery_jax import at_init, imp, keys, masks, models, scores, trees
from lottery_jax.models import layers

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NUMBER, BATCH, SIZES = 2, 6, {"hidden": (4, 5), "head": (5, 3)}


def params_of(seed, bias=0.3):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(bias * rng.normal(size=shape[-1:]), jnp.float32),
        }
        for name, shape in SIZES.items()
    }


def mask_of(seed):
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.random(shape) < 0.7),
            "bias": jnp.ones(shape[-1:], bool),
        }
        for name, shape in SIZES.items()
    }


def logits(params, images):
    hidden, head = params["hidden"], params["head"]
    inside = jnp.tanh(images @ hidden["kernel"] + hidden["bias"][None])
    return inside @ head["kernel"] + head["bias"][None]


def loss(params, model_state, batch, key, temperature=1.0):
    of = jax.nn.log_softmax(logits(params, batch["image"]) / temperature)
    return -jnp.mean(jnp.sum(of * jax.nn.one_hot(batch["label"], 3), axis=-1))


def relu_outputs(params, model_state, batch):
    x = batch["image"]
    for name in SIZES:
        x = x @ params[name]["kernel"] + params[name]["bias"][None]
        x = jax.nn.relu(x) if name == "hidden" else x
    return x


def batches_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(NUMBER, BATCH, 4)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, size=(NUMBER, BATCH)), jnp.int32),
    }


def inputs_of(seed, mask=None, bias=0.3):
    params = params_of(seed, bias)
    mask = masks.ones_like(params) if mask is None else mask
    return scores.Inputs(
        params,
        mask,
        initial=params,
        loss=loss,
        batches=batches_of(seed),
        outputs=relu_outputs,
    )


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@jax.jit
def derivatives(params, batches, temperature):
    """Weights, gradient and Hessian of the mean loss over all examples, as arrays."""
    every = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    weights, back = jax.flatten_util.ravel_pytree(params)

    def of(vector):
        return loss(back(vector), None, every, None, temperature)

    return weights, jax.grad(of)(weights), jax.hessian(of)(weights)


def written_out(inputs, temperature=1.0):
    params = masks.apply(inputs.mask, inputs.initial)
    return jax.tree.map(np.asarray, derivatives(params, inputs.batches, temperature))


# --- the scores -----------------------------------------------------------------------


def test_snip_is_the_magnitude_of_weight_times_mean_gradient(getkey):
    inputs = inputs_of(0, mask_of(5))
    weights, gradient, _ = written_out(inputs)
    alive = flat(inputs.mask)
    found = flat(scores.by_name("snip")(getkey(), inputs))
    expected = np.abs(weights * gradient)[alive]
    np.testing.assert_allclose(found[alive], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mask", [None, mask_of(5)], ids=["dense", "masked"])
def test_grasp_is_the_weight_times_an_explicit_hessian_times_the_gradient(mask, getkey):
    inputs = inputs_of(0, mask)
    weights, gradient, hessian = written_out(inputs)
    alive = flat(inputs.mask)
    expected = weights * (hessian @ np.where(alive, gradient, 0))
    found = flat(scores.by_name("grasp")(getkey(), inputs))
    np.testing.assert_allclose(found[alive], expected[alive], rtol=1e-3, atol=1e-6)
    assert (found[alive] < 0).any() and (found[alive] > 0).any()


def test_grasp_keeps_the_weights_without_which_the_gradient_would_be_smaller(getkey):
    """The sign, by differences: a little of each weight is taken away."""
    inputs = inputs_of(1)
    weights, gradient, _ = written_out(inputs)
    found = flat(scores.by_name("grasp")(getkey(), inputs))
    _, back = jax.flatten_util.ravel_pytree(inputs.initial)
    for at in (np.argmax(found), np.argmin(found)):
        less = weights.copy()
        less[at] *= 1 - 1e-2
        _, smaller, _ = written_out(inputs._replace(initial=back(jnp.asarray(less))))
        change = np.sum(smaller**2) - np.sum(gradient**2)
        assert np.sign(change) == -np.sign(found[at])
        np.testing.assert_allclose(change, -2e-2 * found[at], rtol=0.1)


def test_a_temperature_is_the_division_of_the_logits(getkey):
    inputs = inputs_of(2)
    colder = at_init.tempered(loss, ("(^|/)head/",), 200.0)
    found = scores.by_name("grasp")(getkey(), inputs._replace(loss=colder))
    weights, gradient, hessian = written_out(inputs, temperature=200.0)
    expected = weights * (hessian @ gradient)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(flat(found) / scale, expected / scale, atol=1e-4)
    plain = flat(scores.by_name("grasp")(getkey(), inputs))
    # It matters: at temperature 1 the ranking is another.
    assert (np.argsort(plain) != np.argsort(flat(found))).any()


def test_synflow_is_the_flow_through_magnitudes_from_an_input_of_ones(getkey):
    inputs = inputs_of(3, mask_of(5))
    found = scores.by_name("synflow")(getkey(), inputs)
    size = {
        name: {k: np.abs(np.asarray(v)) for k, v in layer.items()}
        for name, layer in masks.apply(inputs.mask, inputs.initial).items()
    }
    first, last = size["hidden"]["kernel"], size["head"]["kernel"]
    inside = np.ones(4) @ first + size["hidden"]["bias"]
    expected = {
        "hidden": {
            "kernel": first * last.sum(axis=1)[None],
            "bias": size["hidden"]["bias"] * last.sum(axis=1),
        },
        "head": {"kernel": last * inside[:, None], "bias": size["head"]["bias"]},
    }
    expected, found = flat(expected), flat(masks.apply(inputs.mask, found))
    ratio = found[expected > 0] / expected[expected > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    power = np.log2(float(ratio[0]))
    np.testing.assert_allclose(power, np.round(power), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, shape",
    [("mlp-7-5-6", (9,)), ("conv-2-2", (4, 4, 1))],
)
def test_synflow_is_conserved_from_layer_to_layer(model, shape, getkey):
    """Tanaka et al.'s theorem: what flows through one layer flows through all."""
    net = models.make(model, 4)
    images = jnp.zeros((1, 1, *shape))
    variables = net.init(getkey(), images[0])
    params = variables["params"]
    state = {k: v for k, v in variables.items() if k != "params"}

    def outputs(params, state, batch):
        return net.apply({"params": params, **state}, batch["image"])

    inputs = scores.Inputs(
        params,
        masks.ones_like(params),
        initial=params,
        model_state=state,
        batches={"image": images},
        outputs=outputs,
    )
    found = trees.by_path(scores.by_name("synflow")(getkey(), inputs))
    sums = [float(jnp.sum(s)) for name, s in found.items() if name.endswith("kernel")]
    assert len(sums) > 2 and sums[0] > 0
    np.testing.assert_allclose(sums, sums[0], rtol=1e-3)


@pytest.mark.parametrize("factor, depth", [(3.0, 91), (1e-3, 9)])
def test_synflow_ranks_where_the_flow_itself_is_no_float32(factor, depth, getkey):
    """A chain of layers, residual every second one, against NumPy in float64."""
    rng = np.random.default_rng(0)
    weights = factor * rng.random((depth, 3, 3)).astype(np.float32)
    params = {"kernel": jnp.asarray(weights)}

    def outputs(params, state, batch):
        def pair(x, two):
            return x + x @ two[0] @ two[1], None

        twos = params["kernel"][1:].reshape(-1, 2, 3, 3)
        start = batch["image"] @ params["kernel"][0]
        return jax.lax.scan(pair, start, twos)[0]

    inputs = scores.Inputs(
        params,
        masks.ones_like(params),
        initial=params,
        batches={"image": jnp.zeros((1, 1, 3))},
        outputs=outputs,
    )
    found = np.asarray(scores.by_name("synflow")(getkey(), inputs)["kernel"])
    w = weights.astype(np.float64)
    forward, inside = [np.ones(3) @ w[0]], []
    for a, b in zip(w[1::2], w[2::2]):
        inside.append(forward[-1] @ a)
        forward.append(forward[-1] + inside[-1] @ b)
    expected, back = np.zeros_like(w), np.ones(3)
    for i in reversed(range(len(inside))):
        a, b = w[1 + 2 * i], w[2 + 2 * i]
        expected[2 + 2 * i] = b * np.outer(inside[i], back)
        expected[1 + 2 * i] = a * np.outer(forward[i], b @ back)
        back = back + a @ (b @ back)
    expected[0] = w[0] * back[None]
    assert np.isfinite(found).all() and (found > 0).all()
    ratio = np.log(found) - np.log(expected)
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], atol=1e-3)


@pytest.mark.parametrize(
    "name, field", [("grasp", "loss"), ("grasp", "initial"), ("synflow", "outputs")]
)
def test_inputs_that_are_missing_are_named(name, field, getkey):
    inputs = inputs_of(0)._replace(**{field: None})
    with pytest.raises(ValueError, match=f"inputs.{field}"):
        scores.by_name(name)(getkey(), inputs)


# --- the loop -------------------------------------------------------------------------


def kept(method, params, density, **where):
    return at_init.keep_counts(method, params, density, **where)


def test_the_schedule_is_exponential_and_ends_exactly():
    params = {"a": {"kernel": np.zeros((40, 50))}, "b": {"kernel": np.zeros((50, 10))}}
    keep = kept(at_init.METHODS["synflow"], params, 0.013)
    assert keep.shape == (100, 3) and keep.dtype == np.int32
    assert keep[-1, 0] == round(0.013 * 2500) == keep[-1, 1:].sum()
    assert (np.diff(keep, axis=0) <= 0).all()
    np.testing.assert_allclose(
        keep[:, 0], 2500 * (32 / 2500) ** (np.arange(1, 101) / 100), atol=0.5
    )
    # The head is counted and never cut.
    spared = kept(at_init.METHODS["synflow"], params, 0.25, exclude=("b",))
    assert (spared[:, 0] >= 500).all() and (spared[:, 2] == 500).all()


@pytest.mark.parametrize(
    "name, scope",
    [
        ("snip", "global"),
        ("grasp", "layerwise"),
        ("synflow", "global"),
        ("random", "layerwise"),
    ],
)
def test_every_method_keeps_exactly_what_was_asked_for(name, scope, getkey):
    method = dataclasses.replace(at_init.METHODS[name], scope=scope, rounds=3)
    inputs = inputs_of(0)
    keep = kept(method, inputs.trained, 0.3)
    cut = jax.jit(
        lambda key, inputs: at_init.prune(
            method, key, inputs._replace(loss=loss, outputs=relu_outputs), keep
        )
    )
    two = [inputs_of(i)._replace(loss=None, outputs=None) for i in range(2)]
    own = [getkey(), getkey()]
    looped = [cut(k, i) for k, i in zip(own, two)]
    together = jax.vmap(cut)(jnp.stack(own), trees.stack(two))
    for i, one in enumerate(looped):
        assert int(masks.count(one.mask)) == round(0.3 * 35) == 10
        assert one.finite.all() and one.finite.shape == (2,)
        if scope == "layerwise":
            by_leaf = trees.by_path(one.mask).items()
            counts = [int(m.sum()) for name, m in by_leaf if name.endswith("kernel")]
            assert counts == keep[-1, 1:].tolist()
        jax.tree.map(
            np.testing.assert_array_equal, trees.rows(together.mask, i), one.mask
        )
        # Biases are not cut.
        assert all(layer["bias"].all() for layer in one.mask.values())


def test_one_round_inverted_keeps_the_lowest(getkey):
    inputs = inputs_of(4)
    method = dataclasses.replace(at_init.METHODS["snip"], inverted=True)
    mask = at_init.prune(
        method, getkey(), inputs, kept(method, inputs.trained, 0.2)
    ).mask
    score = scores.by_name("snip")(getkey(), inputs)
    pick = [(np.ravel(score[n]["kernel"]), np.ravel(mask[n]["kernel"])) for n in SIZES]
    score, mask = (np.concatenate(x) for x in zip(*pick))
    assert mask.sum() == 7 and score[mask].max() < score[~mask].min()


def test_rounds_see_the_masks_before_them_and_stay_inside(getkey):
    """Each round scores what is left: SynFlow in rounds is not SynFlow at once."""
    method = dataclasses.replace(at_init.METHODS["synflow"], rounds=4)
    inputs = inputs_of(6)
    keep, key = kept(method, inputs.trained, 0.2), getkey()
    whole = at_init.prune(method, key, inputs, keep)
    mask, before = inputs.mask, None
    for i in range(4):
        score = scores.by_name("synflow")(key, inputs._replace(mask=mask))
        before, mask = mask, lj.prune.global_topk(score, mask, keep=int(keep[i, 0]))
        assert bool(masks.is_subset(mask, before))
    jax.tree.map(np.testing.assert_array_equal, whole.mask, mask)
    # From a mask that is given nothing returns.
    start = mask_of(5)
    found = at_init.prune(method, key, inputs._replace(mask=start), keep).mask
    assert bool(masks.is_subset(found, start)) and int(masks.count(found)) == 7


def test_what_is_excluded_is_counted_and_kept(getkey):
    for name in ("snip", "synflow"):
        method = dataclasses.replace(at_init.METHODS[name], rounds=2)
        inputs = inputs_of(0)
        keep = kept(method, inputs.trained, 0.6, exclude=("head",))
        mask = at_init.prune(method, getkey(), inputs, keep, exclude=("head",)).mask
        assert mask["head"]["kernel"].all() and int(masks.count(mask)) == 21


@pytest.mark.parametrize(
    "change, match",
    [
        ({"score": "synflo"}, "score='synflo'"),
        ({"rounds": 0}, "rounds=0"),
        ({"scope": "erk"}, "scope='erk'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": np.nan}, "temperature"),
        ({"inverted": "no"}, "inverted"),
    ],
)
def test_methods_that_make_no_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        at_init.check(dataclasses.replace(at_init.METHODS["snip"], **change))


@pytest.mark.parametrize("density", [0, 1, 0.0, 1.0, -0.1, 1e-9, np.nan])
def test_densities_that_keep_nothing_or_everything_are_refused(density):
    with pytest.raises(ValueError, match="density"):
        kept(at_init.METHODS["snip"], params_of(0), density)


# --- of tasks -------------------------------------------------------------------------


def deep():
    """A task whose layers are of very different sizes, so that SNIP empties one."""
    return toys.classification(models.make("mlp-6-80-80-6", 4))


@pytest.mark.slow
def test_synflow_keeps_every_layer_where_snip_empties_some():
    task, density = deep(), 0.003
    with pytest.warns(RuntimeWarning, match="layers have lost all") as said:
        found = imp.prune_at_init(task, "snip", (density,), replicas=2)
    text = str(said[0].message)
    assert f"snip, density {density:g}, replica " in text and "/kernel" in text
    gone = [at_init.collapsed(trees.rows(found.masks, (0, i))) for i in range(2)]
    assert any(gone) and all(name in text for names in gone for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = imp.prune_at_init(task, "synflow", (density,), replicas=2)
    total = masks.total(task.shapes[0])
    for i in range(2):
        mask = trees.rows(found.masks, (0, i))
        assert at_init.collapsed(mask) == []
        assert int(masks.count(mask)) == round(density * total)


class ConvNet(nn.Module):
    """A convolution with BatchNorm, on 8 inputs as an image."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = x.reshape(x.shape[0], 4, 2, 1)
        x = layers.Conv(3, name="conv")(x)  # convolves all replicas in one primitive
        x = lj.models.BatchNorm(name="norm")(x, train, weights)
        return nn.Dense(self.num_classes, name="head")(
            jax.nn.relu(x).reshape(x.shape[0], -1)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_networks_with_convolutions_and_norms_are_pruned(name):
    task = toys.classification(ConvNet())
    method = dataclasses.replace(at_init.METHODS[name], rounds=2)
    found = imp.prune_at_init(task, method, (0.5, 0.3), replicas=(1, 4), batches=2)
    total = masks.total(task.shapes[0])
    for d, density in enumerate((0.5, 0.3)):
        for i in range(2):
            mask = trees.rows(found.masks, (d, i))
            assert int(masks.count(mask)) == round(density * total)
    # The networks are those that a study of the same seed starts from.
    own = keys.of_replicas(0, (1, 4))
    first = task.init(own.init[1])[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        trees.rows(found.networks.params, 1),
        jax.tree.map(np.asarray, first),
    )


def test_scores_that_are_no_numbers_are_refused_by_name():
    task = toys.classification(models.make("mlp-6", 4))

    def init(key):
        params, *rest = task.init(key)
        params["head"]["kernel"] = params["head"]["kernel"].at[0, 0].set(jnp.nan)
        return params, *rest

    bad = task._replace(init=init)
    match = "snip, density 0.5, replica 3: scores of '.*/kernel'=nan or infinite"
    with pytest.raises(ValueError, match=match):
        imp.prune_at_init(bad, "snip", (0.5,), replicas=(3,))


@pytest.mark.parametrize(
    "change, given, match",
    [
        ({"outputs": None}, {"method": "synflow"}, "task.outputs=None"),
        ({"head": ()}, {"method": "grasp"}, "temperature=200"),
        ({}, {"method": "snap"}, "method='snap'"),
        ({}, {"densities": (0.5, 1.0)}, "density=1.0"),
        ({}, {"densities": ()}, "densities"),
        ({}, {"densities": 0.5}, "densities=0.5"),
        ({}, {"batches": 0}, "batches=0"),
        ({}, {"replicas": 0}, "replicas=0"),
    ],
)
def test_what_makes_no_sense_for_a_task_is_named(change, given, match):
    task = toys.classification(models.make("mlp-6", 4))._replace(**change)
    asked = {"method": "snip", "densities": (0.5,), "replicas": 1} | given
    with pytest.raises(ValueError, match=match):
        imp.prune_at_init(task, **asked)


@pytest.mark.slow
def test_a_chain_may_prune_trained_networks_by_these_scores():
    plan = imp.Plan(
        steps=2,
        chains=tuple(imp.Chain(name, score=name) for name in ("grasp", "synflow")),
        arms=("ticket",),
        validate_every=2,
    )
    tx = toys.optax.sgd(0.05)
    study = imp.run(toys.classification(), tx, plan, levels=1, replicas=1)
    alive = study.records["alive"][1][:, 0, 0, 1]
    assert alive.tolist() == [144 - round(0.2 * 144)] * 2
