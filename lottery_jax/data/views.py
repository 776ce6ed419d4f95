"""Two views of each image, as contrastive pre-training compares them.

    first, second = views.two(key, images, Views())

Pure functions of a key, or of what is drawn from it, on float images in [0, 1]
`[B, H, W, C]`, of one channel or three. Each image has draws of its own. They run on the
device, a few percent of a step; normalise afterwards (`data.normalize`).

References:
  Chen et al., A Simple Framework for Contrastive Learning of Visual Representations
    (SimCLR), 2020, appendix A; for CIFAR-10 appendix B.9: half the strength, no blur.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lottery_jax import errors
from lottery_jax.data import _sampling
from lottery_jax.keys import settled
from lottery_jax.types import Array, Key

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in `data.grey28`."""


@dataclasses.dataclass(frozen=True)
class Views:
    """How much views of one image differ; hashable. The defaults are SimCLR's for CIFAR.

    In this order: a part of the image, resized; flip; colour jitter; grey; blur. Images of
    one channel have no saturation, no hue, and are grey.

    Attributes:
      scale: the smallest and the largest share of the image's area that is seen, in
        (0, 1].
      aspect: the smallest and the largest ratio of the part's width to its height, both
        as shares of the image's; the first at most 1, the second at least 1.
      flip: probability of a mirrored image.
      jitter: probability of changed colours.
      brightness: they are multiplied by up to 1 + this, and down to 1 - this or 0.
      contrast: likewise, differences from the mean luminance.
      saturation: likewise, differences from a pixel's own luminance.
      hue: largest rotation of the hue either way, in turns, at most 0.5.
      grey: probability of an image without colours.
      blur: probability of a blurred image.
      sigma: the smallest and the largest standard deviation of the blur, in pixels.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Refuses what is no range or no probability (ValueError)."""
        for field in ("flip", "jitter", "grey", "blur"):
            errors.within(field, getattr(self, field), 0, 1)
        for field in ("brightness", "contrast", "saturation"):
            errors.at_least(field, getattr(self, field), 0)
        errors.within("hue", self.hue, 0, 0.5)
        for field in ("scale", "aspect", "sigma"):
            must = "two numbers, the smallest and the largest, above 0"
            values = errors.several(field, getattr(self, field), must)
            errors.finite(field, values)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise errors.wrong(field, values, must)
            object.__setattr__(self, field, tuple(map(float, values)))
        if self.scale[1] > 1:
            raise errors.wrong("scale", self.scale, "at most 1: the whole image")
        if not self.aspect[0] <= 1 <= self.aspect[1]:
            raise errors.wrong("aspect", self.aspect, "a range that 1 lies in")


SIMCLR = Views()
"""Chen et al. 2020, appendix B.9: as for CIFAR-10."""


# --- drawn ----------------------------------------------------------------------------


def two(key: Key, images: Array, settings: Views) -> tuple[Array, Array]:
    """Two views of each image, independent of each other.

    Args:
      key: what decides.
      images: float `[B, H, W, C]` in [0, 1], C = 1 or 3.
      settings: how much they differ.

    Returns:
      The first and the second ones, float32 `[B, H, W, C]` in [0, 1].

    Raises:
      ValueError: other images.
    """
    images = _checked(images)
    seen = one(key, jnp.concatenate([images, images]), settings)
    return seen[: len(images)], seen[len(images) :]


