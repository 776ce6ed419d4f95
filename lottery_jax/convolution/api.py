"""`conv` and what calls it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lottery_jax.convolution.geometry import CANONICAL, Padding, geometry_of
from lottery_jax.convolution.primitives import forward_p
from lottery_jax.types import Array

Method: TypeAlias = Literal["loop", "tiles", "grouped"]
"""How convolutions with a kernel per replica are executed: one replica after another,
tiles of pixels and one batched matrix product, or one grouped convolution."""

METHODS: tuple[Method, ...] = get_args(Method)

# Part of the key under which JAX caches what it traced and compiled.
_METHOD = jax.make_user_context(None)


@contextlib.contextmanager
def batched_by(method: Method | None) -> Iterator[None]:
    """Says how the convolutions that are traced within are executed under `vmap`.

    Values agree up to the order of summation. Without it, or with None, each platform has
    its own: a loop on CPU, tiles on GPUs, grouped convolutions elsewhere.

    Args:
      method: one of `METHODS`, or None.

    Raises:
      ValueError: another method.
    """
    if method is not None and method not in METHODS:
        raise ValueError(
            f"convolution={method!r}; it must be one of {', '.join(METHODS)}, or None"
        )
    with _METHOD(method):
        yield


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
      kernel: same dtype or a wider one, `[h, w, C_in, C_out]`; products are those of the
        wider one unless `precision` says what their operands are rounded to.
      strides: of the window, in pixels, at least 1.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"` or two (low, high) pairs of pixels.
      precision: "float32", "tensorfloat32" and "bfloat16" say what the operands of
        products are rounded to, here and in all gradients, on every platform; sums are
        float32. Anything else is as in `lax.conv_general_dilated`. None takes the value of
        `jax_default_matmul_precision` when the function is traced.
      preferred_element_type: dtype of the result; None takes that of `x`. Gradients
        have the dtype of what they are gradients in; the kernel's is summed in float32
        at least.

    Returns:
      `[N, H', W', C_out]`.

    Raises:
      ValueError: if ranks, channels, dtypes, strides or padding do not fit.
    """
    geometry = geometry_of(x, kernel, strides, padding)
    if precision is None:
        # Read here, not when the primitive is lowered: part of what was asked for.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    elif isinstance(precision, list):
        precision = tuple(precision)
    dtype = jnp.dtype(
        x.dtype if preferred_element_type is None else preferred_element_type
    )
    x, kernel = _varying_alike(x, kernel)
    y = forward_p.bind(
        x[None],
        kernel[None],
        geometry=geometry,
        dtype=dtype,
        precision=precision,
        method=_METHOD.value,
    )
    return y[0]


def _varying_alike(*operands: Array) -> list[Array]:
    """Under `jax.shard_map` each differs along every mesh axis along which one does."""
    own = []
    for x in operands:
        aval: Any = jax.typeof(x)
        axes = getattr(aval, "vma", None)  # as older versions of JAX call it
        own.append(aval.manual_axis_type.varying if axes is None else axes)
    every = frozenset().union(*own)
    return [
        lax.pcast(x, tuple(every - axes), to="varying") if every - axes else x
        for x, axes in zip(operands, own)
    ]


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
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, CANONICAL)
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


def dense(x: Array, kernel: Array, precision: Any = None) -> Array:
    """`x @ kernel`, for any number of leading axes, at the precision of `conv`.

    Under the precisions "tensorfloat32" and "bfloat16" a dense layer goes by way of `conv`
    as images of one pixel, so that its products and those of its gradients are rounded
    alike; what runs is a matrix product, batched under `vmap`.

    Args:
      x: floating, `[..., C_in]`.
      kernel: same dtype, `[C_in, C_out]`; under these two precisions it may be wider.
      precision: as in `conv`.

    Returns:
      `[..., C_out]`.
    """
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision not in ("tensorfloat32", "bfloat16"):
        return jnp.matmul(x, kernel, precision=precision)
    pixels = x.reshape(-1, 1, 1, x.shape[-1])
    y = conv(pixels, kernel[None, None], padding="VALID", precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[1])
