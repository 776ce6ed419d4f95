"""Crops of the size that networks see: the law of windows, resizing, and their tasks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

import lottery_jax as lj
from lottery_jax import data, keys
from lottery_jax.data import augment
from lottery_jax.data.perturb import resized
from lottery_jax.tasks import _batches

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = keys.of_seed(5)
WIDE = ((0.08, 1.0), (3 / 4, 4 / 3))
cropped = quick.jit(
    data.random_resized_crop, static_argnames=("size", "scale", "ratio")
)
both = quick.jit(data.resized_crop_and_flip, static_argnames="size")
windows = quick.jit(augment.windows, static_argnums=(1, 2, 3))
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 20, 26, 3), np.uint8)


def drawn_windows(number, height, width, scale, ratio, key=KEY):
    found = windows(key, (number, height, width), scale, ratio)
    return [np.asarray(x) for x in found]


# --- windows --------------------------------------------------------------------------


def windows_by_hand(seed, number, height, width, scale, ratio):
    """Torchvision's law, a window at a time, by another generator."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                break
        else:
            own = width / height
            w, h = width, height
            if own < ratio[0]:
                h = round(width / ratio[0])
            elif own > ratio[1]:
                w = round(height * ratio[1])
            top, left = (height - h) // 2, (width - w) // 2
        found.append((top, left, h, w))
    return np.array(found).T


@pytest.mark.parametrize(
    "height, width, scale, ratio",
    [(64, 64, *WIDE), (30, 90, *WIDE), (120, 60, (0.3, 0.9), (1.0, 2.0))],
)
def test_windows_have_the_law_that_is_written_out(height, width, scale, ratio):
    number = 4000
    found = drawn_windows(number, height, width, scale, ratio)
    top, left, tall, wide = found
    assert all(x.dtype == np.int32 and x.shape == (number,) for x in found)
    assert (top >= 0).all() and (left >= 0).all()
    assert (tall >= 1).all() and (top + tall <= height).all()
    assert (wide >= 1).all() and (left + wide <= width).all()
    other = windows_by_hand(1, number, height, width, scale, ratio)
    # Two samples of one distribution: Kolmogorov and Smirnov's distance, at 1 in 10,000.
    for ours, theirs in zip(found, other, strict=True):
        values = np.arange(max(height, width) + 1)
        shares = [np.searchsorted(np.sort(x), values, "right") for x in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() / number < 2.2 * np.sqrt(2 / number)
    # Places and sizes are not drawn from one another's numbers.
    room = height - tall
    some = room > 5
    assert some.sum() > 500
    assert abs(np.corrcoef(tall[some], top[some] / room[some])[0, 1]) < 0.15


def test_windows_that_never_fit_are_in_the_middle():
    found = drawn_windows(3, 10, 100, (0.9, 1.0), (0.5, 2.0))
    assert [x.tolist() for x in found] == [[0] * 3, [40] * 3, [10] * 3, [20] * 3]
    found = drawn_windows(3, 100, 11, (0.9, 1.0), (0.5, 2.0))
    assert [x.tolist() for x in found] == [[39] * 3, [0] * 3, [22] * 3, [11] * 3]
    # All of the image, whose ratio is one of those: its area is out of range only.
    found = drawn_windows(3, 3, 4, (0.01, 0.011), (1.0, 2.0))
    assert [x.tolist() for x in found] == [[0] * 3, [0] * 3, [3] * 3, [4] * 3]


# --- resizing -------------------------------------------------------------------------


def triangle(pixels, out):
    """Weights `[out, pixels]` of a triangle filter, widened where it makes fewer."""
    scale, weights = pixels / out, np.zeros((out, pixels))
    for i in range(out):
        for j in range(pixels):
            apart = abs((i + 0.5) * scale - (j + 0.5)) / max(scale, 1.0)
            weights[i, j] = max(0.0, 1 - apart)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [1, 7, 24])
