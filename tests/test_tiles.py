"""Convolutions by tiles of pixels against XLA's own, for the shapes of all models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

import lottery_jax as lj
from lottery_jax.convolution import batched_by, conv, tiles
from lottery_jax.convolution.geometry import geometry_of


def stock(x, kernel, geometry):
    """One convolution for each kernel, `[R, ...]`."""

    def one(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            geometry.strides,
            geometry.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return jax.vmap(one)(x, kernel)


def described(size, window, strides, padding):
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, *size, 1), (*window, 1, 1))
    )
    return geometry_of(x, kernel, strides, padding)


def check(geometry, sizes, images=2, channels=3, features=4):
    """The three maps against the stock convolution and its gradients, by some tiles."""
    generator = np.random.default_rng(0)
    shapes = (images, *geometry.size, channels), (*geometry.window, channels, features)
    x, kernel = (
        jnp.asarray(generator.standard_normal((2, *shape), np.float32))
        for shape in shapes
    )

    @jax.jit
    def both(x, kernel):
        y, pullback = jax.vjp(partial(stock, geometry=geometry), x, kernel)
        g = jnp.cos(y)
        run = {"geometry": geometry, "dtype": jnp.float32, "precision": None}
        ours = [
            (
                tiles.forward(x, kernel, **run, tile=tile),
                tiles.input_gradient(g, kernel, **run, tile=tile),
                tiles.kernel_gradient(x, g, **run, tile=tile),
            )
            for tile in sizes
        ]
        return (y, *pullback(g)), ours

    exact, ours = both(x, kernel)
    for tile, maps in zip(sizes, ours, strict=True):
        for want, got in zip(exact, maps, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            # Sums of products of order 1 in another order.
            most = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(
                got, want, rtol=0, atol=5e-6 * most, err_msg=str(tile)
            )


TILES = [None, (1, 1), (2, 2), (4, 4), (1, 8), (4, 3)]


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), "SAME"),
        ((7, 9), (3, 3), (1, 1), "SAME"),  # tiles reach over the image
        ((9, 7), (3, 3), (2, 2), "SAME"),
        ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((8, 8), (3, 3), (2, 2), "VALID"),  # a row that no window reaches
        ((8, 8), (1, 1), (2, 2), "VALID"),
        ((6, 7), (1, 1), (1, 1), "VALID"),
        ((12, 12), (5, 5), (3, 3), ((2, 2), (2, 2))),
        ((11, 10), (5, 4), (1, 2), ((0, 3), (4, 0))),  # more padding than window
        ((9, 9), (3, 3), (2, 1), ((-1, 0), (1, -2))),  # cropped
        ((5, 6), (2, 2), (3, 3), "VALID"),  # pixels between the windows
        ((2, 2), (3, 3), (1, 1), "SAME"),
        ((4, 5), (3, 3), (1, 1), ((2, 2), (2, 2))),  # larger than the image
        ((1, 1), (1, 1), (1, 1), "VALID"),  # a dense layer
    ],
)
@pytest.mark.usefixtures("compiled_quickly")
def test_values_and_both_gradients_by_every_tile(size, window, strides, padding):
    check(described(size, window, strides, padding), TILES)


def convolutions(name, shape):
    """The geometry, channels and features of a model's convolutions."""
    model = lj.models.make(name, 10)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(model.apply)(variables, x)

    def found(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "lottery_conv":
                channels, features = eqn.invars[1].aval.shape[-2:]
                yield eqn.params["geometry"], channels, features
            for inner in core.jaxprs_in_params(eqn.params):
                yield from found(inner)

    return set(found(jaxpr.jaxpr))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet-20", 32),
        slow("conv-6", 32),
        slow("conv-8", 32),
        slow("vgg-16", 32),
        slow("imagenet-resnet-18", 64),
        slow("imagenet-resnet-50", 64),
    ],
)
@pytest.mark.usefixtures("compiled_quickly")
def test_the_shapes_of_all_models(name, size):
    every = convolutions(name, (size, size, 3))
    assert len(every) > 2
    for geometry in {own for own, *_ in every}:
        widest = max((c, d) for own, c, d in every if own == geometry)
        tile = tiles.cheapest(128, geometry, *widest, itemsize=4)
        assert all(1 <= t <= max(n, 1) for t, n in zip(tile, geometry.output))
        # The tile of the real widths, with fewer channels.
        check(geometry, [tile], images=1, channels=2, features=3)


