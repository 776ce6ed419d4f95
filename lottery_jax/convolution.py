"""One 2-D convolution, fast in loops and under `vmap`, differentiable at will.

A convolution and its two gradients are three bilinear maps,

    forward(x, kernel) -> y,  input_gradient(g, kernel),  kernel_gradient(x, g),

and the two transposes of each are the other two. They are three JAX primitives here,
so that `jvp`, `grad` and any nesting of the two stay among them. Every operand carries
a leading axis R, one kernel per entry: a `vmap` over kernels makes R longer, and how R
is executed is chosen per platform when the program is lowered (the last section).

Why not `jax.lax.conv_general_dilated` alone: inside the body of an XLA loop on CPU only
convolutions of the form `b01f,01io->b01f` take the fast path, the stock gradients do
not have that form (jax-ml/jax#12868), and under a `vmap` over kernels all three become
grouped convolutions, which are slow on CPU (jax-ml/jax#13800, #26266).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lottery_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]
"""`"SAME"`, `"SAME_LOWER"`, `"VALID"`, or (low, high) for each of height and width."""

_CANONICAL = ("NHWC", "HWIO", "NHWC")
_NONE = ((0, 0), (0, 0))


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """A 2-D convolution (cross-correlation), the value of `lax.conv_general_dilated`.

    Fast inside `lax.scan` and `lax.fori_loop` on CPU, forward and backward, and under
    `vmap` with a kernel per replica. `jvp` and `grad` may be nested in any order, inside
    or outside of `vmap`. Equal to the stock convolution up to the order of summation.

    Args:
      x: input, floating, `[N, H, W, C_in]`.
      kernel: same dtype, `[h, w, C_in, C_out]`.
      strides: of the window, in pixels, at least 1.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"` or two (low, high) pairs of pixels.
      precision: as in `lax.conv_general_dilated`; None takes the value of
        `jax_default_matmul_precision` when the function is traced.
      preferred_element_type: dtype of the result; None takes that of `x`. Gradients
        have the dtype of what they are gradients in; the kernel's is summed in float32
        at least.

    Returns:
      `[N, H', W', C_out]`.

    Raises:
      ValueError: if ranks, channels, dtypes, strides or padding do not fit.
    """
    geometry = _geometry(x, kernel, strides, padding)
    if precision is None:
        # Read here, not when the primitive is lowered: part of what was asked for.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    elif isinstance(precision, list):
        precision = tuple(precision)
    dtype = jnp.dtype(
        x.dtype if preferred_element_type is None else preferred_element_type
    )
    y = _forward_p.bind(
        x[None], kernel[None], geometry=geometry, dtype=dtype, precision=precision
    )
    return y[0]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`conv` where it applies, else `lax.conv_general_dilated`: same arguments, values.

    For `flax.linen.Conv(..., conv_general_dilated=conv_general_dilated)`. `conv` applies
    to floating 2-D convolutions in NHWC, HWIO without dilation or groups; 1-D and 3-D
    ones, dilated and grouped ones, other layouts and integers take the stock path, which
    is correct everywhere and slow in the loops this module is about.

    Args:
      lhs: input, laid out as `dimension_numbers` says.
      rhs: kernel, likewise.
      window_strides: one per spatial axis.
      padding: a string or one (low, high) pair per spatial axis.
      lhs_dilation: dilation of the input; None is 1.
      rhs_dilation: dilation of the kernel; None is 1.
      dimension_numbers: as in `lax.conv_general_dilated`; None is NCHW, OIHW.
      feature_group_count: number of groups of channels.
      batch_group_count: number of groups of examples.
      precision: as in `conv`.
      preferred_element_type: as in `conv`.

    Returns:
      The convolution, laid out as `dimension_numbers` says.
    """
    covered = (
        lhs.ndim == rhs.ndim == 4
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _CANONICAL)
    )
    if covered:
        return conv(
            lhs,
            rhs,
            strides=window_strides,
            padding=padding,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def max_pool(x: Array, window: int = 2) -> Array:
    """Maximum over non-overlapping windows; its gradient is cheap in loops.

    Where entries tie for the maximum the gradient is shared among them, equally if
    `window` is 2 (`flax.linen.max_pool` and PyTorch give all of it to the first one).
    After a ReLU that concerns windows of zeros, whose gradient the ReLU stops anyway.

    Args:
      x: `[N, H, W, C]`.
      window: side of the window in pixels; rows and columns left over are dropped.

    Returns:
      `[N, H // window, W // window, C]`.

    Raises:
      ValueError: if the window is smaller than 1 or larger than the image.
    """
    return _pool(jnp.maximum, x, window)


def avg_pool(x: Array, window: int = 2) -> Array:
    """Mean over non-overlapping windows; arguments and shapes as in `max_pool`."""
    return _pool(jnp.add, x, window) / window**2


def _pool(combine: Callable[[Array, Array], Array], x: Array, window: int) -> Array:
    n, height, width, channels = x.shape
    if not 1 <= window <= min(height, width):
        raise ValueError(
            f"window = {window} must be at least 1 and fit into the {height} x {width} "
            "pixels of x"
        )
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    x = x.reshape(n, rows, window, columns, window, channels)
    # Elementwise over slices: inside a loop on CPU a reduction over axes as short as
    # these costs 4 times as much, `reduce_window` 15 times.
    x = reduce(combine, [x[:, :, i] for i in range(window)])
    return reduce(combine, [x[:, :, :, j] for j in range(window)])


class _Geometry(NamedTuple):
    """What the three maps of one convolution share: static, hashable, in pixels."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    size: tuple[int, ...]  # of the input
    window: tuple[int, ...]  # of the kernel
    output: tuple[int, ...]


def _geometry(x: Array, kernel: Array, strides: Any, padding: Any) -> _Geometry:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} must have shapes [N, H, W, C_in] "
            "and [h, w, C_in, C_out]"
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x ({x.dtype}) and kernel ({kernel.dtype}) must have one floating dtype"
        )
    strides = tuple(int(s) for s in strides)
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"strides = {strides} must be two positive integers")
    size, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        if padding not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(
                f"padding = {padding!r} must be 'SAME', 'SAME_LOWER', 'VALID' or two "
                "(low, high) pairs"
            )
        padding = lax.padtype_to_pads(size, window, strides, padding)
    edges = tuple((int(low), int(high)) for low, high in padding)
    if len(edges) != 2:
        raise ValueError(f"padding = {padding} must be two (low, high) pairs")
    output = tuple(
        (n + sum(edge) - k) // s + 1
        for n, edge, k, s in zip(size, edges, window, strides)
    )
    if min(output) < 1:
        raise ValueError(
            f"a window of {window} does not fit into {size} pixels padded by {edges}"
        )
    return _Geometry(strides, edges, size, window, output)


# The primitives. Operands: x [R, N, H, W, Ci], kernel [R, h, w, Ci, Co] and
# g [R, N, H', W', Co], a gradient in the output. Each of the three axes N, Ci and Co is
# shared by two of them.

_forward_p = Primitive("lottery_conv")
_input_gradient_p = Primitive("lottery_conv_input_gradient")
_kernel_gradient_p = Primitive("lottery_conv_kernel_gradient")


def _define(
    primitive: Primitive,
    shape: Callable[[Any, Any, _Geometry], tuple[int, ...]],
    transposes: tuple[Callable[..., Array], Callable[..., Array]],
    joins: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Gives a bilinear map its rules.

    Args:
      primitive: of two operands.
      shape: shape of the result, from the operands and the geometry.
      transposes: gradients in the first and in the second operand, from the gradient
        in the result and both operands, one of which is unknown.
      joins: for each operand the axis that it contributes to the result and the other
        operand lacks: its position in the operand and in the result.
    """

    def abstract(a, b, *, geometry, dtype, precision):
        # `update` keeps what else an abstract value says (mesh axes it varies over).
        return a.update(shape=shape(a, b, geometry), dtype=dtype, weak_type=False)

    def transpose(rule, gradient, a, b, *, dtype, **params):
        unknown = a if ad.is_undefined_primal(a) else b
        return rule(gradient, a, b, dtype=unknown.aval.dtype, **params)

    def batch(operands, axes, **params):
        (a, b), (batch_a, batch_b) = operands, axes
        if batch_a is not None and batch_b is not None:
            a, size = _join(a, batch_a, 0)
            b, size = _join(b, batch_b, 0)
            at = 0
        # A batch of one operand alone needs no groups: it joins the axis that only
        # this operand contributes. Inputs become more images, kernels more channels.
        elif batch_a is not None:
            axis, at = joins[0]
            a, size = _join(a, batch_a, axis)
        else:
            axis, at = joins[1]
            b, size = _join(b, batch_b, axis)
        out = primitive.bind(a, b, **params)
        split = (size, out.shape[at] // size)
        return out.reshape(*out.shape[:at], *split, *out.shape[at + 1 :]), at

    static = ("geometry", "dtype", "precision")
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=static))
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, *(partial(transpose, rule) for rule in transposes))
    batching.primitive_batchers[primitive] = batch