def test_a_crop_is_its_window_cut_out_and_resized(size):
    found = np.asarray(cropped(KEY, IMAGES, size=size, scale=(0.1, 0.9)))
    assert found.shape == (6, size, size, 3) and found.dtype == np.uint8
    boxes = zip(*drawn_windows(6, 20, 26, (0.1, 0.9), (3 / 4, 4 / 3)), strict=True)
    real = cropped(KEY, IMAGES.astype(np.float32), size=size, scale=(0.1, 0.9))
    assert real.dtype == np.float32
    for i, (top, left, tall, wide) in enumerate(boxes):
        window = IMAGES[i, top : top + tall, left : left + wide]
        rows, columns = triangle(tall, size), triangle(wide, size)
        expected = np.einsum("ih,jw,hwc->ijc", rows, columns, window.astype(float))
        np.testing.assert_allclose(real[i], expected, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(found[i], expected, atol=0.501)
        # As Pillow does it, which rounds after each axis.
        pillows = resized(window[None], size, size)[0]
        assert np.abs(pillows.astype(int) - found[i]).max() <= 1


def test_a_crop_between_centres_is_bilinear_by_hand():
    # Two pixels become four: a quarter of the way in, and constant beyond the centres.
    image = np.array([[0, 100], [40, 60]], np.float32)[None, :, :, None]
    crop = cropped(KEY, image, size=4, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(crop[0, 0, :, 0], [0, 25, 75, 100])
    np.testing.assert_allclose(crop[0, :, 0, 0], [0, 10, 30, 40])
    np.testing.assert_allclose(crop[0, 1, 1, 0], 25 * 0.75 + 0.25 * 45)


def test_the_whole_image_at_its_own_size_is_the_image():
    square = IMAGES[:, :, :20]
    crop = cropped(KEY, square, size=20, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_array_equal(crop, square)


def test_crops_are_functions_of_their_key_and_of_their_own_image():
    once = np.asarray(both(KEY, IMAGES, size=9))
    np.testing.assert_array_equal(once, both(KEY, IMAGES, size=9))
    other = np.asarray(both(keys.of_seed(6), IMAGES, size=9))
    assert all((a != b).any() for a, b in zip(once, other, strict=True))
    changed = IMAGES.copy()
    changed[1:] = 7
    np.testing.assert_array_equal(once[0], both(KEY, changed, size=9)[0])
    # As many images as there are beside it.
    np.testing.assert_array_equal(once[:2], both(KEY, IMAGES[:2], size=9))
    every = jnp.stack([KEY, keys.of_seed(6)])
    of_both = jax.vmap(lambda key: data.resized_crop_and_flip(key, IMAGES, 9))
    together = quick.jit(of_both)(every)
    np.testing.assert_array_equal(together, np.stack([once, other]))
    # The flip has a key of its own.
    crop_key, flip_key = jax.random.split(KEY)
    wanted = data.flip(flip_key, cropped(crop_key, IMAGES, size=9))
    np.testing.assert_array_equal(once, wanted)


def test_a_crop_of_the_middle():
    crop = data.center_crop(IMAGES, 4)
    np.testing.assert_array_equal(crop, IMAGES[:, 8:12, 11:15])
    np.testing.assert_array_equal(
        data.center_crop(IMAGES, 7), IMAGES[:, 6:13, 9:16]
    )  # half a pixel
    np.testing.assert_array_equal(data.center_crop(IMAGES, 20), IMAGES[:, :, 3:23])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.center_crop(IMAGES, 21),
            "size=21; it must be between 1 and 20, the shorter side of images of 20 x 26",
        ),
        (lambda: data.center_crop(IMAGES[0], 2), r"\[B, H, W, C\], got shape"),
        (lambda: data.random_resized_crop(KEY, IMAGES[0], 2), r"\[B, H, W, C\], got"),
        (lambda: data.random_resized_crop(KEY, IMAGES, 0), "size=0; it must be 1 or"),
        (
            lambda: data.random_resized_crop(KEY, IMAGES, 2, scale=(0.5, 1.5)),
            r"scale=\(0.5, 1.5\); it must be two numbers, .* above 0 and at most 1",
        ),
        (
            lambda: data.random_resized_crop(KEY, IMAGES, 2, ratio=(2.0, 1.0)),
            r"ratio=\(2.0, 1.0\); it must be two numbers, the smallest and the largest",
        ),
        (
            lambda: data.random_resized_crop(KEY, IMAGES.astype(np.int32), 2),
            "images must be uint8 or real, got int32",
        ),
    ],
)
def test_crops_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- tasks ----------------------------------------------------------------------------