@settled
def one(key: Key, images: Array, settings: Views) -> Array:
    """One view of each image.

    Args:
      key: what decides.
      images: as in `two`.
      settings: likewise.

    Returns:
      Float32 `[B, H, W, C]` in [0, 1].

    Raises:
      ValueError: other images.
    """
    errors.is_a("settings", settings, Views, "a lottery_jax.data.Views")
    images = _checked(images)
    number, height, width, channels = images.shape
    crop, *chances = jax.random.split(key, 5)
    x = part(images, *boxes(crop, number, settings.scale, settings.aspect))

    def sometimes(
        chance: int, probability: float, change: Callable[[Key, Array], Array]
    ) -> Array:
        """The images, some of them changed by `change(key, images)`."""
        if probability == 0:
            return x
        which, how = jax.random.split(chances[chance])
        drawn = jax.random.bernoulli(which, jnp.float32(probability), (number,))
        return jnp.where(_each(drawn), change(how, x), x)

    x = sometimes(0, settings.flip, lambda _, x: x[:, :, ::-1])
    x = sometimes(1, settings.jitter, lambda key, x: _jittered(key, x, settings))
    if channels == 3:
        x = sometimes(2, settings.grey, lambda _, x: grey(x))
    x = sometimes(
        3, settings.blur, lambda key, x: blur(x, _drawn(key, number, settings.sigma))
    )
    return jnp.clip(x, 0, 1)


@settled
def boxes(
    key: Key, number: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Array, Array, Array, Array]:
    """Parts of an image: an area, then a shape, then a place, each uniform.

    The logarithm of the aspect ratio is uniform over those of the range that fit into the
    image at that area; so every area has the same chance, where drawing again until both
    fit would prefer small ones.

    Args:
      key: what decides.
      number: of boxes.
      scale: see `Views`.
      aspect: likewise.

    Returns:
      Top, left, height and width as shares of the image's, float32 `[number]` each; the
      area is within `scale`, up to rounding.
    """
    keys = jax.random.split(key, 4)
    area = _drawn(keys[0], number, scale)
    low = jnp.maximum(jnp.float32(np.log(aspect[0])), jnp.log(area))
    high = jnp.minimum(jnp.float32(np.log(aspect[1])), -jnp.log(area))
    ratio = jnp.exp(low + (high - low) * _drawn(keys[1], number, (0, 1)))
    height = jnp.minimum(jnp.sqrt(area / ratio), 1)
    width = jnp.minimum(jnp.sqrt(area * ratio), 1)
    top = _drawn(keys[2], number, (0, 1)) * (1 - height)
    left = _drawn(keys[3], number, (0, 1)) * (1 - width)
    return top, left, height, width


def _jittered(key: Key, images: Array, settings: Views) -> Array:
    number = len(images)
    keys = jax.random.split(key, 4)

    def factor(i: int, strength: float) -> Array:
        return _drawn(keys[i], number, (max(0.0, 1 - strength), 1 + strength))

    images = brightness(images, factor(0, settings.brightness))
    images = contrast(images, factor(1, settings.contrast))
    if images.shape[-1] == 1:
        return images
    images = saturation(images, factor(2, settings.saturation))
    if not settings.hue:
        return images
    return hue(images, _drawn(keys[3], number, (-settings.hue, settings.hue)))


def _drawn(key: Key, number: int, between: Sequence[float]) -> Array:
    low, high = map(jnp.float32, between)
    return jax.random.uniform(key, (number,), jnp.float32, low, high)


# --- given what was drawn -------------------------------------------------------------


def part(images: Array, top: Array, left: Array, height: Array, width: Array) -> Array:
    """A part of each image, resized to the whole image's size by bilinear interpolation.

    A pixel of the result is what the image is at its centre's place, between the centres
    of pixels; beyond the outermost centres it is constant. Parts need not begin or end
    between pixels, and are never made smaller. Two products with few numbers, which costs
    less than gathering.

    Args:
      images: `[B, H, W, C]`.
      top: where it begins, as a share of the image's height, float32 `[B]`.
      left: likewise, of its width.
      height: of the part, likewise, in (0, 1].
      width: likewise.

    Returns:
      Float32 `[B, H, W, C]`; the image itself where the part is the whole.
    """
    rows = _sampling.between(images.shape[1], top, height)
    columns = _sampling.between(images.shape[2], left, width)
    return _sampling.products(rows, columns, images)


def brightness(images: Array, factor: Array) -> Array:
    """Images multiplied by a factor each, float32 `[B]`, clipped to [0, 1]."""
    return jnp.clip(images * _each(factor), 0, 1)