def _join(operand: Array, batch: int, axis: int) -> tuple[Array, int]:
    size = operand.shape[batch]
    operand = jnp.moveaxis(operand, batch, axis)
    joined = size * operand.shape[axis + 1]
    shape = (*operand.shape[:axis], joined, *operand.shape[axis + 2 :])
    return operand.reshape(shape), size


_define(
    _forward_p,
    shape=lambda x, kernel, geometry: (
        *x.shape[:2],
        *geometry.output,
        kernel.shape[4],
    ),
    transposes=(
        lambda g, x, kernel, **params: _input_gradient_p.bind(g, kernel, **params),
        lambda g, x, kernel, **params: _kernel_gradient_p.bind(x, g, **params),
    ),
    joins=((1, 1), (4, 4)),
)
_define(
    _input_gradient_p,
    shape=lambda g, kernel, geometry: (
        *g.shape[:2],
        *geometry.size,
        kernel.shape[3],
    ),
    transposes=(
        lambda x, g, kernel, **params: _forward_p.bind(x, kernel, **params),
        lambda x, g, kernel, **params: _kernel_gradient_p.bind(x, g, **params),
    ),
    joins=((1, 1), (3, 4)),
)
_define(
    _kernel_gradient_p,
    shape=lambda x, g, geometry: (
        x.shape[0],
        *geometry.window,
        x.shape[4],
        g.shape[4],
    ),
    transposes=(
        lambda kernel, x, g, **params: _input_gradient_p.bind(g, kernel, **params),
        lambda kernel, x, g, **params: _forward_p.bind(x, kernel, **params),
    ),
    joins=((4, 3), (4, 4)),
)