def dataset(height=12, width=12, number=10):
    rng = np.random.default_rng(1)

    def split():
        images = rng.integers(0, 256, (number, height, width, 3), np.uint8)
        return {"image": images, "label": np.arange(number, dtype=np.int32) % 5}

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    arrays = {"train": split(), "test": split()}
    return data.Dataset(arrays, 5, (height, width, 3), mean, std, "pictures", "")


def task(made=None, model="mlp-6", **options):
    made = dataset() if made is None else made
    model = lj.models.make(model, 5)
    return lj.tasks.classification(made, model, batch_size=4, **options)


def images_of(task, step=0, key=KEY):
    rows = jnp.arange(4, dtype=jnp.int32)
    batch = quick.jit(task.batch)(task.data, rows, key, jnp.int32(step))
    return np.asarray(batch["image"])


def normal(images, made):
    return np.asarray(data.normalize(images, made.mean, made.std))


def test_networks_see_resized_crops_in_training_and_the_middle_in_evaluation():
    made = dataset()
    own = task(made, augment=("resized_crop", "flip"), crop=7)
    params = jax.eval_shape(own.init, KEY)[0]
    assert params["dense_0"]["kernel"].shape == (7 * 7 * 3, 6)
    stored = made.arrays["train"]["image"][:4]
    for step in (0, 3):
        key = jax.random.fold_in(KEY, step)
        wanted = normal(both(key, stored, size=7), made)
        np.testing.assert_array_equal(images_of(own, step), wanted)
    params, state, _ = quick.jit(own.init)(KEY)
    # The same network, measured on images that were cropped before.
    arrays = {
        split: fields | {"image": np.asarray(data.center_crop(fields["image"], 7))}
        for split, fields in made.arrays.items()
    }
    other = task(made._replace(arrays=arrays, shape=(7, 7, 3)))

    def measured(task):
        rest = (params, state, task.data, KEY, "test")
        return task.evaluate(*rest), task.predict(*rest)

    (found, classes), (wanted, others) = (
        quick.jit(lambda each=each: measured(each))() for each in (own, other)
    )
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-6)
    assert found["error"] == wanted["error"]
    np.testing.assert_array_equal(classes, others)


def test_without_augmentation_the_middle_is_seen_in_training_too():
    made = dataset(12, 14)
    stored = made.arrays["train"]["image"][:4]
    middle = normal(data.center_crop(stored, 8), made)
    np.testing.assert_array_equal(images_of(task(made, crop=8)), middle)
    flipped = images_of(task(made, crop=8, augment=("flip",)))
    same = (flipped == middle).all((1, 2, 3))
    assert (same | (flipped == middle[:, :, ::-1]).all((1, 2, 3))).all()
    # As large as they are stored, if nothing is said.
    own = task(augment=("resized_crop",))
    assert images_of(own).shape == (4, 12, 12, 3)
    assert (images_of(own) != images_of(task())).any()
    stored = dataset().arrays["train"]["image"][:4]
    key = jax.random.fold_in(KEY, 0)
    wanted = normal(cropped(key, stored, size=12), made)
    np.testing.assert_array_equal(images_of(own), wanted)


@pytest.mark.slow
def test_replicas_augment_as_each_alone():
    own = task(augment=("resized_crop", "flip"), crop=8)
    noises = jnp.stack([KEY, keys.of_seed(9)])
    rows = jnp.arange(4, dtype=jnp.int32)
    together = jax.vmap(lambda key: own.batch(own.data, rows, key, jnp.int32(2)))(
        noises
    )
    for i, key in enumerate(noises):
        np.testing.assert_array_equal(together["image"][i], images_of(own, 2, key))


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (
            (12, 14),
            {"crop": 13},
            "crop=13; it must be between 1 and 12, a side of images of pictures",
        ),
        ((12, 12), {"crop": 0}, "crop=0; it must be between 1 and 12"),
        ((12, 12), {"crop": 8.0}, "crop=8.0; it must be a whole number"),
        (
            (12, 12),
            {"crop": 8, "augment": ("flip", "crop")},
            r"crop=8; it must be None with augment=\('flip', 'crop'\)",
        ),
        (
            (12, 14),
            {"augment": ("resized_crop",)},
            "crop=None; it must be a number: .*pictures have 12 x 14 pixels",
        ),
        (
            (12, 12),
            {"augment": ("flip", "resized_crop")},
            "augment=.*; it must be of 'flip' and 'crop', or of 'resized_crop' and",
        ),
        (
            (12, 12),
            {"augment": ("resized_crop", "crop")},
            r"augment=\('resized_crop', 'crop'\); it must be of",
        ),
    ],
)
def test_crops_of_a_task_that_cannot_be_are_refused_by_name(size, options, message):
    with pytest.raises(ValueError, match=message):
        task(dataset(*size), **options)


