"""Models: published counts, BatchNorm against NumPy, the laws of initialisation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from lottery_jax import compact, masks, models, trees
from lottery_jax.keys import of_seed
from lottery_jax.models import initializers, layers

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MNIST, CIFAR, IMAGENET = (1, 28, 28, 1), (1, 32, 32, 3), (1, 224, 224, 3)
TINY = (1, 64, 64, 3)


def shapes(name, image=CIFAR, classes=10, **choices):
    model = models.make(name, classes, **choices)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image))


def paths(tree):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def prunable(variables):
    leaves = paths(variables["params"])
    return sum(leaf.size for path, leaf in leaves.items() if path.endswith("/kernel"))


@pytest.mark.parametrize(
    "name, image, classes, count",
    [
        ("lenet-300-100", MNIST, 10, 266_200),
        ("resnet-20", CIFAR, 10, 270_896),
        ("resnet-32", CIFAR, 10, 464_432),
        ("resnet-44", CIFAR, 10, 657_968),
        ("resnet-56", CIFAR, 10, 851_504),
        ("resnet-110", CIFAR, 10, 1_722_416),
        ("vgg-11", CIFAR, 10, 9_222_848),
        ("vgg-13", CIFAR, 10, 9_407_168),
        ("vgg-16", CIFAR, 10, 14_715_584),
        ("vgg-19", CIFAR, 10, 20_024_000),
        ("conv-2", CIFAR, 10, 4_300_992),
        ("conv-4", CIFAR, 10, 2_425_024),
        ("conv-6", CIFAR, 10, 2_261_184),
        ("conv-8", CIFAR, 10, 5_275_840),
        ("imagenet-resnet-18", IMAGENET, 1000, 11_678_912),
        ("imagenet-resnet-34", IMAGENET, 1000, 21_779_648),
        ("imagenet-resnet-50", IMAGENET, 1000, 25_502_912),
        # 3x3 instead of 7x7 of 3 x 64, and 200 classes instead of 1000.
        ("tiny-imagenet-resnet-18", TINY, 200, 11_678_912 - 40 * 192 - 800 * 512),
        # Half the width: a quarter of the weights, but for the image and the classes.
        (
            "imagenet-resnet-18-32",
            TINY,
            1000,
            (11_678_912 + 9_408 + 512_000) // 4,
        ),
        # By hand: 40-500-500-10, and 784-100-100-10.
        ("residual-mlp-500", (1, 40), 10, 40 * 500 + 500 * 500 + 500 * 10),
        ("mlp-100-100", MNIST, 10, 784 * 100 + 100 * 100 + 100 * 10),
        # Twice the width: four times the weights, but for the image and the classes.
        ("resnet-20-32", CIFAR, 10, 4 * 270_896 - 2 * (432 + 640)),
        ("vgg-16-32", CIFAR, 10, (14_715_584 + 27 * 64 + 5120) // 4),
        ("resnet-8", CIFAR, 10, 270_896 - 2 * 2 * 9 * (16**2 + 32**2 + 64**2)),
    ],
)
def test_published_numbers_of_prunable_weights(name, image, classes, count):
    variables = shapes(name, image, classes)
    assert prunable(variables) == count
    assert variables["params"]["head"]["kernel"].shape[1] == classes


@pytest.mark.parametrize(
    "name, classes, total",
    [
        # Torchvision's published totals: no layer has a bias that should have none.
        ("imagenet-resnet-18", 1000, 11_689_512),
        ("imagenet-resnet-34", 1000, 21_797_672),
        ("imagenet-resnet-50", 1000, 25_557_032),
        pytest.param("imagenet-resnet-101", 1000, 44_549_160, marks=pytest.mark.slow),
        pytest.param("imagenet-resnet-152", 1000, 60_192_808, marks=pytest.mark.slow),
        # Those of the usual ResNets of this depth for CIFAR-10 in PyTorch.
        ("tiny-imagenet-resnet-18", 10, 11_173_962),
        ("tiny-imagenet-resnet-34", 10, 21_282_122),
        ("tiny-imagenet-resnet-50", 10, 23_520_842),
    ],
)
def test_all_parameters_of_the_imagenet_networks(name, classes, total):
    params = shapes(name, TINY, classes)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total


@pytest.mark.parametrize(
    "name, side, left",
    [
        ("imagenet-resnet-18-4", 224, 7),
        ("imagenet-resnet-50-4", 224, 7),
        ("imagenet-resnet-34-4", 64, 2),
        ("tiny-imagenet-resnet-18-4", 64, 8),
    ],
)
def test_pixels_that_are_left_before_their_mean(name, side, left):
    model = models.make(name, 10)

    def run(key, x):
        return model.init_with_output(
            key,
            x,
            capture_intermediates=lambda module, _: "block" in (module.name or ""),
        )[1]["intermediates"]

    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    found = jax.eval_shape(run, of_seed(0), x)
    last = found[max(found)]["__call__"][0]
    width = 32 * (4 if model.bottleneck else 1)
    assert last.shape == (2, left, left, width)


def test_the_stride_of_a_bottleneck_is_that_of_its_3x3_convolution():
    model = models.make("imagenet-resnet-50-4", 10)
    names = ("stem", "conv_0", "conv_1", "conv_2", "shortcut")

    def run(key, x):
        return model.init_with_output(
            key, x, capture_intermediates=lambda module, _: module.name in names
        )[1]["intermediates"]

    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    found = jax.eval_shape(run, of_seed(0), x)
    block = found["stage_1_block_0"]
    sides = {name: layer["__call__"][0].shape[1] for name, layer in block.items()}
    halved = {"conv_1": 28, "conv_2": 28, "shortcut": 28}
    assert sides == {"conv_0": 56, **halved}
    assert found["stem"]["__call__"][0].shape == (1, 112, 112, 4)
    kernels = shapes("imagenet-resnet-50-4", IMAGENET)["params"]["stage_1_block_0"]
    windows = {name: kernels[name]["kernel"].shape[:2] for name in block}
    assert windows == {name: (1, 1) for name in block} | {"conv_1": (3, 3)}
    # A projection where channels change, though the resolution does not.
    own = shapes("imagenet-resnet-50-4", IMAGENET)["params"]
    assert [i for i in range(3) if "shortcut" in own[f"stage_0_block_{i}"]] == [0]
    own = shapes("imagenet-resnet-18-4", IMAGENET)["params"]
    assert [i for i in range(4) if "shortcut" in own[f"stage_{i}_block_0"]] == [1, 2, 3]


@pytest.mark.parametrize(
    "name, image, classes",
    [
        ("lenet-20", MNIST, 10),
        ("residual-mlp-16", (1, 40), 10),
        ("conv-4-8", CIFAR, 10),
        ("vgg-11-8", CIFAR, 100),
        ("resnet-14-4", (1, 31, 31, 3), 10),
        ("imagenet-resnet-50-8", (1, 63, 64, 3), 20),
        ("tiny-imagenet-resnet-18-8", (1, 31, 32, 3), 20),
    ],
)
def test_one_interface(name, image, classes):
    model = models.make(name, classes, **models.OPEN_LTH)
    assert hash(model) == hash(models.make(name, classes, **models.OPEN_LTH))
    assert hash(model) != hash(models.make(name, classes, bias="zeros"))
    variables = shapes(name, image, classes)
    batch = jax.ShapeDtypeStruct((3, *image[1:]), jnp.float32)
    weights = jax.ShapeDtypeStruct((3,), jnp.float32)

    def train(variables, x, weights):
        return model.apply(variables, x, True, weights, mutable=["batch_stats"])

    def evaluate(variables, x):
        return model.apply(variables, x, False)

    logits, state = jax.eval_shape(train, variables, batch, weights)
    assert logits.shape == (3, classes)
    assert logits == jax.eval_shape(evaluate, variables, batch)
    rest = {k: v for k, v in variables.items() if k != "params"}
    assert jax.tree.structure(state) == jax.tree.structure(rest)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("lenet-6-5", (8,)),
        ("residual-mlp-5", (8,)),
        ("conv-2-2", (4, 4, 1)),
        ("vgg-11-2", (16, 16, 3)),
        ("resnet-8-2", (8, 8, 3)),
        ("imagenet-resnet-50-2", (16, 16, 3)),
    ],
)
def test_only_the_head_of_a_network_differs_with_its_head(name, shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    linear = models.make(name, 4)
    projects = models.make(name, 7, head="projection", hidden=3)

    def all_of(model):
        return jax.eval_shape(model.init, of_seed(0), x)

    one, other = (trees.by_path(all_of(model)) for model in (linear, projects))
    heads = {path for path in other if path.startswith("params/head/")}
    assert heads == {
        f"params/head/{layer}/{leaf}"
        for layer in ("hidden", "output")
        for leaf in ("kernel", "bias")
    }
    assert other["params/head/output/kernel"].shape == (3, 7)
    width = one["params/head/kernel"].shape[0]
    assert other["params/head/hidden/kernel"].shape == (width, 3)
    rest = {path: leaf for path, leaf in other.items() if path not in heads}
    gone = ("params/head/kernel", "params/head/bias")
    assert rest == {path: leaf for path, leaf in one.items() if path not in gone}
    bare = models.headless(projects)
    assert models.headless(linear) == dataclasses.replace(bare, num_classes=4)
    said = jax.eval_shape(bare.apply, all_of(projects), x)
    assert said.shape == (1, width)
    # As wide as the representation, unless it is said.
    wide = all_of(models.make(name, 7, head="projection"))
    assert wide["params"]["head"]["hidden"]["kernel"].shape == (width, width)


def test_a_projection_is_two_layers_with_a_relu_between():
    model = models.make("mlp-5", 4, head="projection", hidden=3)
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    variables = model.init(of_seed(1), x)
    found = model.apply(variables, x)
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])

    def layer(y, name):
        return y @ name["kernel"] + name["bias"]

    body = np.maximum(layer(x, own["dense_0"]), 0)
    np.testing.assert_allclose(
        models.headless(model).apply(variables, x), body, rtol=1e-5, atol=1e-6
    )
    hidden = np.maximum(layer(body, own["head"]["hidden"]), 0)
    expected = layer(hidden, own["head"]["output"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_network_without_its_dead_units_has_a_projection_too():
    model = models.make("mlp-5", 4, head="projection")
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    params = model.init(of_seed(1), x)["params"]
    mask = masks.ones_like(params)
    head = mask["head"]
    head["hidden"]["kernel"] = head["hidden"]["kernel"].at[1].set(False)
    head["output"]["kernel"] = head["output"]["kernel"].at[2].set(False)
    params = masks.apply(mask, params)
    small = compact.shrink(model, compact.Subnetwork(params, mask))
    assert small.params["dense_0"]["kernel"].shape == (8, 4)
    assert small.params["head"]["hidden"]["kernel"].shape == (4, 4)
    assert small.params["head"]["output"]["kernel"].shape == (4, 4)
    np.testing.assert_allclose(
        model.apply({"params": small.params}, x),
        model.apply({"params": params}, x),
        rtol=1e-5,
        atol=1e-6,
    )


def test_units_without_a_head_are_outputs():
    bare = models.headless(models.make("mlp-5", 4))
    with pytest.raises(ValueError, match="choices.head='none'; it must be 'linear' or"):
        bare.unit_plan()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"head": "mlp"}, "head='mlp'; it must be one of linear, projection, none"),
        ({"head": "projection", "hidden": 0}, "hidden=0; it must be 1 or more"),
        ({"hidden": 3}, "hidden=3; it must be None: head='linear' has no hidden"),
    ],
)
def test_heads_that_are_none_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        models.make("mlp-5", 4, **choices)


def test_a_model_without_choices_has_no_representation():
    with pytest.raises(ValueError, match="model=Dense; it must be a model of images"):
        models.headless(nn.Dense(3))


def test_where_biases_are():
    def biases(name):
        leaves = paths(shapes(name)["params"])
        return {
            path.split("/")[-2]
            for path in leaves
            if path.endswith("bias") and "norm" not in path
        }

    assert biases("resnet-20") == {"head"}
    assert biases("vgg-11") == {"head", *(f"conv_{i}" for i in range(8))}
    assert biases("conv-2") == {"conv_0", "conv_1", "dense_0", "dense_1", "head"}


def test_residual_mlp_is_its_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    model = models.make("residual-mlp-6", 3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        shapes("residual-mlp-6", (1, 5), 3)["params"],
    )

    def dense(name, x):
        return x @ params[name]["kernel"] + np.asarray(params[name]["bias"])[None]

    h = np.maximum(dense("dense_0", x), 0)
    h = h + np.maximum(dense("dense_1", h), 0)
    got = model.apply({"params": params}, x, True)
    np.testing.assert_allclose(got, dense("head", h), rtol=1e-5, atol=1e-5)


def batch_norm_in_numpy(x, weights, running, scale, bias, unbiased):
    # The weighted examples, written out by repeating each as often as its weight says.
    values = np.repeat(x, weights, axis=0).reshape(-1, x.shape[-1]).astype(np.float64)
    mean, var = values.mean(0), values.var(0)
    y = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    new_var = values.var(0, ddof=1) if unbiased else var
    mean = 0.9 * running["mean"] + 0.1 * mean
    return y, {"mean": mean, "var": 0.9 * running["var"] + 0.1 * new_var}


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("weights", [None, [1, 1, 0, 1, 0], [2, 1, 0, 3, 1]])
def test_batch_norm_against_numpy(unbiased, weights):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (5, 3, 2, 4)).astype(np.float32)
    params = {"scale": rng.uniform(size=4), "bias": rng.normal(size=4)}
    running = {"mean": rng.normal(size=4), "var": rng.uniform(size=4)}
    variables = {"params": params, "batch_stats": running}
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), variables)
    norm = models.BatchNorm(unbiased=unbiased)
    given = None if weights is None else jnp.asarray(weights, jnp.float32)
    y, state = norm.apply(variables, x, True, given, mutable=["batch_stats"])
    repeats = [1] * 5 if weights is None else weights
    want, stats = batch_norm_in_numpy(x, repeats, running, **params, unbiased=unbiased)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    for name in stats:
        np.testing.assert_allclose(state["batch_stats"][name], stats[name], rtol=1e-5)
    if weights is not None:
        # Whatever the padding holds, the others do not notice.
        other = np.where(np.array(weights)[:, None, None, None] > 0, x, 100 * x)
        z, other_state = norm.apply(
            variables, other, True, given, mutable=["batch_stats"]
        )
        real = np.array(weights) > 0
        np.testing.assert_array_equal(z[real], y[real])
        jax.tree.map(np.testing.assert_array_equal, other_state, state)
    # Evaluation uses the running statistics and nothing of the batch.
    got = norm.apply(variables, x, False)
    want = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    want = want * params["scale"] + params["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_what_padding_holds_changes_no_gradient_and_no_statistic():
    model = models.ResNet(3, layers=(1, 1), width=4)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6, 6, 3))),
    )
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 3)), jnp.float32)

    @quick.jit
    def step(x, weights):
        def loss(params):
            y, state = model.apply(
                {**variables, "params": params},
                x,
                True,
                weights,
                mutable=["batch_stats"],
            )
            return (jnp.square(y).sum(1) * weights).sum(), (y, state)

        return jax.grad(loss, has_aux=True)(variables["params"])

    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    gradient, (y, state) = step(x, weights)
    other = step(x.at[3].set(7.0), weights)
    jax.tree.map(
        np.testing.assert_array_equal,
        (gradient, y[:3], state),
        (other[0], other[1][0][:3], other[1][1]),
    )
    changed = step(x.at[3].set(7.0), jnp.ones(4))
    assert np.abs(y - changed[1][0])[:3].max() > 1e-2


def test_momentum_zero_leaves_the_moments_of_the_batch():
    x = np.random.default_rng(0).normal(1, 2, (6, 3)).astype(np.float32)
    norm = models.BatchNorm(momentum=0.0, unbiased=False)
    variables = norm.init(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    _, state = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(state["batch_stats"]["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], x.var(0), rtol=1e-5)


@pytest.mark.parametrize(
    "name, variance", [("kaiming_normal", 2 / 300), ("glorot_normal", 2 / 500)]
)
def test_kernels_are_normal_and_not_truncated(name, variance):
    # 600,000 draws. Standard errors: of the variance 0.2%, of the kurtosis 0.006.
    shape = (10, 10, 3, 2)  # fan in 300, fan out 200
    keys = jax.random.split(jax.random.key(0), 1000)
    draw = jax.vmap(lambda key: initializers.kernel(name)(key, shape, jnp.float32))
    w = np.asarray(draw(keys), np.float64).ravel() / np.sqrt(variance)
    assert abs(w.mean()) < 0.006
    assert abs((w**2).mean() - 1) < 0.01
    assert abs((w**4).mean() - 3) < 0.1
    assert abs((np.abs(w) > 2).mean() - 0.0455) < 0.002


def two_draws(model, image, *train):
    def init(key):
        return model.init(key, jnp.zeros(image), *train)["params"]

    return paths(quick.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 2)))


@pytest.mark.parametrize("fan_in", ["dense", "convolution", "norm"])
def test_laws_of_biases_and_scales(fan_in):
    open_lth = models.Choices(**models.OPEN_LTH)
    if fan_in == "dense":
        drawn = two_draws(models.MLP(400, (), open_lth), (1, 2, 50))["head/bias"]
        low, high = -0.1, 0.1
    elif fan_in == "convolution":
        drawn = two_draws(layers.Conv(400, 5, choices=open_lth), (1, 2, 2, 4))["bias"]
        low, high = -0.1, 0.1
    else:
        norm = layers.batch_norm(open_lth, "norm")
        drawn = two_draws(norm, (1, 400), False)["scale"]
        low, high = 0, 1
    drawn = np.asarray(drawn)
    assert drawn.shape == (2, 400)
    assert not np.array_equal(drawn[0], drawn[1])
    # 800 uniform draws: the ends within 1%, mean and spread within 5 standard errors.
    width = high - low
    assert low <= drawn.min() < low + 0.01 * width
    assert high - 0.01 * width < drawn.max() <= high
    assert abs(drawn.mean() - (low + high) / 2) < 0.05 * width
    assert abs(drawn.std() / width - 12**-0.5) < 0.03


def test_biases_of_zero_and_scales_of_one():
    paper = models.FRANKLE_CARBIN
    plain = models.make("resnet-8-1", 2, **paper).clone(layers=(1,))
    for path, leaf in two_draws(plain, (1, 2, 2, 1)).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(leaf, np.ones(leaf.shape))
        elif path.endswith("bias"):
            np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet-21",
        "resnet-2",
        "resnet-20-16-2",
        "vgg-12",
        "conv-3",
        "lenet",
        "lenet-300-x",
        "lenet-0",
        "residual-mlp-1-2",
        "imagenet-resnet-19",
        "imagenet-resnet-18-4-2",
        "tiny-imagenet-resnet-20",
        "-300",
        "",
    ],
)
def test_unknown_names_are_refused_with_the_valid_forms(name):
    with pytest.raises(ValueError, match="it must be one of lenet-W1") as e:
        models.make(name, 10)
    assert repr(name) in str(e.value)


def test_unknown_choices_are_refused():
    for field, value, valid in (
        ("initializer", "he", "kaiming_normal, glorot_normal"),
        ("bias", "ones", "zeros, torch"),
        ("norm_scale", "zeros", "ones, uniform"),
        ("momentum", 1.5, r"\[0, 1\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"{field}='?{value}'?; it must .*{valid}"
        ):
            models.make("resnet-20", 10, **{field: value})
    with pytest.raises(TypeError, match="epsilom"):
        models.make("resnet-20", 10, epsilom=1e-3)