# How one group is computed: x [N, H, W, Ci], kernel [h, w, Ci, Co], g [N, H', W', Co],
# all of one dtype; the result has `dtype`, at least as wide.


def _stock_forward(x, kernel, geometry, dtype, precision):
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=_CANONICAL,
        precision=precision,
        preferred_element_type=dtype,
    )


def _stock_input_gradient(g, kernel, geometry, dtype, precision):
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.size, kernel.shape[2]), g.dtype)
    forward = partial(
        _stock_forward, geometry=geometry, dtype=g.dtype, precision=precision
    )
    return jax.linear_transpose(lambda x: forward(x, kernel), x)(g)[0]


def _stock_kernel_gradient(x, g, geometry, dtype, precision):
    shape = (*geometry.window, x.shape[3], g.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, g.dtype)
    forward = partial(
        _stock_forward, geometry=geometry, dtype=g.dtype, precision=precision
    )
    return jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(g)[0]


def _canonical_forward(x, kernel, geometry, dtype, precision):
    stretched = geometry.strides != (1, 1)
    if not stretched and math.prod(geometry.size) < math.prod(geometry.window):
        # XLA swaps the operands where the window has more pixels than the image, and
        # the swapped convolution has no fast path (100 times slower, 2 x 2 pixels).
        return lax.dot_general(
            _patches(_pad(x, geometry.padding), geometry),
            kernel.reshape(-1, kernel.shape[3]),
            (((3,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=dtype,
        )
    return _stock_forward(x, kernel, geometry, dtype, precision)


def _canonical_input_gradient(g, kernel, geometry, dtype, precision):
    """The convolution of the spread output gradient with the flipped kernel."""
    spread = tuple((m - 1) * s + 1 for m, s in zip(geometry.output, geometry.strides))
    before = [k - 1 - low for k, (low, _) in zip(geometry.window, geometry.padding)]
    after = [
        n + k - 1 - m - low
        for n, k, m, low in zip(geometry.size, geometry.window, spread, before)
    ]
    padding = tuple(zip(before, after))
    if geometry.window == (1, 1):
        g = lax.dot_general(
            g,
            kernel[0, 0],
            (((3,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=dtype,
        )
        return _pad(g, padding, geometry.strides)
    if geometry.strides != (1, 1):
        g, padding, spread = _pad(g, padding, geometry.strides), _NONE, geometry.size
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    mirrored = _Geometry((1, 1), padding, g.shape[1:3], geometry.window, geometry.size)
    return _canonical_forward(g, flipped, mirrored, dtype, precision)


def _canonical_kernel_gradient(x, g, geometry, dtype, precision):
    """Patches of a few images at a time, and one matrix product for each few.

    A scan, because its operands are materialised: otherwise XLA recomputes what made
    `x` (normalisation, ReLU, residual sums) inside every transpose of it. The patches
    of a few images stay in cache, and taking them with the stride needs no zeros.
    """
    pixels = math.prod(geometry.output)
    # Enough rows in each product to pay for adding up the gradients of wide layers.
    images = max(4, -(-1024 // pixels))
    wide = jnp.promote_types(dtype, jnp.float32)

    def product(x, g):
        patches = _patches(_pad(x, geometry.padding), geometry)
        return lax.dot_general(
            patches,
            g,
            (((0, 1, 2), (0, 1, 2)), ((), ())),
            precision=precision,
            preferred_element_type=wide,
        )

    chunks, rest = divmod(x.shape[0], images)
    whole = chunks * images
    if rest:
        total = product(x[whole:], g[whole:])
    else:
        rows = math.prod(geometry.window) * x.shape[3]
        total = jnp.zeros((rows, g.shape[3]), wide)
    if chunks:
        split = [z[:whole].reshape(chunks, images, *z.shape[1:]) for z in (x, g)]
        total, _ = lax.scan(lambda t, few: (t + product(*few), None), total, split)
    return total.reshape(*geometry.window, x.shape[3], g.shape[3])


def _pad(x: Array, padding: Any, strides: tuple[int, int] = (1, 1)) -> Array:
    if padding == _NONE and strides == (1, 1):
        return x
    edges = [(low, high, s - 1) for (low, high), s in zip(padding, strides)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _patches(x: Array, geometry: _Geometry) -> Array:
    """What the window sees: padded [N, ., ., C] to [N, H', W', h * w * C]."""
    (rows, columns), (height, width) = geometry.strides, geometry.output
    slices = [
        x[:, i : i + rows * height : rows, j : j + columns * width : columns]
        for i in range(geometry.window[0])
        for j in range(geometry.window[1])
    ]
    return jnp.concatenate(slices, axis=-1)


# How R groups are executed, and the choice of both per platform.


def _one_by_one(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    if a.shape[0] == 1:
        return function(a[0], b[0])[None]
    return lax.map(lambda pair: function(*pair), (a, b))


def _grouped(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    if a.shape[0] == 1:
        return function(a[0], b[0])[None]
    return jax.vmap(function)(a, b)


def _lower(primitive, function, execute, platform=None):
    def lowered(a, b, *, geometry, dtype, precision):
        common = jnp.promote_types(a.dtype, b.dtype)
        wide = jnp.promote_types(common, dtype)
        compute = partial(function, geometry=geometry, dtype=wide, precision=precision)
        return execute(compute, a.astype(common), b.astype(common)).astype(dtype)

    rule = mlir.lower_fun(lowered, multiple_results=False)
    mlir.register_lowering(primitive, rule, platform=platform)


for _primitive, _stock, _canonical in (
    (_forward_p, _stock_forward, _canonical_forward),
    (_input_gradient_p, _stock_input_gradient, _canonical_input_gradient),
    (_kernel_gradient_p, _stock_kernel_gradient, _canonical_kernel_gradient),
):
    _lower(_primitive, _stock, _grouped)
    _lower(_primitive, _canonical, _one_by_one, platform="cpu")