def test_what_is_no_image_has_no_crop():
    arrays = {"image": np.zeros((6, 8), np.float32), "label": np.arange(6) % 3}
    made = data.Dataset({"train": arrays}, 3, (8,), (0.0,), (1.0,), "signals", "")
    model = lj.models.make("mlp-4", 3)
    for options, message in (
        ({"crop": 4}, "crop=4; it must be None, since it needs images and signals has"),
        (
            {"augment": ("resized_crop",)},
            r"augment=.*; it must be \(\), since it needs",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            lj.tasks.classification(made, model, batch_size=2, **options)


def test_an_attack_on_cropped_images_is_refused():
    made = dataset()
    small = task(made, crop=8)
    with pytest.raises(
        ValueError, match=r"image.shape=\(8, 8, 8, 3\); it must be \(8, 12"
    ):
        lj.tasks.adversarial(small, made, lj.tasks.Attack.fgsm(0.1))


def test_the_augmentations_that_there_were_compute_what_they_did():
    """Their programs know nothing of crops."""
    made = dataset()
    batches = _batches.of(
        made,
        batch_size=4,
        drop_last=False,
        augment=("flip", "crop"),
        evaluation_batch=5,
    )
    assert batches.crop is None and batches.shape == made.shape
    assert {field.name for field in dataclasses.fields(batches)} >= {"crop", "shape"}
    stored = made.arrays["train"]["image"][:4]
    key = jax.random.fold_in(KEY, 0)
    wanted = normal(data.flip_and_crop(key, stored), made)
    np.testing.assert_array_equal(
        images_of(task(made, augment=("flip", "crop"))), wanted
    )


# --- labels ---------------------------------------------------------------------------


def test_smoothed_labels_in_the_training_loss_alone():
    smoothing = 0.3
    plain = task()
    smooth = task(label_smoothing=smoothing)
    params, state, _ = quick.jit(plain.init)(KEY)
    rows = jnp.array([0, 1, 2, -1], jnp.int32)  # one of them padding
    batch = plain.batch(plain.data, rows, KEY, jnp.int32(0))

    def trained(task):
        return quick.jit(task.loss)(params, state, (), batch, KEY)

    (loss, (_, _, metrics)), (other, (_, _, plains)) = map(trained, (smooth, plain))
    logits = np.asarray(plain.outputs(params, state, batch), np.float64)
    label = np.asarray(batch["label"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(5)[label] + smoothing / 5
    np.testing.assert_allclose(loss, -(target * log_p).sum(1)[:3].mean(), rtol=1e-5)
    np.testing.assert_allclose(other, -log_p[range(3), label[:3]].mean(), rtol=1e-5)
    assert metrics["loss"] == loss and metrics["error"] == plains["error"]
    found, wanted = (
        each.evaluate(params, state, each.data, KEY, "test") for each in (smooth, plain)
    )
    assert found == wanted


def test_without_smoothing_the_loss_is_the_program_that_it_was():
    plain, zero = task(), task(label_smoothing=0)
    params, state, _ = plain.shapes[:3]
    batch = jax.eval_shape(
        plain.batch, plain.data, jnp.arange(4, dtype=jnp.int32), KEY, jnp.int32(0)
    )
    texts = [
        str(jax.make_jaxpr(each.loss)(params, state, (), batch, KEY))
        for each in (plain, zero, task(label_smoothing=0.1))
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("smoothing", "message"),
    [
        (-0.1, "label_smoothing=-0.1; it must be between 0 and 1"),
        (1, "label_smoothing=1; it must be below 1"),
        (float("nan"), "label_smoothing=nan; it must be between"),
        ("0.1", "label_smoothing='0.1'; it must be a number"),
    ],
)
def test_smoothing_out_of_range_is_refused(smoothing, message):
    with pytest.raises(ValueError, match=message):
        task(label_smoothing=smoothing)
