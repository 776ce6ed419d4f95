"""Tickets from PyTorch: the same outputs, the same bits back, and all else refused.

The networks are written out here a second time, in NumPy and PyTorch's layouts, with the
names of open_lth and torchvision; where PyTorch is installed it computes them too.
"""

import functools
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
import quick
import safetensors.numpy

import lottery_jax as lj
from lottery_jax import models, pytorch
from lottery_jax.storage import state_dicts, tickets

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# --- PyTorch's networks, in float64 ---------------------------------------------------


def conv(s, name, x, stride=1, pad=1):
    """`[B, C, H, W]`; both sides of an axis are padded alike."""
    w = s[f"{name}.weight"].astype(float)
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    y = np.einsum(
        "bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], w, optimize=True
    )
    return y + s.get(f"{name}.bias", np.zeros(len(w)))[:, None, None]


def norm(s, name, x):
    own = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (
        s[f"{name}.{leaf}"].astype(float)[:, None, None] for leaf in own
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def linear(s, name, x):
    return x @ s[f"{name}.weight"].astype(float).T + s[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def max_pool(x, window=2, stride=2, pad=0):
    edges = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    x = np.pad(x, edges, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), (2, 3))
    return windows[:, :, ::stride, ::stride].max((4, 5))


def flat(x):
    return x.reshape(len(x), -1)


def lenet(s, x):
    x = flat(x)
    for i in range(2):
        x = relu(linear(s, f"fc_layers.{i}", x))
    return linear(s, "fc", x)


def conv_net(s, x, pairs):
    """An `nn.Sequential`: two convolutions and a pool per pair, Flatten, three Linear."""
    place = 0
    for _ in range(pairs):
        x = relu(conv(s, f"{place}", x))
        x = max_pool(relu(conv(s, f"{place + 2}", x)))
        place += 5
    x = flat(x)
    x = relu(linear(s, f"{place + 1}", x))
    x = relu(linear(s, f"{place + 3}", x))
    return linear(s, f"{place + 5}", x)


VGG_PLAN = (4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32)


def vgg(s, x):
    for i, spec in enumerate(VGG_PLAN):
        if spec == "M":
            x = max_pool(x)
        else:
            x = relu(norm(s, f"layers.{i}.bn", conv(s, f"layers.{i}.conv", x)))
    assert x.shape[2:] == (2, 2)
    return linear(s, "fc", flat(x.mean((2, 3))))


def block(s, name, x, stride, shortcut, bottleneck=False):
    convs = [(stride, 1), (1, 1)]
    if bottleneck:
        convs = [(1, 0), (stride, 1), (1, 0)]
    y = x
    for j, (step, pad) in enumerate(convs, 1):
        y = relu(y) if j > 1 else y
        y = norm(s, f"{name}.bn{j}", conv(s, f"{name}.conv{j}", y, step, pad))
    if f"{name}.{shortcut}.0.weight" in s:
        x = conv(s, f"{name}.{shortcut}.0", x, stride, 0)
        x = norm(s, f"{name}.{shortcut}.1", x)
    return relu(x + y)


def cifar_resnet(s, x):
    """Depth 8: one block in each of three stages."""
    x = relu(norm(s, "bn", conv(s, "conv", x)))
    for i in range(3):
        x = block(s, f"blocks.{i}", x, 2 if i else 1, "shortcut")
    return linear(s, "fc", x.mean((2, 3)))


def imagenet_resnet(s, x, prefix, bottleneck):
    """Two stages of two blocks."""
    s = {name.removeprefix(prefix): array for name, array in s.items()}
    x = relu(norm(s, "bn1", conv(s, "conv1", x, 2, 3)))
    x = max_pool(x, 3, 2, 1)
    for stage in range(2):
        for i in range(2):
            stride = 2 if stage and not i else 1
            name = f"layer{stage + 1}.{i}"
            x = block(s, name, x, stride, "downsample", bottleneck)
    return linear(s, "fc", x.mean((2, 3)))


# --- their tensors --------------------------------------------------------------------


def drawn(*layers):
    """A state dict: `(name, shape, with bias)` for kernels, `(name, channels)` for norms."""
    rng = np.random.default_rng(0)
    s = {}

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    for name, shape, *bias in layers:
        if isinstance(shape, int):
            s[f"{name}.weight"] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            s[f"{name}.bias"] = normal(shape) / 4
            s[f"{name}.running_mean"] = normal(shape) / 4
            s[f"{name}.running_var"] = rng.uniform(0.5, 2, shape).astype(np.float32)
            s[f"{name}.num_batches_tracked"] = np.array(len(s) + 17, np.int64)
            continue
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        s[f"{name}.weight"] = normal(*shape) * scale
        if bias == [True]:
            s[f"{name}.bias"] = normal(shape[0]) / 4
    return s


def drawn_vgg():
    layers, before = [], 3
    for i, width in enumerate(VGG_PLAN):
        if width != "M":
            layers += [(f"layers.{i}.conv", (width, before, 3, 3), True)]
            layers += [(f"layers.{i}.bn", width)]
            before = width
    return drawn(*layers, ("fc", (10, before), True))


def drawn_cifar_resnet():
    layers = [("conv", (4, 3, 3, 3)), ("bn", 4)]
    for i, (a, b) in enumerate([(4, 4), (4, 8), (8, 16)]):
        layers += [(f"blocks.{i}.conv1", (b, a, 3, 3)), (f"blocks.{i}.bn1", b)]
        layers += [(f"blocks.{i}.conv2", (b, b, 3, 3)), (f"blocks.{i}.bn2", b)]
        if a != b:
            layers += [(f"blocks.{i}.shortcut.0", (b, a, 1, 1))]
            layers += [(f"blocks.{i}.shortcut.1", b)]
    return drawn(*layers, ("fc", (10, 16), True))


def drawn_imagenet_resnet(prefix, bottleneck):
    layers, before = [("conv1", (2, 3, 7, 7)), ("bn1", 2)], 2
    for stage, width in enumerate((2, 4)):
        for i in range(2):
            name, out = f"layer{stage + 1}.{i}", width * (4 if bottleneck else 1)
            shapes = [(width, before, 3, 3), (width, width, 3, 3)]
            if bottleneck:
                shapes = [(width, before, 1, 1), (width, width, 3, 3)]
                shapes += [(out, width, 1, 1)]
            for j, shape in enumerate(shapes, 1):
                layers += [(f"{name}.conv{j}", shape), (f"{name}.bn{j}", shape[0])]
            if before != out:
                layers += [(f"{name}.downsample.0", (out, before, 1, 1))]
                layers += [(f"{name}.downsample.1", out)]
            before = out
    layers = [*layers, ("fc", (10, before), True)]
    return drawn(*((prefix + name, *rest) for name, *rest in layers))


class Net(NamedTuple):
    """One network, here and there."""

    model: object
    shape: tuple
    state: dict
    forward: object
    names: object = "open_lth"


def conv_2():
    model = models.ConvNet(5, (4,), (20, 15))
    kernels = [(4, 3, 3, 3), (4, 4, 3, 3), (20, 60), (15, 20), (5, 15)]
    state = drawn(*((f"{i}", k, True) for i, k in zip((0, 2, 6, 8, 10), kernels)))
    forward = functools.partial(conv_net, pairs=1)
    return Net(model, (10, 6, 3), state, forward, pytorch.sequential(model, state))


def conv_4():
    """Rows and columns are left over by pooling: 14 x 7 becomes 7 x 3, then 3 x 1."""
    model = models.ConvNet(5, (4, 3), (20, 15))
    kernels = [(4, 3, 3, 3), (4, 4, 3, 3), (3, 4, 3, 3), (3, 3, 3, 3)]
    kernels += [(20, 9), (15, 20), (5, 15)]
    places = (0, 2, 5, 7, 11, 13, 15)
    state = drawn(*((f"{i}", k, True) for i, k in zip(places, kernels)))
    layers = [f"conv_{i}" for i in range(4)] + ["dense_0", "dense_1", "head"]
    names = dict(zip(layers, map(str, places)))
    return Net(model, (14, 7, 3), state, functools.partial(conv_net, pairs=2), names)


def dense(shape):
    features = int(np.prod(shape))
    layers = [
        ("fc_layers.0", (20, features)),
        ("fc_layers.1", (15, 20)),
        ("fc", (5, 15)),
    ]
    state = drawn(*((*layer, True) for layer in layers))
    return Net(models.MLP(5, (20, 15)), shape, state, lenet)


def imagenet(prefix, bottleneck, names):
    model = models.ResNet(10, (2, 2), 2, bottleneck, imagenet=True)
    state = drawn_imagenet_resnet(prefix, bottleneck)
    forward = functools.partial(imagenet_resnet, prefix=prefix, bottleneck=bottleneck)
    return Net(model, (20, 28, 3), state, forward, names)


NETS = {
    "lenet": lambda: dense((6, 6, 1)),
    "lenet of colour images": lambda: dense((4, 6, 3)),
    "lenet of features": lambda: dense((9,)),
    "conv-2": conv_2,
    "conv-4": conv_4,
    "vgg": lambda: Net(models.make("vgg-11-4", 10), (32, 32, 3), drawn_vgg(), vgg),
    "resnet": lambda: Net(
        models.make("resnet-8-4", 10), (9, 9, 3), drawn_cifar_resnet(), cifar_resnet
    ),
    "imagenet-resnet": lambda: imagenet("model.", False, "open_lth"),
    "imagenet-resnet with bottlenecks": lambda: imagenet("", True, "torchvision"),
}


def masks_of(state):
    """About half of every kernel, int32, as open_lth stores masks."""
    rng = np.random.default_rng(1)
    return {
        name: rng.integers(0, 2, array.shape, np.int32)
        for name, array in state.items()
        if array.ndim > 1
    }


def masked(state, mask):
    return {
        name: np.where(mask.get(name, 1) == 1, array, np.zeros((), array.dtype))
        for name, array in state.items()
    }


def imported(net, mask=None, **more):
    more = {"model": net.model, "shape": net.shape, "names": net.names} | more
    return pytorch.import_ticket(net.state, mask, **more)


def exported(net, ticket):
    return pytorch.export_ticket(
        ticket, model=net.model, shape=net.shape, names=net.names
    )


def images(net, count=3):
    """Noise, around a colour for each image, which no average takes away."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((count, *net.shape))
    *sides, channels = net.shape
    colours = rng.standard_normal((count, *(1 for _ in sides), channels))
    return (x + 3 * colours).astype(np.float32)


def there(x):
    """The images as PyTorch has them."""
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def logits(net, ticket, x):
    variables = {"params": ticket.params, **ticket.model_state}
    return np.asarray(quick.jit(net.model.apply)(variables, x))


def assert_close(found, wanted):
    close = 1e-5 * np.abs(wanted).max()
    assert np.ptp(wanted, axis=0).max() > 1000 * close  # the images are told apart
    np.testing.assert_allclose(found, wanted, rtol=0, atol=close)


def bits(array):
    array = np.asarray(array)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_equal(bits(a), bits(b)), tree, other)


# --- outputs and bits -----------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_ticket_says_the_same_here_and_there(name):
    net = NETS[name]()
    mask = masks_of(net.state)
    ticket = imported(net, mask)
    x = images(net)
    wanted = net.forward(masked(net.state, mask), there(x).astype(float))
    assert_close(logits(net, ticket, x), wanted)
    lj.masks.check(ticket.mask, ticket.params)
    for m, p in zip(jax.tree.leaves(ticket.mask), jax.tree.leaves(ticket.params)):
        assert not p[~m].any()
    cut = sum(int((m == 0).sum()) for m in mask.values())
    assert sum(int((~m).sum()) for m in jax.tree.leaves(ticket.mask)) == cut
    # Every weight that was cut was drawn from a normal law, so none was 0.
    assert ticket.metadata["pytorch"]["nonzero_off_mask"] == cut


@pytest.mark.parametrize("name", NETS)
def test_what_was_imported_comes_out_bit_for_bit(name):
    net = NETS[name]()
    mask = masks_of(net.state)
    out = exported(net, imported(net, mask))
    assert list(out.weights) == list(net.state)  # PyTorch's order too
    assert_same_bits(out.weights, masked(net.state, mask))
    assert_same_bits(out.mask, mask)
    whole = exported(net, imported(net))
    assert_same_bits(whole.weights, net.state)
    assert all((m == 1).all() for m in whole.mask.values())


def ticket_of(net):
    """A ticket as this library makes one, with -0.0 among the survivors."""
    shapes = jax.eval_shape(net.model.init, jax.random.key(0), images(net))
    rng = np.random.default_rng(3)
    params = lj.trees.map_by_path(
        lambda path, x: rng.standard_normal(x.shape).astype(np.float32),
        shapes["params"],
    )
    mask = lj.trees.map_by_path(
        lambda path, x: (rng.random(x.shape) < 0.3) | (not path.endswith("kernel")),
        params,
    )
    params["head"]["bias"][0] = -0.0
    params = jax.tree.map(lambda m, p: np.where(m, p, np.float32(0)), mask, params)
    state = {
        name: jax.tree.map(lambda x: rng.random(x.shape).astype(np.float32), tree)
        for name, tree in shapes.items()
        if name != "params"
    }
    metadata = tickets.provenance(
        model="resnet-8-4",
        task="cifar10",
        rewind_step=5,
        density=0.3,
        level=4,
        init=[0, 7],
        found="imp",
    )
    return tickets.Ticket(mask, params, state, metadata)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["lenet", "conv-4", "resnet"])
def test_a_ticket_goes_through_files_and_comes_back(name, ending, tmp_path):
    if ending == ".pth":
        pytest.importorskip("torch")
    net = NETS[name]()
    tickets.save(tmp_path / "ours.safetensors", ticket_of(net))
    ticket = tickets.load(tmp_path / "ours.safetensors")
    out = exported(net, ticket)
    for file, state in (("model_ep0_it5", out.weights), ("mask", out.mask)):
        pytorch.write(tmp_path / (file + ending), state)
    weights, mask = (
        pytorch.read(tmp_path / (file + ending)) for file in ("model_ep0_it5", "mask")
    )
    assert_same_bits(weights, out.weights)
    again = imported(net._replace(state=weights), mask, metadata=ticket.metadata)
    assert_same_bits(again[:3], ticket[:3])
    note = again.metadata.pop("pytorch")
    assert note["nonzero_off_mask"] == 0 and again.metadata == ticket.metadata
    tickets.save(tmp_path / "again.safetensors", again)
    saved = [tmp_path / f"{name}.safetensors" for name in ("ours", "again")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_the_counters_of_batches_are_carried_and_may_be_missing():
    net = NETS["resnet"]()
    counters = {n: a for n, a in net.state.items() if n.endswith("_tracked")}
    out = exported(net, imported(net))
    assert {n: out.weights[n] for n in counters} == counters
    names = {ours: f"module.{n}" for ours, n in pytorch.modules(net.model).items()}
    renamed = exported(net._replace(names=names), imported(net))
    assert {n: renamed.weights[f"module.{n}"] for n in counters} == counters
    without = {n: a for n, a in net.state.items() if n not in counters}
    again = exported(net, imported(net._replace(state=without)))
    assert [int(again.weights[n]) for n in counters] == [0] * len(counters)


def test_a_flattened_image_is_not_merely_transposed():
    """What the tests of outputs would notice."""
    net = NETS["conv-2"]()
    kernel = imported(net).params["dense_0"]["kernel"]
    theirs = net.state["6.weight"]
    assert kernel.shape == theirs.T.shape and not (kernel == theirs.T).all()
    assert (kernel[5] == theirs[:, 5 % 4 * 15 + 5 // 4]).all()  # pixel 1, channel 1


def test_names_are_those_of_the_networks():
    """Sizes of open_lth's networks, and a few of their names, as its source has them."""
    vgg_16 = pytorch.modules(models.make("vgg-16", 10))
    assert len(vgg_16) == 27 and vgg_16["conv_12"] == "layers.16.conv"
    resnet = pytorch.modules(models.make("resnet-20", 10))
    assert len(resnet) == 43 and resnet["stage_1_block_0/shortcut"] == (
        "blocks.3.shortcut.0"
    )
    assert "stage_0_block_0/shortcut" not in resnet
    deep = pytorch.modules(models.make("imagenet-resnet-50", 1000), "torchvision")
    assert len(deep) == 2 * 53 + 1
    assert deep["stage_3_block_2/norm_2"] == "layer4.2.bn3"


def test_an_nn_sequential_is_ordered_by_its_numbers():
    net = conv_2()
    mixed = dict(sorted(net.state.items()))  # "10" before "2", as safetensors has it
    assert pytorch.sequential(net.model, mixed) == net.names
    named = {f"features.{name}": array for name, array in mixed.items()}
    assert pytorch.sequential(net.model, named)["head"] == "features.10"


# --- files ----------------------------------------------------------------------------


def test_safetensors_files_are_those_of_safetensors(tmp_path):
    state = NETS["resnet"]().state
    pytorch.write(tmp_path / "ours.safetensors", state)
    assert_same_bits(safetensors.numpy.load_file(tmp_path / "ours.safetensors"), state)
    safetensors.numpy.save_file(state, tmp_path / "theirs.safetensors")
    assert_same_bits(pytorch.read(tmp_path / "theirs.safetensors"), state)


def test_files_that_are_none_are_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"w\.npz; it must be a file .safetensors, .pt"
    ):
        pytorch.read(tmp_path / "w.npz")
    with pytest.raises(FileNotFoundError):
        pytorch.read(tmp_path / "w.safetensors")
    pytorch.write(tmp_path / "w.safetensors", {"w": np.ones(3)})
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"w\.safetensors is no complete"):
        pytorch.read(tmp_path / "w.safetensors")
    for state, message in [
        ({"w": np.array(["a"])}, r"state\['w'\].dtype=<U1; it must be of numbers"),
        ({0: np.ones(3)}, "a name of state=0; it must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            pytorch.write(tmp_path / "v.safetensors", state)
    assert not (tmp_path / "v.safetensors").exists()


@pytest.mark.parametrize(
    "package, ending", [("torch", ".pth"), ("safetensors.numpy", ".safetensors")]
)
def test_a_missing_package_is_named(package, ending, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"w{ending}").write_bytes(b"")
    extra = {".pth": "pytorch", ".safetensors": "results"}[ending]
    for call in (
        lambda: pytorch.read(tmp_path / f"w{ending}"),
        lambda: pytorch.write(tmp_path / f"w{ending}", {"w": np.ones(3)}),
    ):
        with pytest.raises(ImportError, match=rf"lottery-jax\[{extra}\]"):
            call()


# --- refusals -------------------------------------------------------------------------


def without(name):
    return lambda s: {n: a for n, a in s.items() if n != name}


def put(name, make):
    return lambda s: s | {name: make(s.get(name))}


def at(place, value):
    def make(array):
        array = array.astype(np.result_type(array, np.float32), copy=True)
        array[place] = value
        return array

    return make


WEIGHTS = {
    "missing": (
        without("fc.bias"),
        r"weights lacks 'fc.bias' \(head/bias\) and has noth",
    ),
    "left over": (
        put("fc2.bias", lambda _: np.ones(3)),
        r"weights lacks nothing and has 'fc2.bias' too",
    ),
    "of DataParallel": (
        lambda s: {f"module.{n}": a for n, a in s.items()},
        r"weights lacks 'conv.weight' \(stem/kernel\), .* has 'module.conv.weight', ",
    ),
    "of another shape": (
        put("fc.weight", lambda a: a[:, :-1]),
        r"weights\['fc.weight'\].shape=\(10, 15\); it must be \(10, 16\), 'head/kernel'",
    ),
    "transposed": (
        put("fc.weight", lambda a: a.T),
        r"weights\['fc.weight'\].shape=\(16, 10\); it must be \(10, 16\)",
    ),
    "of another dtype": (
        put("fc.weight", lambda a: a.astype(np.float16)),
        r"weights\['fc.weight'\].dtype=float16; it must be float32, 'head/kernel' here",
    ),
    "not finite": (
        put("blocks.1.shortcut.0.weight", at((1, 2, 0, 0), np.nan)),
        r"weights\['blocks.1.shortcut.0.weight'\]\[1, 2, 0, 0\]=nan; it must be finite, "
        "'stage_1_block_0/shortcut/kernel'",
    ),
    "a variance below 0": (
        put("bn.running_var", at(3, -1)),
        r"weights\['bn.running_var'\]\[3\]=-1.0; it must be a variance, .*stem_norm/var",
    ),
    "a counter below 0": (
        put("bn.num_batches_tracked", lambda _: np.array(-1)),
        r"weights\['bn.num_batches_tracked'\]=-1; it must be a number of batches",
    ),
    "no array": (
        put("fc.bias", lambda _: None),
        r"weights\['fc.bias'\]=None; it must be an array of numbers",
    ),
    "a file": (
        lambda s: "model.pth",
        r"weights=model.pth|weights='?model.pth'?; it must",
    ),
}

MASKS = {
    "missing": (without("fc.weight"), r"mask lacks 'fc.weight' \(head/kernel\)"),
    "of a bias": (
        put("fc.bias", lambda _: np.ones(10)),
        "mask lacks nothing and has 'fc.b",
    ),
    "of another shape": (
        put("conv.weight", lambda a: a[1:]),
        r"mask\['conv.weight'\].shape=\(3, 3, 3, 3\); it must be \(4, 3, 3, 3\), 'stem/k",
    ),
    "not of 0 and 1": (
        put("fc.weight", at((0, 3), 2)),
        r"mask\['fc.weight'\]\[0, 3\]=2.0; it must be 0 or 1, 'head/kernel' here",
    ),
    "with nan": (
        put("fc.weight", at((0, 3), np.nan)),
        r"mask\['fc.weight'\]\[0, 3\]=nan",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_both_names(case):
    change, message = WEIGHTS[case]
    net = NETS["resnet"]()
    with pytest.raises(ValueError, match=message):
        imported(net._replace(state=change(net.state)))


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_do_not_fit_are_refused_by_both_names(case):
    change, message = MASKS[case]
    net = NETS["resnet"]()
    with pytest.raises(ValueError, match=message):
        imported(net, change(masks_of(net.state)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_are_of_any_dtype(dtype):
    net = NETS["lenet"]()
    mask = masks_of(net.state)
    other = {name: array.astype(dtype) for name, array in mask.items()}
    assert_same_bits(imported(net, other)[:3], imported(net, mask)[:3])


class Counting(nn.Module):
    """A model with a state that is no norm's."""

    @nn.compact
    def __call__(self, x):
        self.variable("calls", "count", lambda: np.zeros((), np.float32))
        return models.layers.Dense(5, name="head")(x)

    @nn.nowrap
    def unit_plan(self):
        return lj.units.in_sequence([])


class Unplanned(Counting):
    """A model that names layers which it lacks."""

    @nn.nowrap
    def unit_plan(self):
        return lj.units.in_sequence([("dense_0", None)])


def model(name, **choices):
    return models.make(name, 10, **choices)


MODELS = {
    "no convention": (
        dict(names="keras"),
        "names='keras'; it must be one of open_lth, t",
    ),
    "not of this convention": (
        dict(model=model("conv-2")),
        r"names='open_lth'; it must be the modules of \['conv_0', .* no ConvNet",
    ),
    "not torchvision's": (
        dict(names="torchvision"),
        "model.imagenet=False; it must be True",
    ),
    "a layer without a name": (
        dict(names={"stem": "conv"}),
        r"names lacks \['stem_norm', .* and has nothing too much",
    ),
    "one module for two": (
        dict(model=model("mlp-3"), names={"dense_0": "fc", "head": "fc"}),
        "the modules of names=.* all different",
    ),
    "another epsilon": (
        dict(model=model("resnet-8-4", epsilon=1e-3)),
        "model.choices.epsilon=0.001; it must be 1e-05, as in open_lth",
    ),
    "images that open_lth averages otherwise": (
        dict(model=model("vgg-11-4"), shape=(48, 48, 3)),
        r"shape=\(48, 48, 3\); it must be one of 2 x 2 pixels after 4 poolings",
    ),
    "images that are not square": (
        dict(shape=(8, 12, 3)),
        r"shape=\(8, 12, 3\); it must be square",
    ),
    "a shape of batches": (
        dict(shape=(1, 8, 8, 3)),
        r"shape=\(1, 8, 8, 3\); it must be that of one input",
    ),
    "a shape that the model does not take": (
        dict(shape=(8,)),
        r"shape=\(8,\); it must be that of an input of ResNet: ",
    ),
    "another state": (
        dict(model=Counting(), shape=(8,), names={"head": "fc"}),
        r"model=Counting; it must be one without \['calls/count'\], of which",
    ),
    "layers that are not there": (
        dict(model=Unplanned(), shape=(8,), names={"head": "fc", "dense_0": "fc_0"}),
        r"params=\['head/bias', 'head/kernel'\]; there must be 'dense_0/kernel'",
    ),
    "no units": (
        dict(model=object()),
        "model=object; it must be one with a method unit_plan",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_compute_something_else_are_refused(case):
    change, message = MODELS[case]
    net = NETS["resnet"]()
    with pytest.raises(ValueError, match=message):
        imported(net, **change)


def test_one_s_own_names_leave_epsilon_to_oneself():
    """A convention has one; a network of one's own has its own, which the model is given."""
    net = NETS["resnet"]()
    names = pytorch.modules(net.model)
    other = net._replace(model=model("resnet-8-4", epsilon=1e-3), names=names)
    assert_same_bits(imported(other)[:3], imported(net)[:3])


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["fc.weight"],
            "a name of weights='fc.weight'; it must be of an nn.Sequential",
        ),
        (["a.0.weight", "b.0.weight"], r"weights=those of \['a.', 'b.'\]; it must be"),
        (
            ["0.weight", "2.weight"],
            r"the modules of weights=\['0', '2'\]; it must be as",
        ),
    ],
)
def test_what_is_no_nn_sequential_of_the_model_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        pytorch.sequential(conv_2().model, dict.fromkeys(names))
    with pytest.raises(ValueError, match="one whose layers follow one another"):
        pytorch.sequential(model("resnet-8-4"), {})


def test_tickets_of_another_model_and_pruned_biases_are_refused():
    net = NETS["resnet"]()
    ticket = imported(net)
    with pytest.raises(
        ValueError, match="of ticket.params has shape|ticket.params has th"
    ):
        exported(net._replace(model=model("resnet-8-8")), ticket)
    mask = lj.trees.map_by_path(lambda p, m: m & (p != "head/bias"), ticket.mask)
    with pytest.raises(ValueError, match=r"ticket.mask\['head/bias'\]=False in places"):
        exported(net, ticket._replace(mask=mask))
    half = jax.tree.map(lambda p: p.astype(np.float16), ticket.params)
    with pytest.raises(
        ValueError, match=r"ticket\['stem/kernel'\].dtype=float16; .*'conv"
    ):
        exported(net, ticket._replace(params=half))
    ticket.params["head"]["kernel"][3, 4] = np.inf
    message = (
        r"ticket\['head/kernel'\]\[3, 4\]=inf; it must be finite, 'fc.weight' there"
    )
    with pytest.raises(ValueError, match=message):
        exported(net, ticket)


# --- with PyTorch itself --------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def module(torch, name):
    """The networks of `NETS` as modules."""
    nn, relu = torch.nn, torch.nn.functional.relu  # the file's own are Flax and NumPy

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = [(36, 20), (20, 15)]
            self.fc_layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
            self.fc = nn.Linear(15, 5)

        def forward(self, x):
            x = x.flatten(1)
            for layer in self.fc_layers:
                x = relu(layer(x))
            return self.fc(x)

    class ConvModule(nn.Module):
        def __init__(self, before, width):
            super().__init__()
            self.conv = nn.Conv2d(before, width, 3, padding=1)
            self.bn = nn.BatchNorm2d(width)

        def forward(self, x):
            return relu(self.bn(self.conv(x)))

    class Vgg(nn.Module):
        def __init__(self):
            super().__init__()
            layers, before = [], 3
            for spec in VGG_PLAN:
                if spec == "M":
                    layers.append(nn.MaxPool2d(2, 2))
                else:
                    layers.append(ConvModule(before, spec))
                    before = spec
            self.layers = nn.Sequential(*layers)
            self.fc = nn.Linear(before, 10)

        def forward(self, x):
            return self.fc(nn.AvgPool2d(2)(self.layers(x)).flatten(1))

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            shape = {"kernel_size": 3, "padding": 1, "bias": False}
            self.conv1 = nn.Conv2d(before, width, stride=stride, **shape)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, **shape)
            self.bn2 = nn.BatchNorm2d(width)
            self.shortcut = nn.Sequential()
            if before != width:
                project = nn.Conv2d(before, width, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(project, nn.BatchNorm2d(width))

        def forward(self, x):
            y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
            return relu(y + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(4)
            sizes = [(4, 4, 1), (4, 8, 2), (8, 16, 2)]
            self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
            self.fc = nn.Linear(16, 10)

        def forward(self, x):
            x = self.blocks(relu(self.bn(self.conv(x))))
            x = torch.nn.functional.avg_pool2d(x, x.size()[3])
            return self.fc(x.flatten(1))

    def conv_2():
        convs = [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
        ]
        dense = [
            nn.Linear(60, 20),
            nn.ReLU(),
            nn.Linear(20, 15),
            nn.ReLU(),
            nn.Linear(15, 5),
        ]
        return nn.Sequential(*convs, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *dense)

    torch.manual_seed(0)
    makes = {"lenet": LeNet, "conv-2": conv_2, "vgg": Vgg, "resnet": ResNet}
    return makes[name]()


@pytest.mark.parametrize("name", ["lenet", "conv-2", "vgg", "resnet"])
def test_pytorch_s_own_networks_say_the_same(name, torch, tmp_path):
    net, theirs = NETS[name](), module(torch, name)
    x = images(net, 5)
    with torch.no_grad():
        theirs(torch.from_numpy(there(x).copy()))  # statistics of a batch, not 0 and 1
        theirs.eval()
        mask = masks_of(net.state)
        torch.save(theirs.state_dict(), tmp_path / "model_ep0_it1.pth")
        torch.save(
            {n: torch.from_numpy(m) for n, m in mask.items()}, tmp_path / "mask.pth"
        )
        for n, p in theirs.named_parameters():
            p *= torch.from_numpy(mask[n]) if n in mask else 1
        wanted = theirs(torch.from_numpy(there(x).copy())).numpy()
    net = net._replace(state=pytorch.read(tmp_path / "model_ep0_it1.pth"))
    ticket = imported(net, pytorch.read(tmp_path / "mask.pth"))
    np.testing.assert_allclose(logits(net, ticket, x), wanted, rtol=0, atol=1e-5)
    assert not np.allclose(logits(net, imported(net), x), wanted, atol=1e-3)

    # And back: what is exported loads by all its names into a fresh network.
    pytorch.write(tmp_path / "back.pth", exported(net, ticket).weights)
    fresh = module(torch, name).eval()
    fresh.load_state_dict(torch.load(tmp_path / "back.pth"), strict=True)
    with torch.no_grad():
        again = fresh(torch.from_numpy(there(x).copy())).numpy()
    assert (again == wanted).all()


def test_files_of_pytorch_that_are_no_state_dicts_are_refused(torch, tmp_path):
    path = tmp_path / "w.pth"
    for saved, message in [
        ({"epoch": 3}, r"w.pth: 'epoch'=3; it must be a tensor .* a state dict alone"),
        (torch.ones(3), r"w.pth=.*; it must be a dict of tensors by name"),
        ({"w": torch.ones(3, dtype=torch.bfloat16)}, r"'w'=a tensor of torch.bfloat16"),
        (
            {"w": torch.eye(3).to_sparse()},
            r"'w'=a tensor of torch.float32, torch.sparse",
        ),
        (torch.nn.Linear(2, 2), r"w.pth is no complete file of tensors alone"),
    ]:
        torch.save(saved, path)
        with pytest.raises(ValueError, match=message):
            pytorch.read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="w.pth is no complete file of tensors alone"):
        pytorch.read(path)


def test_tensors_are_taken_as_they_are(torch):
    net, theirs = NETS["lenet"](), module(torch, "lenet")
    ticket = imported(net._replace(state=theirs.state_dict()))
    wanted = theirs.fc.weight.detach().numpy().T
    assert (ticket.params["head"]["kernel"] == wanted).all()
    with pytest.raises(
        ValueError, match=r"weights\['fc_layers.0.weight'\]=Parameter; .*detach"
    ):
        imported(net._replace(state=dict(theirs.named_parameters())))


def test_reading_and_writing_are_those_of_storage():
    assert pytorch.read is state_dicts.read and pytorch.write is state_dicts.write
