"""`convolution` against XLA's own convolution and its derivatives."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lottery_jax.convolution import (
    METHODS,
    avg_pool,
    batched_by,
    conv,
    conv_general_dilated,
    dense,
    max_pool,
    overlapping_max_pool,
)
from lottery_jax.convolution.geometry import geometry_of
from lottery_jax.convolution.one_kernel import CANONICAL_MAPS, STOCK

# Sums of at most 300 products of order 1 in float32, in another order.
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-4)


def stock(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normal(seed, *shape, dtype=jnp.float32):
    # NumPy's, not JAX's, which compiles a program for every shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize(
    "images, size, window, strides, padding",
    [
        (4, (8, 8), (3, 3), (1, 1), "SAME"),
        (6, (18, 17), (3, 3), (1, 1), "SAME"),  # images are no multiple of 4
        (5, (9, 7), (3, 3), (2, 2), "SAME"),
        (3, (8, 8), (3, 3), (2, 2), "VALID"),  # a row that no window reaches
        (2, (8, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
        (4, (7, 8), (1, 1), (1, 1), "SAME"),
        (4, (7, 8), (1, 1), (2, 2), "SAME"),
        (2, (5, 5), (1, 1), (2, 2), ((1, 0), (0, 2))),
        (2, (7, 9), (2, 3), (1, 2), ((0, 3), (4, 0))),  # more padding than window
        (2, (9, 9), (3, 3), (2, 1), ((-1, 0), (1, -2))),  # cropped
        (9, (2, 2), (3, 3), (1, 1), "SAME"),  # fewer pixels than the window
        (5, (6, 8), (3, 4), (1, 1), "SAME"),  # pairs of columns, an even window
        (3, (4, 6), (2, 2), (1, 1), "VALID"),  # columns that nothing pairs
        (4, (4, 5), (3, 3), (1, 1), ((2, 2), (2, 2))),  # larger than the image
        (2, (3, 3), (3, 3), (1, 1), "VALID"),
        (2, (4, 4), (3, 3), (2, 2), "SAME_LOWER"),
        # The stem of ImageNet's networks; the last row is one that no window reaches.
        (3, (16, 16), (7, 7), (2, 2), ((3, 3), (3, 3))),
        (2, (15, 10), (7, 7), (2, 2), ((3, 3), (3, 3))),
        (2, (4, 2), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ],
)
def test_value_and_both_gradients(images, size, window, strides, padding):
    x, kernel = normal(0, images, *size, 3), normal(1, *window, 3, 4)
    options = {"strides": strides, "padding": padding}

    @jax.jit
    def both(x, kernel):
        y, pullback = jax.vjp(partial(stock, **options), x, kernel)
        g = jnp.cos(y)
        ours, our_pullback = jax.vjp(partial(conv, **options), x, kernel)
        return (y, *pullback(g)), (ours, *our_pullback(g))

    want, got = both(x, kernel)
    for a, b in zip(want, got):
        assert a.shape == b.shape
        close(a, b)


def test_many_chunks_and_a_rest_are_one_sum():
    # 3 x 4 images and 2 more of 16 x 16 pixels: the scan and what is left over.
    x, g = normal(0, 14, 16, 16, 2), normal(1, 14, 16, 16, 3)
    kernel = jnp.zeros((3, 3, 2, 3))
    want = jax.vjp(lambda k: stock(x, k), kernel)[1](g)[0]
    got = jax.vjp(lambda k: conv(x, k), kernel)[1](g)[0]
    # 3584 products.
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-3)


def derivatives(f, kernel, x, kernel_tangent, x_tangent):
    """First and second derivatives of a scalar, in the kernel and in the input."""

    def loss(kernel, x):
        # Twice, so that one convolution's input depends on the kernel as well.
        return jnp.sum(jnp.sin(f(jnp.tanh(f(x, kernel)), kernel)))

    gradient = jax.grad(loss, (0, 1))
    primals, tangents = (kernel, x), (kernel_tangent, x_tangent)

    def flatness(kernel, x):  # what GraSP differentiates: gradient times vector
        return sum(jnp.vdot(a, b) for a, b in zip(gradient(kernel, x), tangents))

    return {
        "jvp": jax.jvp(loss, primals, tangents)[1],
        "grad": gradient(*primals),
        "jvp(grad)": jax.jvp(gradient, primals, tangents)[1],
        "grad(grad . v)": jax.grad(flatness, (0, 1))(*primals),
        "grad(jvp)": jax.grad(lambda *p: jax.jvp(loss, p, tangents)[1], (0, 1))(
            *primals
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "method"),
    [
        (None, None),
        ((0, 0), None),
        ((0, None), None),
        ((None, 0), None),
        ((3, 2), None),
        ((0, 0), "tiles"),
        (None, "tiles"),
    ],
)
def test_derivatives_of_any_order(axes, method):
    shapes = {"kernel": (3, 3, 2, 2), "x": (3, 6, 5, 2)}
    batch = 2
    arguments, in_axes = [], []
    for i, name in enumerate(["kernel", "x", "kernel", "x"]):
        shape, axis = list(shapes[name]), None if axes is None else axes[i % 2]
        if axis is not None:
            shape.insert(axis, batch)
        arguments.append(0.5 * normal(i, *shape))
        in_axes.append(axis)

    def program(f):
        strided = partial(f, strides=(2, 1), padding=((1, 1), (2, 0)))
        function = partial(derivatives, strided)
        if axes is not None:
            function = jax.vmap(function, in_axes)
        return jax.jit(function)(*arguments)

    want = program(stock)
    with batched_by(method):
        got = program(conv)
    for name in want:
        for a, b in zip(jax.tree.leaves(want[name]), jax.tree.leaves(got[name])):
            np.testing.assert_allclose(
                b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max(), err_msg=name
            )


@pytest.mark.parametrize("operand", ["x", "kernel", "g"])
def test_a_batch_of_one_operand_of_each_map(operand):
    shapes = {"x": (3, 5, 6, 2), "kernel": (3, 3, 2, 4), "g": (3, 3, 6, 4)}
    shapes[operand] = (5, *shapes[operand])
    operands = {name: normal(i, *shapes[name]) for i, name in enumerate(shapes)}

    def maps(f, x, kernel, g):
        y, pullback = jax.vjp(partial(f, strides=(2, 1)), x, kernel)
        return y, *pullback(g)

    axes = [0 if name == operand else None for name in shapes]

    def program(f):
        return jax.jit(jax.vmap(partial(maps, f), axes))(*operands.values())

    jax.tree.map(close, program(conv), program(stock))


def test_gradient_of_a_vmap_and_two_vmaps():
    x, kernel = normal(0, 2, 3, 4, 5, 5, 2), normal(1, 3, 3, 3, 2, 2)

    def loss(f, x, kernel):
        # An axis of both operands around an axis of x alone.
        f = jax.vmap(jax.vmap(f), (0, None))
        return jnp.sum(jnp.sin(f(x, kernel)))

    want = jax.jit(jax.grad(partial(loss, stock), (0, 1)))(x, kernel)
    got = jax.jit(jax.grad(partial(loss, conv), (0, 1)))(x, kernel)
    jax.tree.map(close, got, want)


def step(f, x, kernel):
    value, gradient = jax.value_and_grad(lambda k: jnp.mean(f(x, k) ** 2))(kernel)
    return kernel - 0.1 * gradient, value


def test_a_step_in_a_loop_is_the_step_outside():
    x, kernel = normal(0, 6, 8, 8, 3), 0.1 * normal(1, 3, 3, 3, 3)

    @jax.jit
    def loop(x, kernel, steps):
        return lax.fori_loop(0, steps, lambda _, k: step(conv, x, k)[0], kernel)

    outside = kernel
    for _ in range(3):
        outside, _ = jax.jit(partial(step, stock))(x, outside)
    inside = loop(x, kernel, 3)
    assert np.abs(inside - kernel).max() > 1e-2
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)
    # The stated reason for this module: no gradient falls back to the stock form.
    text = str(jax.make_jaxpr(jax.grad(lambda k: step(conv, x, k)[1]))(kernel))
    assert "conv_general_dilated" not in text


def test_sharded_over_devices_with_a_loop_within():
    x, kernel = normal(0, 4, 3, 6, 6, 2), normal(1, 4, 3, 3, 2, 2)
    mesh = Mesh(np.array(jax.devices()[:2]), ("replicas",))

    def within(x, kernel):
        return lax.map(lambda pair: step(conv, *pair), (x, kernel))

    sharded = jax.shard_map(
        within,
        mesh=mesh,
        in_specs=P("replicas"),
        out_specs=P("replicas"),
        check_vma=False,
    )
    want = [step(stock, x[i], kernel[i])[0] for i in range(4)]
    close(jax.jit(sharded)(x, kernel)[0], jnp.stack(want))


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "grouped", "loop", "tiles"])
def test_under_shard_map_nothing_is_summed_over_devices(method):
    x, kernel = normal(0, 4, 2, 5, 5, 2), normal(1, 4, 3, 3, 2, 3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("replicas",))
    gradients = jax.vmap(jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1)))
    own = P("replicas")
    with batched_by(method):
        want = jax.jit(gradients)(x, kernel)
        sharded = jax.shard_map(gradients, mesh=mesh, in_specs=own, out_specs=own)
        got = jax.jit(sharded)(x, kernel)
        jax.tree.map(close, got, want)
        # For an accelerator too, whose rules differ.
        traced = jax.jit(sharded).trace(x, kernel)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "all_reduce" not in text


def test_under_shard_map_a_result_varies_as_either_operand_does():
    x, kernel = normal(0, 2, 5, 5, 2), normal(1, 2, 3, 3, 2, 3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("replicas",))

    def within(x, kernel):
        return conv(x, kernel[0])

    own = {"mesh": mesh, "in_specs": (P(), P("replicas"))}
    with pytest.raises(ValueError, match="out_specs"):
        jax.jit(jax.shard_map(within, **own, out_specs=P()))(x, kernel)

    def loss(x, kernel):  # of inputs that all devices share
        many = jax.shard_map(within, **own, out_specs=P("replicas"))
        return jnp.sum(jnp.sin(many(x, kernel)))

    def alone(x, kernel):
        return sum(jnp.sum(jnp.sin(stock(x, k))) for k in kernel)

    got = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    jax.tree.map(close, got, jax.grad(alone, (0, 1))(x, kernel))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_no_replicas_at_all(axes):
    x, kernel = jnp.zeros((0, 2, 5, 5, 2)), jnp.zeros((0, 3, 3, 2, 3))
    x, kernel = (
        a if axis == 0 else jnp.zeros(a.shape[1:]) for a, axis in zip((x, kernel), axes)
    )
    assert jax.vmap(conv, axes)(x, kernel).shape == (0, 2, 5, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "features"), [(3, 16), (3, 48), (8, 8), (16, 16), (32, 8), (4, 32)]
)
def test_few_channels_take_columns_together(channels, features):
    x, kernel = normal(0, 5, 8, 8, channels), normal(1, 3, 3, channels, features)
    y, pullback = jax.vjp(conv, x, kernel)
    want, want_pullback = jax.vjp(stock, x, kernel)
    g = jnp.cos(want)
    for got, exact in zip((y, *pullback(g)), (want, *want_pullback(g)), strict=True):
        close(got, exact)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3])
def test_every_platform_and_method_computes_the_same(groups):
    x, kernel = normal(0, groups, 2, 7, 6, 3), normal(1, groups, 3, 3, 3, 4)
    options = {"strides": (2, 1), "padding": ((1, 1), (2, 0))}
    y, pullback = jax.vjp(jax.vmap(partial(stock, **options)), x, kernel)
    g = jnp.cos(y)
    run = {
        "geometry": geometry_of(x[0], kernel[0], **options),
        "dtype": jnp.float32,
        "precision": None,
    }
    operands = ((x, kernel, y), (g, kernel, pullback(g)[0]), (x, g, pullback(g)[1]))
    for maps in (STOCK, CANONICAL_MAPS):
        for function, (a, b, want) in zip(maps, operands, strict=True):
            close(jax.vmap(partial(function, **run))(a, b), want)


PRODUCT = ("batching_dims = [0] x [0]", "convolution")
GROUPED = ("feature_group_count = 3", "while")
LOOP = ("while", "feature_group_count = 3")
LOWERED = {
    # (method, platform): R = 3; what must stand there, what must not
    (None, "cuda"): PRODUCT,
    (None, "rocm"): PRODUCT,
    (None, "tpu"): GROUPED,
    (None, "cpu"): LOOP,
} | {
    (method, platform): text
    for method, text in (("grouped", GROUPED), ("loop", LOOP), ("tiles", PRODUCT))
    for platform in ("cuda", "tpu", "cpu")
}


@pytest.mark.parametrize("method", [None, "grouped", "loop", "tiles"])
def test_methods_under_a_vmap_over_kernels(method):
    x, kernel = normal(0, 3, 2, 7, 6, 3), normal(1, 3, 3, 3, 3, 4)

    def value_and_gradients(f, x, kernel):
        y, pullback = jax.vjp(jax.vmap(f), x, kernel)
        return y, *pullback(jnp.cos(y))

    want = value_and_gradients(stock, x, kernel)
    with batched_by(method):
        ours = jax.jit(partial(value_and_gradients, conv))
        for a, b in zip(ours(x, kernel), want, strict=True):
            close(a, b)


@pytest.mark.parametrize(("method", "platform"), LOWERED)
def test_what_runs_on_a_platform(method, platform):
    x, kernel = normal(0, 3, 2, 7, 6, 3), normal(1, 3, 3, 3, 3, 4)
    there, absent = LOWERED[method, platform]
    with batched_by(method):
        traced = jax.jit(jax.vmap(conv)).trace(x, kernel)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert there in text and absent not in text
        alone = jax.jit(conv).trace(x[0], kernel[0])
        text = alone.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == ((there, absent) != PRODUCT)
    assert "while" not in text


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("method", [None, "grouped", "loop", "tiles"])
def test_dense_layers_of_many_replicas_are_one_batched_product(method, platform):
    x, kernel = normal(0, 3, 5, 7), normal(1, 3, 7, 4)

    def value_and_gradients(x, kernel):
        y, pullback = jax.vjp(jax.vmap(dense), x, kernel)
        return y, *pullback(y)

    with batched_by(method), jax.default_matmul_precision("tensorfloat32"):
        traced = jax.jit(value_and_gradients).trace(x, kernel)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == 3
    assert "stablehlo.convolution" not in text and "while" not in text


def test_an_inner_jit_does_not_remember_another_method():
    inner = jax.jit(jax.vmap(conv))
    x, kernel = normal(0, 2, 2, 4, 4, 3), normal(1, 2, 3, 3, 3, 4)
    for method, dots in ((None, 0), ("tiles", 1), ("grouped", 0)):
        with batched_by(method):
            lowered = inner.lower(x, kernel).as_text()
        assert lowered.count("stablehlo.dot_general") == dots


def test_an_unknown_method_is_refused():
    with (
        pytest.raises(ValueError, match="convolution='im2col'; it must be one of loop"),
        batched_by("im2col"),
    ):
        pass


def rounded(x, bits):
    """To the nearest number with so many bits of fraction, ties to even; NumPy."""
    x = np.asarray(x, np.float32)
    mantissa, exponent = np.frexp(x)
    scale = 2.0 ** (bits + 1)
    return np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "bits"), [("tensorfloat32", 10), ("bfloat16", 7)]
)
def test_operands_are_rounded_in_the_value_and_in_both_gradients(precision, bits):
    x, kernel = normal(0, 4, 6, 6, 3), normal(1, 3, 3, 3, 4)
    g = normal(2, 4, 6, 6, 4)
    y, pullback = jax.vjp(partial(conv, precision=precision), x, kernel)
    rx, rk, rg = (rounded(z, bits) for z in (x, kernel, g))
    want, want_pullback = jax.vjp(stock, rx, rk)
    for got, exact in zip((y, *pullback(g)), (want, *want_pullback(rg)), strict=True):
        assert got.dtype == jnp.float32
        # Products of rounded operands are exact: only the order of sums differs.
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=2e-5)
    assert np.abs(y - stock(x, kernel)).max() > 1e-4
    a, b = normal(3, 2, 5, 7), normal(4, 7, 3)
    with jax.default_matmul_precision(precision):
        got, pullback = jax.vjp(dense, a, b)
        c = normal(5, 2, 5, 3)
        ga, gb = pullback(c)
    ra, rb, rc = (rounded(z, bits).astype(np.float64) for z in (a, b, c))
    np.testing.assert_allclose(got, ra @ rb, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ga, rc @ rb.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        gb, np.einsum("nij,nik->jk", ra, rc), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dilated", [False, True])
def test_narrow_images_and_wide_kernels(method, dilated):
    """The result and the images' gradient are stored narrow, the kernel's is not."""
    narrow = normal(0, 2, 4, 6, 6, 3).astype(jnp.bfloat16)
    kernel, strides = normal(1, 2, 3, 3, 3, 4), (2, 2) if dilated else (1, 1)
    wide, rk = narrow.astype(jnp.float32), rounded(kernel, 7)
    ours = partial(conv, precision="bfloat16", strides=strides)
    want, want_pullback = jax.vjp(jax.vmap(partial(stock, strides=strides)), wide, rk)
    g = jnp.cos(want).astype(jnp.bfloat16)
    with batched_by(method):
        y, pullback = jax.vjp(jax.vmap(ours), narrow, kernel)
        gx, gk = pullback(g)
    wanted_x, wanted_k = want_pullback(g.astype(jnp.float32))
    assert (y.dtype, gx.dtype, gk.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    for got, exact in ((y, want), (gx, wanted_x)):
        error = np.abs(got.astype(jnp.float32) - exact)
        assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()
    np.testing.assert_allclose(gk, wanted_k, rtol=2e-5, atol=2e-5)


def test_narrow_vectors_and_a_wide_kernel():
    x, kernel = normal(0, 5, 7, dtype=jnp.bfloat16), normal(1, 7, 3)
    got, pullback = jax.vjp(partial(dense, precision="bfloat16"), x, kernel)
    assert [z.dtype for z in pullback(got)] == [jnp.bfloat16, jnp.float32]
    exact = np.asarray(x, np.float64) @ rounded(kernel, 7)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, 2.0**-8, 1e-6)
    wide = pullback(got)[1]
    exact = np.asarray(x, np.float64).T @ np.asarray(got, np.float64)
    np.testing.assert_allclose(wide, exact, rtol=1e-5, atol=1e-5)


def test_without_a_precision_dense_is_a_product():
    x, kernel = normal(0, 5, 7), normal(1, 7, 3)
    np.testing.assert_array_equal(dense(x, kernel), x @ kernel)
    assert "lottery_conv" not in str(jax.make_jaxpr(dense)(x, kernel))


def test_half_precision():
    x = normal(0, 8, 8, 8, 4, dtype=jnp.bfloat16)
    kernel = normal(1, 3, 3, 4, 4, dtype=jnp.bfloat16)
    wide = (x.astype(jnp.float32), kernel.astype(jnp.float32))
    f = partial(conv, preferred_element_type=jnp.float32)
    got, pullback = jax.vjp(f, x, kernel)
    want, want_pullback = jax.vjp(stock, *wide)
    assert got.dtype == jnp.float32
    close(got, want)
    gradients = pullback(jnp.cos(want))
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16]
    for a, b in zip(gradients, want_pullback(jnp.cos(want))):
        # 8 bits of mantissa on each result.
        error = np.abs(a.astype(jnp.float32) - b)
        assert error.max() < 2**-8 * np.abs(b).max()
    assert conv(x, kernel).dtype == jnp.bfloat16
    second = jax.jvp(
        jax.grad(lambda k: jnp.sum(jnp.sin(f(x, k)))), (kernel,), (kernel,)
    )[1]
    assert second.dtype == jnp.bfloat16


def test_flax_conv_takes_it():
    x = normal(0, 2, 6, 6, 4)
    options = dict(features=4, kernel_size=(3, 3), strides=2, padding=1)
    for more in ({}, {"kernel_dilation": 2}, {"feature_group_count": 2}):
        want = nn.Conv(**options, **more)
        got = nn.Conv(**options, **more, conv_general_dilated=conv_general_dilated)
        variables = want.init(jax.random.key(0), x)
        close(got.apply(variables, x), want.apply(variables, x))
        text = str(jax.make_jaxpr(got.apply)(variables, x))
        assert ("lottery_conv" in text) == (not more)


@pytest.mark.parametrize(
    "numbers, x, kernel",
    [
        (("NHC", "HIO", "NHC"), (2, 7, 3), (3, 3, 4)),
        (("NCHW", "OIHW", "NCHW"), (2, 3, 7, 7), (4, 3, 3, 3)),
        (None, (2, 3, 7, 7), (4, 3, 3, 3)),
    ],
)
def test_other_layouts_take_the_stock_path(numbers, x, kernel):
    x, kernel = normal(0, *x), normal(1, *kernel)
    strides = (1,) * (x.ndim - 2)
    want = lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=numbers
    )
    got = conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(got, want)


def test_what_does_not_fit_is_refused():
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 1))
    with pytest.raises(ValueError, match=r"\(3, 3, 2, 1\).*C_in"):
        conv(x[..., :1], kernel)
    with pytest.raises(ValueError, match="float32.*bfloat16.*one floating dtype"):
        conv(x, kernel.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="strides = .*positive"):
        conv(x, kernel, strides=(0, 1))
    with pytest.raises(ValueError, match="'CIRCULAR' must be 'SAME'"):
        conv(x, kernel, padding="CIRCULAR")
    with pytest.raises(ValueError, match="two .low, high. pairs"):
        conv(x, kernel, padding=((1, 1),))
    with pytest.raises(ValueError, match="does not fit into"):
        conv(x[:, :2], kernel, padding="VALID")
    with pytest.raises(ValueError, match="window = 5 .* 4 x 4"):
        max_pool(x, 5)
    for options in ((7, 2, 1), (3, 2, 3), (3, 2, -1), (3, 0, 1)):
        named = "window = {}, stride = {}, padding = {}: .* 4 x 4".format(*options)
        with pytest.raises(ValueError, match=named):
            overlapping_max_pool(x, *options)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize(
    "ours, theirs", [(max_pool, nn.max_pool), (avg_pool, nn.avg_pool)]
)
def test_pools_and_their_gradients(ours, theirs, window):
    x, shape = normal(0, 2, 7, 6, 3), (window, window)

    @jax.jit
    def both(x):
        want, pullback = jax.vjp(lambda x: theirs(x, shape, shape), x)
        got, our_pullback = jax.vjp(lambda x: ours(x, window), x)
        g = jnp.cos(want)
        return (want, *pullback(g)), (got, *our_pullback(g))

    for a, b in zip(*both(x)):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


def test_max_pool_shares_ties_equally():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))


def flax_max_pool(x, window=3, stride=2, padding=1):
    return nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding, padding),) * 2)


OVERLAPPING = [(3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 2, 2)]


@pytest.mark.parametrize("options", OVERLAPPING)
@pytest.mark.parametrize("ties", [False, True])
def test_overlapping_max_pool_is_flaxs_and_so_is_its_gradient(options, ties):
    x = normal(0, 2, 8, 7, 3)
    if ties:  # of four numbers, and 0 as after a ReLU
        x = jnp.maximum(jnp.round(x), 0)

    @quick.jit
    def both(x):
        want, pullback = jax.vjp(lambda x: flax_max_pool(x, *options), x)
        got, our_pullback = jax.vjp(lambda x: overlapping_max_pool(x, *options), x)
        g = normal(1, *want.shape)
        return (want, *pullback(g)), (got, *our_pullback(g))

    (want, gradient), (got, our_gradient) = both(x)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_overlapping_max_pool_against_numpy():
    x = np.asarray(normal(0, 2, 9, 6, 2)) - 5  # below what zeros would pad with
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = np.pad(x, edges, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    want = windows[:, ::2, ::2].max((-2, -1))
    np.testing.assert_array_equal(overlapping_max_pool(jnp.asarray(x)), want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_overlapping_max_pool_keeps_dtypes_and_nan(dtype):
    x = normal(0, 1, 5, 5, 1).at[0, 0, 0, 0].set(jnp.nan).astype(dtype)
    got, want = overlapping_max_pool(x), flax_max_pool(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
    assert jnp.isnan(got).sum() == 1


def test_derivatives_of_the_overlapping_max_pool_under_vmap():
    # Values in an order of their own: no ties, and none within a tangent of one.
    order = np.random.default_rng(0).permutation(2 * 2 * 6 * 6 * 2)
    x = jnp.asarray(order.reshape(2, 2, 6, 6, 2) / 100, jnp.float32)
    tangent = normal(1, *x.shape)

    def all_of(pool):
        def loss(x):
            return jnp.sum(jnp.sin(pool(jnp.tanh(x) * pool(x).mean())))

        def one(x, tangent):
            return (
                loss(x),
                jax.grad(loss)(x),
                jax.jvp(jax.grad(loss), (x,), (tangent,))[1],
            )

        return one

    derivatives = quick.jit(all_of(overlapping_max_pool))
    got = quick.jit(jax.vmap(all_of(overlapping_max_pool)))(x, tangent)
    for i, each in enumerate(map(derivatives, x, tangent)):
        for a, b in zip(got, each):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)
    # Finite differences of the gradient, along the tangent.
    step = 1e-3
    for i in range(2):
        ends = (
            derivatives(x[i] + h * tangent[i], tangent[i])[1] for h in (step, -step)
        )
        apart = np.subtract(*ends) / (2 * step)
        np.testing.assert_allclose(got[2][i], apart, rtol=0.02, atol=2e-3)