def test_narrow_layers_take_large_tiles_and_wide_ones_single_pixels():
    def tile(size, channels, itemsize=4):
        own = described((size, size), (3, 3), (1, 1), "SAME")
        return tiles.cheapest(128, own, channels, channels, itemsize)

    sizes = [np.prod(tile(32, channels)) for channels in (4, 16, 64, 256, 1024)]
    assert sizes == sorted(sizes, reverse=True)
    assert tile(32, 16) == (4, 4) and tile(4, 512) == (1, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_other_dtypes(dtype):
    own = described((6, 7), (3, 3), (2, 1), "SAME")
    generator = np.random.default_rng(1)
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(generator.standard_normal((2, 3, 6, 7, 4)), dtype)
        kernel = jnp.asarray(generator.standard_normal((2, 3, 3, 4, 5)), dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        run = {"geometry": own, "dtype": wide, "precision": None, "tile": (2, 2)}

        @jax.jit
        def both(x, kernel):
            exact = partial(stock, geometry=own)
            y, pullback = jax.vjp(exact, x.astype(wide), kernel.astype(wide))
            g = jnp.cos(y).astype(dtype)
            ours = (
                tiles.forward(x, kernel, **run),
                tiles.input_gradient(g, kernel, **run),
                tiles.kernel_gradient(x, g, **run),
            )
            return (y, *pullback(g.astype(wide))), ours

        want, got = both(x, kernel)
        # Products of narrow operands are exact in the wide dtype.
        tolerance = 1e-13 if dtype == jnp.float64 else 1e-5
        for a, b in zip(got, want, strict=True):
            assert a.dtype == wide
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_windows_are_what_tiles_see():
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 6, 2), np.float32)
    counts, strides, sizes, low = (2, 3), (3, 2), (4, 3), (1, 0)
    got = tiles.windows(jnp.asarray(x), counts, strides, sizes, low)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 4), (0, 4), (0, 0)))
    want = np.stack(
        [
            padded[:, :, 3 * i : 3 * i + 4, 2 * j : 2 * j + 3].reshape(2, 3, -1)
            for i in range(2)
            for j in range(3)
        ],
        axis=2,
    )
    np.testing.assert_array_equal(got, want.reshape(2, 3 * 6, -1))


def test_a_spread_kernel_holds_each_tap_once_for_each_pixel_of_the_tile():
    kernel = np.random.default_rng(3).standard_normal((2, 3, 2, 4, 5), np.float32)
    own = described((8, 8), (3, 2), (2, 1), "SAME")
    got = np.asarray(tiles.spread(jnp.asarray(kernel), tiles.taps(own, (2, 3))))
    want = np.zeros((2, 5, 4, 4, 2, 3, 5), np.float32)
    for a in range(2):
        for b in range(3):
            want[:, 2 * a : 2 * a + 3, b : b + 2, :, a, b] = kernel
    np.testing.assert_array_equal(got, want.reshape(2, 5 * 4 * 4, 2 * 3 * 5))


def test_nothing_is_padded_or_concatenated():
    """What makes a GPU's kernels load single values behind branches."""
    x, kernel = jnp.zeros((3, 2, 8, 8, 4)), jnp.zeros((3, 3, 3, 4, 4))

    def value_and_gradients(x, kernel):
        y, pullback = jax.vjp(jax.vmap(conv), x, kernel)
        return y, *pullback(y)

    with batched_by("tiles"):
        traced = jax.jit(value_and_gradients).trace(x, kernel)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.dot_general" in text
    for absent in ("stablehlo.pad", "stablehlo.convolution"):
        assert absent not in text
    joined = [line for line in text.splitlines() if "stablehlo.concatenate" in line]
    assert all("xi32>" in line for line in joined)  # lists of pixels, constants


def test_the_kernel_gradient_takes_the_windows_of_the_value():
    x, kernel = jnp.ones((3, 2, 8, 8, 4)), jnp.ones((3, 3, 3, 4, 4))
    own = described((8, 8), (3, 3), (1, 1), "SAME")
    run = {"geometry": own, "dtype": jnp.float32, "precision": None}

    def value(x, kernel):
        return tiles.forward(x, kernel, **run)

    def gradient(x, kernel):
        return tiles.kernel_gradient(x, jnp.sin(x), **run)

    def gathers(*functions):
        def all_of_them(x, kernel):
            return [f(x, kernel) for f in functions]

        text = jax.jit(all_of_them).lower(x, kernel).compile().as_text()
        return text.count(" gather(")

    assert gathers(value, gradient) == gathers(value) + gathers(gradient) - 1