def contrast(images: Array, factor: Array) -> Array:
    """Differences from an image's mean luminance, times a factor; clipped to [0, 1].

    Args:
      images: `[B, H, W, C]`.
      factor: float32 `[B]`; 1 changes nothing, 0 leaves the mean.
    """
    mean = jnp.mean(luminance(images), axis=(1, 2, 3))
    return _blended(images, _each(mean), factor)


def saturation(images: Array, factor: Array) -> Array:
    """Differences from a pixel's own luminance, times a factor; clipped to [0, 1].

    Args:
      images: `[B, H, W, 3]`.
      factor: float32 `[B]`; 1 changes nothing, 0 leaves grey.
    """
    return _blended(images, luminance(images), factor)


def _blended(images: Array, about: Array, factor: Array) -> Array:
    about = jnp.broadcast_to(about, images.shape)
    return jnp.clip(about + (images - about) * _each(factor), 0, 1)


def hue(images: Array, turn: Array) -> Array:
    """Images with all hues moved around the hexagon of HSV.

    Args:
      images: `[B, H, W, 3]` in [0, 1].
      turn: by how much, in turns, float32 `[B]`: a third takes red to green.

    Returns:
      Float32, of the same value and saturation at every pixel.
    """
    red, green, blue = (images[..., i] for i in range(3))
    value = jnp.max(images, axis=-1)
    chroma = value - jnp.min(images, axis=-1)
    by = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(
        value == red,
        (green - blue) / by,
        jnp.where(value == green, (blue - red) / by + 2, (red - green) / by + 4),
    )
    moved = sixth + 6 * turn[:, None, None]

    def channel(corner: int) -> Array:
        x = moved + corner
        x = x - 6 * jnp.floor(x / 6)
        return value - chroma * jnp.clip(jnp.minimum(x, 4 - x), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def grey(images: Array) -> Array:
    """Images without colours: each channel is the luminance, `[B, H, W, 3]`."""
    return jnp.broadcast_to(luminance(images), images.shape)


def luminance(images: Array) -> Array:
    """`[B, H, W, 1]`: of three channels their weighted sum (`LUMINANCE`)."""
    if images.shape[-1] == 1:
        return images
    parts = [images[..., i : i + 1] * w for i, w in enumerate(LUMINANCE)]
    return parts[0] + parts[1] + parts[2]


def blur(images: Array, sigma: Array) -> Array:
    """Images blurred by a Gaussian a tenth as wide as they are, and 3 pixels at least.

    At the edges weights are those of the pixels that there are, so that a constant image
    stays as it is.

    Args:
      images: `[B, H, W, C]`.
      sigma: standard deviation in pixels, float32 `[B]`, above 0.
    """
    rows, columns = (_gaussian(size, sigma) for size in images.shape[1:3])
    return _sampling.products(rows, columns, images)


def _gaussian(size: int, sigma: Array) -> Array:
    pixels = np.arange(size, dtype=np.float32)
    apart = np.abs(pixels[:, None] - pixels[None, :])
    near = jnp.asarray(apart <= max(1, size // 10 // 2))[None]
    squares = jnp.asarray(apart**2)[None]
    weights = jnp.exp(-squares / (2 * sigma * sigma)[:, None, None])
    weights = jnp.where(near, weights, 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


# --- shapes ---------------------------------------------------------------------------


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raises a ValueError if examples of a shape have no views.

    Args:
      shape: of one example.
      name: of the data, for the message.
    """
    if len(shape) != 3 or shape[-1] not in (1, 3):
        must = (
            f"[H, W, 1] or [H, W, 3], images, to have views; those of {name} have none"
        )
        raise errors.wrong("shape of an example", tuple(shape), must)


def _checked(images: Array) -> Array:
    check_shape(images.shape[1:], "the batch")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        must = "real, in [0, 1]: divide uint8 by 255"
        raise errors.wrong("images.dtype", images.dtype, must)
    return images.astype(jnp.float32)


def _each(values: Array) -> Array:
    """One number for each image, `[B]`, as `[B, 1, 1, 1]`."""
    return values[:, None, None, None]
