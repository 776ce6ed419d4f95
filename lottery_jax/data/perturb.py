"""Changed data, on the host: random labels, blurred images, images of another size."""

import numpy as np

from lottery_jax.data._random import random_state

# Pillow's fixed-point weights: one pixel in 70 is a tie, which they decide.
_ONE = 2.0**22


def randomize_labels(
    labels: np.ndarray, fraction: float, num_classes: int, seed: int = 0
) -> np.ndarray:
    """Replaces a fraction of the labels by uniform draws from all classes.

    A draw may hit the label that was there, so that a share (num_classes - 1) /
    num_classes of the replaced labels is wrong (Zhang et al., Understanding Deep
    Learning Requires Rethinking Generalization, 2017, section 2). Under one seed the
    labels replaced at a small fraction are replaced likewise at a larger one.

    Args:
      labels: int32 `[N]` in [0, num_classes).
      fraction: share of the labels that is redrawn, in [0, 1]; round(fraction * N) are.
      num_classes: at least 1.
      seed: what fixes the draws, in [0, 2**32).

    Returns:
      New labels, of the same shape and dtype.

    Raises:
      ValueError: `fraction` or `seed` is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"label_noise={fraction}; it must lie in [0, 1]")
    count = round(fraction * len(labels))
    chosen = random_state(seed, "noisy examples").permutation(len(labels))[:count]
    draws = random_state(seed, "noisy labels").randint(num_classes, size=len(labels))
    labels = labels.copy()
    labels[chosen] = draws[chosen]
    return labels


def blur(images: np.ndarray, factor: float) -> np.ndarray:
    """Blurs images: down by `factor` and up again to the old size.

    Both with bilinear (triangle) filters, widened by the factor on the way down, and
    rounded to uint8 after every axis: what Pillow computes, and so open_lth's blur.

    Args:
      images: uint8 `[N, H, W, C]`.
      factor: at least 1, and at most min(H, W); sides of int(H / factor) and
        int(W / factor) pixels in between.

    Returns:
      uint8 `[N, H, W, C]`.

    Raises:
      ValueError: not such images, or a factor out of range.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            "blur needs uint8 images [N, H, W, C], got "
            f"{images.dtype} of shape {images.shape}"
        )
    height, width = images.shape[1:3]
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"blur={factor}; it must lie in [1, {min(height, width)}] for images of "
            f"{height}x{width}"
        )
    out = np.empty_like(images)
    for start in range(0, len(images), 4096):  # bounds the memory of the float copies
        small = resized(
            images[start : start + 4096], int(height / factor), int(width / factor)
        )
        out[start : start + 4096] = resized(small, height, width)
    return out


def resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images of another size, by a bilinear (triangle) filter, as Pillow computes it.

    The filter is widened where images become smaller; each axis is rounded to uint8.

    Args:
      images: uint8 `[N, H, W, C]`.
      height: of the new images, 1 or more.
      width: likewise.

    Returns:
      uint8 `[N, height, width, C]`.
    """
    images = _resample(images, _triangle(images.shape[2], width), 2)
    return _resample(images, _triangle(images.shape[1], height), 1)


def _triangle(size_in: int, size_out: int) -> np.ndarray:
    """Weight of each input pixel in each output pixel, times `_ONE`, `[out, in]`."""
    scale = size_in / size_out
    centers = (np.arange(size_out)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(size_in)[None, :] + 0.5 - centers) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.floor(weights * _ONE + 0.5)


def _resample(images: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    # Sums of integers below 2**53: exact in float64, which BLAS multiplies.
    moved = np.tensordot(images.astype(np.float64), weights, axes=(axis, 1))
    rounded = np.floor(np.moveaxis(moved, -1, axis) / _ONE + 0.5)
    return np.clip(rounded, 0, 255).astype(np.uint8)
