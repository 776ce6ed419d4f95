"""Rulers: matrix products alone in a loop, at the shapes of a step or square."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.jax_sides.common import as_program
from benchmarks.worker import Program, Programs
from lottery_jax import convolution, replicas
from lottery_jax.replicas import Execution
from lottery_jax.types import Array, Key, PyTree


def peaks(sizes: Sequence[int], flops: float) -> Programs:
    """Square products on all devices at once, in floating-point operations.

    Args:
      sizes: of the matrices' sides; each makes a program `peak SIZE`.
      flops: about how many operations each device does per call.
    """
    return {
        f"peak {side}": on_each_device(
            square_products(side, max(1, round(flops / (2 * side**3))))
        )
        for side in sizes
    }


def step_products(
    sizes: Sequence[int], batch: int, steps: int
) -> tuple[Callable[[Key], PyTree], int]:
    """The matrix products of one step at their own shapes, over and over."""

    def run(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        weights = [
            jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, shape in zip(keys[1:], zip(sizes, sizes[1:]))
        ]

        def step(_: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            x, weights, _ = carry
            inputs = [x]
            for weight in weights:
                inputs.append(inputs[-1] @ weight)
            g = inputs.pop()
            gradients = []
            for i in reversed(range(len(weights))):
                gradients.append(inputs[i].T @ g)
                g = g @ weights[i].T if i else g
            gradients.reverse()
            # One number of the last product goes into all operands of the next step: so
            # nothing is hoisted out of the loop or left out, and nothing is copied.
            last = gradients[0][0, 0]
            mixed = [_set_first(weight, last) for weight in weights]
            return _set_first(x, last), mixed, gradients

        x = jax.random.normal(keys[0], (batch, sizes[0]))
        zeros = [jnp.zeros_like(w) for w in weights]
        return lax.fori_loop(0, steps, step, (x, weights, zeros))

    return run, steps


def forward_products(
    sizes: Sequence[int], batch: int, steps: int
) -> tuple[Callable[[Key], PyTree], int]:
    """The matrix products of one forward pass at their own shapes, over and over."""

    def run(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        weights = [
            jax.random.normal(k, shape) / shape[0] ** 0.5
            for k, shape in zip(keys[1:], zip(sizes, sizes[1:]))
        ]

        def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            x, weights = carry
            y = x
            for weight in weights:
                y = y @ weight
            # As in `_step_products`: nothing can be hoisted, left out or fused away.
            return _set_first(x, y[0, 0]), [_set_first(w, y[0, 0]) for w in weights]

        x = jax.random.normal(keys[0], (batch, sizes[0]))
        return lax.fori_loop(0, steps, step, (x, weights))

    return run, steps


def square_products(side: int, steps: int) -> tuple[Callable[[Key], PyTree], int]:
    """Products of two square matrices; units are floating-point operations."""

    def run(key: Key) -> PyTree:
        a, b = jax.random.normal(key, (2, side, side))

        def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            a, _ = carry
            product = a @ b
            return _set_first(a, product[0, 0]), product

        return lax.fori_loop(0, steps, step, (a, jnp.zeros_like(a)))

    return run, 2 * side**3 * steps


def _set_first(matrix: Array, number: Array) -> Array:
    return matrix.at[0, 0].set(jnp.tanh(number))


def on_each_device(work: tuple[Callable[[Key], PyTree], int]) -> Program:
    """The same work on every device at once."""
    function, units = work
    number = jax.device_count()
    execution = Execution(number, 1)
    keys = replicas.place(jax.random.split(jax.random.key(0), number), execution)
    run = replicas.parallel(function, (0,), execution)
    return as_program(run, (keys,), number * units)


def convolution_steps(
    batch: int, flops: float, size: int, inputs: int, outputs: int, stride: int
) -> tuple[Callable[[Key], PyTree], int]:
    """A 3x3 convolution and its two gradients, over and over; units are operations."""
    strides, pixels = (stride, stride), -(-size // stride)
    one = 3 * 2 * batch * pixels**2 * 9 * inputs * outputs
    steps = max(1, round(flops / one))

    def run(key: Key) -> PyTree:
        a, b, c = jax.random.split(key, 3)
        x = jax.random.normal(a, (batch, size, size, inputs))
        kernel = jax.random.normal(b, (3, 3, inputs, outputs))
        g = jax.random.normal(c, (batch, pixels, pixels, outputs))

        def step(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            x, kernel, g, *_ = carry
            y, transpose = jax.vjp(
                lambda x, kernel: convolution.conv(x, kernel, strides=strides),
                x,
                kernel,
            )
            dx, dkernel = transpose(g)
            # As in `step_products`.
            last = jnp.tanh(y[0, 0, 0, 0] + dx[0, 0, 0, 0] + dkernel[0, 0, 0, 0])
            x, kernel, g = (z.at[0, 0, 0, 0].set(last) for z in (x, kernel, g))
            return x, kernel, g, y, dx, dkernel

        carry = (x, kernel, g, jnp.zeros_like(g), jnp.zeros_like(x), kernel)
        return lax.fori_loop(0, steps, step, carry)

    return run, one * steps
