"""Views of images: each operation against NumPy, and what holds for all of them."""

import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import data, keys
from lottery_jax.data import Views, views

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = keys.of_seed(3)
STILL = Views((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Views that are the images."""


def draw_images(number=5, height=8, width=6, channels=3):
    shape = (number, height, width, channels)
    return np.random.default_rng(0).random(shape, np.float32)


def drawn(low, high, number=5):
    return np.random.default_rng(1).uniform(low, high, number).astype(np.float32)


# --- against NumPy --------------------------------------------------------------------


def line_at(values, place):
    """A line of pixels between their centres; constant beyond the outermost ones."""
    place = min(max(place, 0.0), len(values) - 1.0)
    before = min(int(place), len(values) - 2)
    after = place - before
    return (1 - after) * values[before] + after * values[before + 1]


def part_of(image, top, left, height, width):
    """Written out: each pixel is what the image is at its centre's place."""
    rows, columns = image.shape[:2]
    out = np.zeros(image.shape)
    for i in range(rows):
        for j in range(columns):
            y = top * rows + (i + 0.5) * height - 0.5
            x = left * columns + (j + 0.5) * width - 0.5
            line = np.stack([line_at(image[:, k], y) for k in range(columns)])
            out[i, j] = line_at(line, x)
    return out


def test_a_part_is_interpolated_between_pixels():
    images = draw_images()
    height, width = drawn(0.3, 1, 5), drawn(0.2, 0.9, 5)
    top, left = (1 - height) * drawn(0, 1), (1 - width) * drawn(0, 1)
    found = views.part(images, top, left, height, width)
    expected = [
        part_of(image.astype(np.float64), *own)
        for image, *own in zip(images, top, left, height, width)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The part from pixel 2 to pixel 6, a pixel for two: those at the quarters.
    ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32)[:, None, None], (8, 6, 1))
    one = np.float32([1.0])
    found = views.part(ramp[None], one / 4, 0 * one, one / 2, one)
    np.testing.assert_allclose(found[0, :, 0, 0], 1.75 + 0.5 * np.arange(8), atol=1e-6)


def test_the_whole_image_is_a_part_of_itself():
    images, one = draw_images(channels=1), np.ones(5, np.float32)
    found = views.part(images, 0 * one, 0 * one, one, one)
    np.testing.assert_array_equal(found, images)


LUMINANCE = np.array([0.299, 0.587, 0.114])


def contrast_of(image, factor):
    mean = (image @ LUMINANCE).mean() if image.shape[-1] == 3 else image.mean()
    return mean + (image - mean) * factor


def saturation_of(image, factor):
    grey = (image @ LUMINANCE)[..., None]
    return grey + (image - grey) * factor


def hue_of(image, turn):
    """By Python's own conversions to HSV and back."""

    def pixel(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    return np.apply_along_axis(pixel, -1, image)


def blur_of(image, sigma):
    """With the weights of the pixels that there are, one pixel to each side."""
    out = image
    for axis in (0, 1):
        lines = np.moveaxis(out, axis, 0)
        made = np.zeros_like(lines)
        for i in range(len(lines)):
            near = [j for j in (i - 1, i, i + 1) if 0 <= j < len(lines)]
            weights = np.array([np.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in near])
            made[i] = np.tensordot(weights / weights.sum(), lines[near], 1)
        out = np.moveaxis(made, 0, axis)
    return out


WRITTEN_OUT = {
    "brightness": (views.brightness, lambda x, f: x * f, (0.2, 2.0)),
    "contrast": (views.contrast, contrast_of, (0.0, 2.0)),
    "saturation": (views.saturation, saturation_of, (0.0, 2.0)),
    "hue": (views.hue, hue_of, (-0.5, 0.5)),
    "blur": (views.blur, blur_of, (0.3, 2.0)),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_each_change_is_what_is_written_out(name):
    function, reference, (low, high) = WRITTEN_OUT[name]
    images, how = draw_images(), drawn(low, high)
    found = function(images, how)
    expected = [reference(x.astype(np.float64), f) for x, f in zip(images, how)]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=2e-6)


def test_contrast_of_one_channel_is_about_its_mean():
    images, how = draw_images(channels=1), drawn(0, 2)
    expected = [contrast_of(x.astype(np.float64), f) for x, f in zip(images, how)]
    np.testing.assert_allclose(
        views.contrast(images, how), np.clip(expected, 0, 1), atol=2e-6
    )


def test_known_colours_turn_into_known_ones():
    red = np.broadcast_to(np.float32([1, 0, 0]), (2, 2, 2, 3))
    turned = views.hue(red, np.float32([1 / 3, -1 / 3]))
    np.testing.assert_allclose(turned[0, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(turned[1, 0, 0], [0, 0, 1], atol=1e-6)
    # What has no hue, black and white too, is left alone.
    flat = np.repeat(draw_images(channels=1), 3, axis=-1)
    np.testing.assert_array_equal(views.hue(flat, drawn(-0.5, 0.5)), flat)


def test_a_grey_image_has_equal_channels_and_the_luminance_of_the_other():
    images = draw_images()
    grey = np.asarray(views.grey(images))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_allclose(grey[..., 0], images @ LUMINANCE, atol=1e-6)


def test_a_constant_image_stays_as_it_is_when_blurred():
    flat = np.full((5, 40, 30, 3), 0.7, np.float32)
    np.testing.assert_allclose(views.blur(flat, drawn(0.1, 2)), flat, atol=1e-6)


# --- what is drawn --------------------------------------------------------------------


def test_boxes_lie_within_the_image_and_have_the_areas_and_shapes_that_are_asked_for():
    scale, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    top, left, height, width = map(np.asarray, views.boxes(KEY, 4000, scale, aspect))
    for start, share in ((top, height), (left, width)):
        assert (start >= 0).all() and (share > 0).all()
        assert (start + share <= 1 + 1e-6).all()
    area, ratio = height * width, width / height
    assert area.min() >= 0.08 - 1e-6 and area.max() <= 1 + 1e-6
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    # Uniform: the quarters hold a quarter each, 5 standard errors to either side.
    counts, _ = np.histogram(area, np.linspace(0.08, 1, 5))
    assert np.abs(counts / 4000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)
    # Small ones have all shapes: half of them are wider than high.
    small = area < 0.5
    assert abs((ratio[small] > 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(small.sum())
    assert ratio[small].min() < 0.76 and ratio[small].max() > 1.32


def test_probabilities_are_those_of_the_settings():
    images = draw_images(400, 4, 4)
    for change in ({"flip": 0.3}, {"grey": 0.3}, {"blur": 0.3}):
        found = views.one(KEY, images, dataclasses.replace(STILL, **change))
        moved = np.any(np.asarray(found) != images, axis=(1, 2, 3)).mean()
        assert abs(moved - 0.3) < 5 * np.sqrt(0.21 / 400), change
    jitter = dataclasses.replace(STILL, jitter=0.3, brightness=0.5, hue=0.1)
    moved = np.any(np.asarray(views.one(KEY, images, jitter)) != images, axis=(1, 2, 3))
    assert abs(moved.mean() - 0.3) < 5 * np.sqrt(0.21 / 400)


EVERYTHING = Views(blur=0.5, brightness=1.5, contrast=1.5, saturation=1.5, hue=0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_shape_and_the_range_of_images(channels):
    images = draw_images(64, 12, 8, channels)
    first, second = views.two(KEY, images, EVERYTHING)
    for one in (first, second):
        assert one.shape == images.shape and one.dtype == jnp.float32
        assert float(one.min()) >= 0 and float(one.max()) <= 1
    assert not np.any(np.all(np.asarray(first == second), axis=(1, 2, 3)))


def test_the_same_key_gives_the_same_views_and_another_one_others():
    images = draw_images()
    a, b = (views.two(KEY, images, EVERYTHING) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    other = views.two(keys.of_seed(4), images, EVERYTHING)
    assert not np.any(np.all(np.asarray(a[0] == other[0]), axis=(1, 2, 3)))


def test_each_image_has_draws_of_its_own():
    same = np.broadcast_to(draw_images(1), (5, 8, 6, 3))
    first = np.asarray(views.two(KEY, same, EVERYTHING)[0])
    assert len({image.tobytes() for image in first}) == 5


def test_without_any_change_views_are_the_images():
    images = draw_images()
    for one in views.two(KEY, images, STILL):
        np.testing.assert_array_equal(one, images)


def test_views_are_the_same_whatever_is_vmapped_beside_them():
    images = draw_images()
    several = jax.vmap(keys.of_seed)(jnp.arange(3, dtype=jnp.uint32))
    together = jax.vmap(lambda key: views.two(key, images, EVERYTHING))(several)
    alone = views.two(several[1], images, EVERYTHING)
    for a, b in zip(together, alone):
        np.testing.assert_allclose(a[1], b, atol=1e-6)


# --- refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\); it must be two numbers"),
        ({"scale": (0.5, 0.2)}, r"scale=\(0.5, 0.2\); it must be two numbers"),
        ({"scale": (0.5, 1.2)}, r"scale=\(0.5, 1.2\); it must be at most 1"),
        ({"scale": 0.5}, "scale=0.5; it must be two numbers"),
        ({"aspect": (1.1, 2.0)}, r"aspect=\(1.1, 2.0\); it must be a range that 1"),
        ({"sigma": (0.1, np.inf)}, r"sigma\[1\]=inf; it must be a finite number"),
        ({"flip": 1.5}, "flip=1.5; it must be between 0 and 1"),
        ({"jitter": "often"}, "jitter='often'; it must be a number"),
        ({"grey": -0.1}, "grey=-0.1; it must be between 0 and 1"),
        ({"blur": 2}, "blur=2; it must be between 0 and 1"),
        ({"brightness": -1}, "brightness=-1; it must be 0 or more"),
        ({"contrast": -1}, "contrast=-1; it must be 0 or more"),
        ({"saturation": -1}, "saturation=-1; it must be 0 or more"),
        ({"hue": 0.6}, "hue=0.6; it must be between 0 and 0.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Views(**fields)


def test_what_has_no_views_is_refused():
    with pytest.raises(ValueError, match=r"shape of an example=\(40,\); it must be"):
        views.two(KEY, np.zeros((2, 40), np.float32), Views())
    with pytest.raises(ValueError, match=r"shape of an example=\(4, 4, 2\)"):
        views.two(KEY, np.zeros((2, 4, 4, 2), np.float32), Views())
    with pytest.raises(ValueError, match="images.dtype=uint8; it must be real"):
        views.two(KEY, np.zeros((2, 4, 4, 3), np.uint8), Views())
    with pytest.raises(ValueError, match="settings='strong'; it must be a lottery"):
        views.one(KEY, draw_images(), "strong")


def test_grey_of_views_is_the_grey_of_adapted_images():
    image = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    split = {"image": image, "label": np.zeros(2, np.int32)}
    own = data.Dataset({"train": split}, 2, (28, 28, 3), (0.5,), (0.5,), "own")
    adapted = data.grey28(own).arrays["train"]["image"][..., 0]
    found = 255 * np.asarray(views.grey(image.astype(np.float32) / 255))[..., 0]
    assert np.abs(found - adapted).max() < 0.51
