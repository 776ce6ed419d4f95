"""Data: sets and their splits, the reader, augmentation, and the order of examples."""

import functools
import gzip
import http.server
import json
import random
import sys
import threading
import types
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lottery_jax import data
from lottery_jax.data import cache, generated, perturb, prepare, prepared, sets, usps
from lottery_jax.data._random import random_state
from lottery_jax.data.text import published

TFDS_NAMES = {
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "kmnist": "kmnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn_cropped",
}
SHAPES = {
    name: (32, 32, 3) if "mnist" not in name else (28, 28, 1) for name in TFDS_NAMES
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def use_cache(shared_cache, monkeypatch):
    """Keeps the tests out of the user's cache; MNIST-1D is generated once for all."""
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(shared_cache))


class FakeSource:
    """Records as TFDS's reader gives them, and how many were decoded."""

    def __init__(self, shape, num_classes, size, seed):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        self.labels = rng.integers(0, num_classes, size)
        self.decoded = 0

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, rows):
        self.decoded += len(rows)
        return [
            {"image": self.images[i], "label": int(self.labels[i]), "id": b"x"}
            for i in rows
        ]


def write_info(folder, tfds_name, version="3.0.1", **fields):
    version_dir = folder / tfds_name / version
    version_dir.mkdir(parents=True)
    (version_dir / prepared.INFO).write_text(json.dumps(fields))
    return version_dir


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(name)`: a prepared set of generated records; returns (folder, sources)."""
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)

    def make(name, num_classes=10):
        sources = {
            split: FakeSource(SHAPES[name], num_classes, size, seed)
            for seed, (split, size) in enumerate({"train": 1500, "test": 30}.items())
        }
        folder = tmp_path / "tfds"
        write_info(folder, TFDS_NAMES[name], fileFormat="array_record")
        monkeypatch.setattr(
            prepared, "_source", lambda version_dir, split: sources[split]
        )
        return folder, sources

    return make


def rows(split):
    """The examples of a split as comparable tuples."""
    return [
        (image.tobytes(), int(label))
        for image, label in zip(split["image"], split["label"], strict=True)
    ]


# --- generated sets -------------------------------------------------------------------


@pytest.mark.slow
def test_mnist1d_is_generated_alike_and_leaves_global_generators_alone(
    tmp_path, monkeypatch
):
    pytest.importorskip("mnist1d")
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path))
    np.random.seed(123)
    random.seed(123)
    expected = np.random.random(), random.random()
    made = []
    for _ in range(2):
        np.random.seed(123)
        random.seed(123)
        for file in tmp_path.iterdir():
            file.unlink()
        made.append(generated.mnist1d())
        assert (np.random.random(), random.random()) == expected
    assert len(list(tmp_path.iterdir())) == 1
    for field, array in made[0].items():
        np.testing.assert_array_equal(array, made[1][field])
    assert made[0]["train_image"].shape == (4000, 40)
    assert made[0]["train_image"].dtype == np.float32
    assert made[0]["test_label"].shape == (1000,)


def test_mnist1d(use_cache):
    pytest.importorskip("mnist1d")
    loaded = data.load("mnist1d")
    sizes = {split: len(arrays["label"]) for split, arrays in loaded.arrays.items()}
    assert sizes == {"train": 3000, "validation": 1000, "test": 1000}
    assert loaded.shape == (40,) and loaded.num_classes == 10 and loaded.note is None
    train = loaded.arrays["train"]
    assert train["label"].dtype == np.int32
    whole = np.concatenate([train["image"], loaded.arrays["validation"]["image"]])
    np.testing.assert_allclose(loaded.mean, [whole.mean()], atol=1e-6)
    np.testing.assert_allclose(loaded.std, [whole.std()], rtol=1e-5)


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    loaded = data.load("digits")
    train, test = loaded.arrays["train"], loaded.arrays["test"]
    assert train["image"].shape == (1293, 8, 8, 1)
    assert train["image"].dtype == np.uint8 and train["image"].max() == 16
    assert (np.bincount(test["label"]) == 36).all()
    together = sorted(sum((rows(split) for split in loaded.arrays.values()), []))
    scans = datasets.load_digits()
    images, labels = scans.images.astype(np.uint8), scans.target
    assert together == sorted(rows({"image": images, "label": labels}))
    # Raw values in [0, 1], although they are stored as 0..16.
    raw = data.load("digits", normalization="none")
    assert data.normalize(train["image"], raw.mean, raw.std).max() == pytest.approx(1)


def test_missing_package_names_the_extra(tmp_path, monkeypatch, fake):
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[generated\]"):
        data.load("mnist1d")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[generated\]"):
        data.load("digits")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    version_dir = write_info(tmp_path, "mnist", fileFormat="array_record")
    with pytest.raises(ImportError, match=r"lottery-jax\[data\]"):
        prepared.read(version_dir)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[data-prepare\]"):
        prepare.prepare("mnist", tmp_path)


# --- splits and options ---------------------------------------------------------------


def test_splits_are_disjoint_and_complete(fake):
    folder, sources = fake("kmnist")
    loaded = data.load("kmnist", validation=100, data_dir=folder)
    train, held = loaded.arrays["train"], loaded.arrays["validation"]
    assert (len(train["label"]), len(held["label"])) == (1400, 100)
    source = sources["train"]
    every = rows({"image": source.images, "label": source.labels})
    assert len(set(every)) == 1500  # no duplicates, so equality is disjointness
    assert sorted(rows(train) + rows(held)) == sorted(every)
    np.testing.assert_array_equal(
        loaded.arrays["test"]["image"], sources["test"].images
    )
    other = data.load("kmnist", validation=100, data_dir=folder, seed=1)
    assert set(rows(other.arrays["validation"])) != set(rows(held))
    again = data.load("kmnist", validation=100, data_dir=folder)
    assert rows(again.arrays["validation"]) == rows(held)


def test_splits_stay_what_they_are():
    stream = random_state(0, "split")
    assert stream.permutation(10).tolist() == [7, 5, 0, 9, 2, 3, 8, 1, 6, 4]


def test_no_validation_only_when_asked(fake):
    folder, _ = fake("kmnist")
    loaded = data.load("kmnist", validation=0, data_dir=folder)
    assert set(loaded.arrays) == {"train", "test"}
    assert len(loaded.arrays["train"]["label"]) == 1500


def test_subsets_are_nested_and_keep_the_validation_split(fake):
    folder, _ = fake("kmnist")
    small, large = (
        data.load("kmnist", validation=100, subset=n, data_dir=folder).arrays
        for n in (50, 200)
    )
    assert rows(large["train"])[:50] == rows(small["train"])
    assert len(small["train"]["label"]) == 50
    assert rows(small["validation"]) == rows(large["validation"])


def test_label_noise_redraws_a_fraction_of_the_training_labels(fake):
    folder, _ = fake("cifar100", num_classes=100)

    def labels(noise, seed=0):
        loaded = data.load(
            "cifar100", validation=500, label_noise=noise, seed=seed, data_dir=folder
        )
        return loaded.arrays["train"]["label"], loaded.arrays["validation"]["label"]

    clean, held = labels(0.0)
    noisy, noisy_held = labels(0.3)
    np.testing.assert_array_equal(held, noisy_held)
    # 300 of 1,000 are redrawn, and 1 in 100 draws hits the old label.
    assert 285 <= (clean != noisy).sum() <= 300
    np.testing.assert_array_equal(noisy, labels(0.3)[0])
    random_labels = labels(1.0)[0]
    assert (clean == random_labels).mean() < 0.05
    assert np.bincount(random_labels, minlength=100).max() < 30
    changed = clean != noisy
    np.testing.assert_array_equal(noisy[changed], random_labels[changed])


@pytest.mark.parametrize("factor", [1, 2, 2.5, 3, 4])
def test_blur_is_pillows(factor):
    image_module = pytest.importorskip("PIL.Image")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    small = int(28 / factor)

    def reference(image):
        image = image_module.fromarray(image)
        for size in (small, 28):
            image = image.resize((size, size), image_module.Resampling.BILINEAR)
        return np.asarray(image)

    expected = np.stack([reference(image) for image in images])
    blurred = data.blur(images, factor)
    np.testing.assert_array_equal(blurred, expected)
    assert (factor == 1) == (blurred == images).all()


def test_blur_touches_training_images_only(fake):
    folder, _ = fake("svhn")
    clean = data.load("svhn", validation=100, data_dir=folder).arrays
    blurred = data.load("svhn", validation=100, blur=4, data_dir=folder).arrays
    assert blurred["train"]["image"].dtype == np.uint8
    assert blurred["train"]["image"].std() < 0.6 * clean["train"]["image"].std()
    for split in ("validation", "test"):
        assert rows(blurred[split]) == rows(clean[split])


def test_normalizations(fake):
    folder, sources = fake("svhn")

    def load(normalization):
        return data.load(
            "svhn", validation=1, normalization=normalization, data_dir=folder
        )

    published = load("dataset")
    assert published.mean == (0.4377, 0.4438, 0.4728)
    imagenet = load("imagenet")
    assert imagenet.mean == (0.485, 0.456, 0.406)
    assert imagenet.std == (0.229, 0.224, 0.225)
    raw = load("none")
    image = sources["test"].images
    np.testing.assert_allclose(
        data.normalize(image, raw.mean, raw.std), image / 255.0, rtol=1e-6
    )
    unit = load("unit_l2")
    for split in unit.arrays.values():
        image = np.asarray(data.normalize(split["image"], unit.mean, unit.std))
        norms = np.linalg.norm(image.reshape(len(image), -1), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_computed_statistics_standardise_the_training_set(fake):
    folder, _ = fake("kmnist")
    loaded = data.load("kmnist", validation=0, data_dir=folder)
    image = loaded.arrays["train"]["image"]
    image = np.asarray(data.normalize(image, loaded.mean, loaded.std), np.float64)
    np.testing.assert_allclose([image.mean(), image.std()], [0, 1], atol=1e-5)


# --- parts of a set -------------------------------------------------------------------


def test_halves_are_disjoint_equal_and_share_the_validation_split(fake):
    folder, _ = fake("kmnist")
    whole, a, b = (
        data.load("kmnist", validation=99, half=half, data_dir=folder).arrays
        for half in (None, "a", "b")
    )
    # 1,401 are left: the last one belongs to neither.
    assert rows(a["train"]) + rows(b["train"]) == rows(whole["train"])[:1400]
    assert len(a["train"]["label"]) == 700
    for split in ("validation", "test"):
        assert rows(a[split]) == rows(b[split]) == rows(whole[split])
    part = data.load("kmnist", validation=99, half="b", subset=50, data_dir=folder)
    assert rows(part.arrays["train"]) == rows(b["train"])[:50]


def test_classes_keep_the_examples_of_the_first_ones_in_their_splits(fake):
    folder, _ = fake("kmnist")
    whole, few = (
        data.load("kmnist", validation=100, classes=n, data_dir=folder)
        for n in (None, 3)
    )
    assert few.num_classes == 3 and (few.mean, few.std) == (whole.mean, whole.std)
    for split, fields in whole.arrays.items():
        expected = [row for row in rows(fields) if row[1] < 3]
        assert rows(few.arrays[split]) == expected and expected
    part = data.load(
        "kmnist", validation=100, classes=3, half="a", subset=20, data_dir=folder
    )
    assert rows(part.arrays["train"]) == rows(few.arrays["train"])[:20]
    noisy = data.load(
        "kmnist", validation=100, classes=3, label_noise=1.0, data_dir=folder
    )
    assert set(noisy.arrays["train"]["label"]) == {0, 1, 2}


# --- the input adapter ----------------------------------------------------------------


def dataset_of(images, name="own"):
    """A data set of images, all in every split, labelled 0 and 1 in turns."""
    labels = np.arange(len(images), dtype=np.int32) % 2
    split = {"image": images, "label": labels}
    arrays = {name: dict(split) for name in ("train", "validation", "test")}
    return data.Dataset(arrays, 2, images.shape[1:], (0.5,), (0.5,), name, "a note")


def draw_images(*shape):
    return np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)


def test_images_of_the_right_shape_stay_as_they_are():
    images = draw_images(28, 28, 1)
    adapted = data.grey28(dataset_of(images))
    for split in adapted.arrays.values():
        np.testing.assert_array_equal(split["image"], images)


def test_smaller_images_are_padded_with_black_on_both_sides():
    images = draw_images(16, 5, 1)
    adapted = data.grey28(dataset_of(images))
    expected = np.zeros((4, 28, 28, 1), np.uint8)
    expected[:, 6:22, 11:16] = images
    np.testing.assert_array_equal(adapted.arrays["test"]["image"], expected)
    assert adapted.shape == (28, 28, 1)


def test_colours_become_luminance():
    images = draw_images(28, 28, 3)
    weights = np.array([0.299, 0.587, 0.114])
    expected = np.floor((images.astype(np.float64) * weights).sum(-1) + 0.5 + 1e-9)
    adapted = data.grey28(dataset_of(images)).arrays["train"]["image"]
    np.testing.assert_array_equal(adapted[..., 0], expected)


@pytest.mark.parametrize("shape", [(32, 32, 1), (61, 61, 1), (40, 20, 1)])
def test_larger_images_are_resized_as_pillow_does(shape):
    image_module = pytest.importorskip("PIL.Image")
    images = draw_images(*shape)
    height, width = (min(28, side) for side in shape[:2])

    def reference(image):
        image = image_module.fromarray(image[..., 0])
        size = (width, height)
        return np.asarray(image.resize(size, image_module.Resampling.BILINEAR))

    top, left = (28 - height) // 2, (28 - width) // 2
    expected = np.zeros((4, 28, 28), np.uint8)
    expected[:, top : top + height, left : left + width] = [
        reference(image) for image in images
    ]
    adapted = data.grey28(dataset_of(images)).arrays["train"]["image"]
    np.testing.assert_array_equal(adapted[..., 0], expected)


def test_resizing_by_hand():
    """Four pixels to two: a triangle of half-width 2 about the centres 1 and 3."""
    images = np.array([10, 50, 90, 250], np.uint8).reshape(1, 1, 4, 1)
    weights = np.array([[0.75, 0.75, 0.25, 0], [0, 0.25, 0.75, 0.75]])
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.floor(weights @ images.reshape(-1) + 0.5)
    resized = perturb.resized(images, 1, 2)
    np.testing.assert_array_equal(resized.reshape(-1), expected)


def test_adapted_images_have_statistics_of_their_own():
    found = data.grey28(dataset_of(draw_images(20, 20, 3)))
    image = found.arrays["train"]["image"] / 255.0
    np.testing.assert_allclose((found.mean, found.std), ([image.mean()], [image.std()]))
    assert (found.name, found.note, found.num_classes) == ("own", "a note", 2)
    np.testing.assert_array_equal(found.arrays["test"]["label"], [0, 1, 0, 1])


def test_many_images_are_adapted_in_blocks(monkeypatch):
    dataset = dataset_of(draw_images(32, 32, 3))
    whole = data.grey28(dataset)
    monkeypatch.setattr(data.adapted, "_BLOCK", 3)
    in_blocks = data.grey28(dataset)
    for split, fields in whole.arrays.items():
        np.testing.assert_array_equal(fields["image"], in_blocks.arrays[split]["image"])


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((4, 40), np.float32), r"float32 of shape \(40,\)"),
        (np.zeros((4, 28, 28, 1), np.float32), r"float32 of shape \(28, 28, 1\)"),
        (np.zeros((4, 28, 28, 2), np.uint8), r"uint8 of shape \(28, 28, 2\)"),
        (np.zeros((4, 28, 28), np.uint8), r"uint8 of shape \(28, 28\)"),
    ],
)
def test_what_is_no_image_is_not_adapted(images, found):
    with pytest.raises(ValueError, match=f"dataset: examples of own={found}; it must"):
        data.grey28(dataset_of(images))


def test_as_colour_images_grey_ones_are_repeated_and_smaller_ones_padded():
    images = draw_images(28, 16, 1)
    adapted = data.colour32(dataset_of(images))
    expected = np.zeros((4, 32, 32, 3), np.uint8)
    expected[:, 2:30, 8:24] = images
    for split in adapted.arrays.values():
        np.testing.assert_array_equal(split["image"], expected)
    assert adapted.shape == (32, 32, 3) and adapted.note == "a note"


def test_as_colour_images_those_of_the_right_shape_stay_and_larger_ones_are_resized():
    images = draw_images(32, 32, 3)
    adapted = data.colour32(dataset_of(images))
    np.testing.assert_array_equal(adapted.arrays["test"]["image"], images)
    values = images / 255.0
    np.testing.assert_allclose(adapted.mean, values.mean((0, 1, 2)))
    np.testing.assert_allclose(adapted.std, values.std((0, 1, 2)))
    large = draw_images(40, 32, 3)
    adapted = data.colour32(dataset_of(large)).arrays["train"]["image"]
    np.testing.assert_array_equal(adapted, perturb.resized(large, 32, 32))


def test_what_is_no_image_becomes_no_colour_image():
    vectors = np.zeros((4, 40), np.float32)
    with pytest.raises(ValueError, match="to become 32x32 colour ones"):
        data.colour32(dataset_of(vectors))


# --- the later classes ----------------------------------------------------------------


def test_the_later_classes_are_the_others_renumbered():
    whole = data.load("digits")
    first, later = data.load("digits", classes=5), data.load("digits", from_class=5)
    assert (first.num_classes, later.num_classes) == (5, 5)
    for split, own in whole.arrays.items():
        above = own["label"] >= 5
        np.testing.assert_array_equal(later.arrays[split]["image"], own["image"][above])
        found = later.arrays[split]["label"]
        np.testing.assert_array_equal(found, own["label"][above] - 5)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(
            first.arrays[split]["image"], own["image"][~above]
        )
    middle = data.load("digits", from_class=3, classes=5)
    assert middle.num_classes == 2
    assert set(middle.arrays["train"]["label"]) == {0, 1}
    assert data.load("digits", from_class=0).arrays["train"]["label"].max() == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_class": 9}, "from_class=9; it must be between 0 and 8, two of 10"),
        ({"from_class": -1}, "from_class=-1; it must be between 0 and 8"),
        ({"from_class": 4, "classes": 5}, "from_class=4; it must be between 0 and 3"),
        ({"from_class": 5.0}, "from_class=5.0; it must be a whole number"),
        (
            {"from_class": 5, "subset": 5000},
            r"subset=5000; it must lie in \[1, \d+\] .*, from_class=5",
        ),
    ],
)
def test_classes_that_are_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)


# --- USPS -----------------------------------------------------------------------------


@pytest.fixture
def fake_usps(tmp_path, monkeypatch):
    """A folder with files of a few lines each, and what is in them."""
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path / "cache"))
    files = {"train": ("zip.train.gz", 12), "test": ("zip.test.gz", 3)}
    monkeypatch.setattr(usps, "FILES", files)
    folder, written = tmp_path / "data", {}
    (folder / "usps").mkdir(parents=True)
    for seed, (split, (name, number)) in enumerate(files.items()):
        rng = np.random.default_rng(seed)
        labels, grey = rng.integers(0, 10, number), rng.uniform(-1, 1, (number, 256))
        grey[0, :3] = -1, 1, 0
        written[split] = labels, grey.round(3)
        lines = [
            f"{label:.4f} {' '.join(f'{v:.3f}' for v in row)} \n"
            for label, row in zip(*written[split])
        ]
        with gzip.open(folder / "usps" / name, "wt") as file:
            file.writelines(lines)
    return folder, written


def test_usps_is_parsed_from_its_lines(fake_usps):
    folder, written = fake_usps
    loaded = data.load("usps", validation=2, data_dir=folder)
    labels, grey = written["test"]
    test = loaded.arrays["test"]
    np.testing.assert_array_equal(test["label"], labels)
    expected = np.rint((grey + 1) * 127.5).reshape(3, 16, 16, 1)
    np.testing.assert_array_equal(test["image"], expected)
    assert test["image"].dtype == np.uint8 and test["label"].dtype == np.int32
    assert test["image"][0, 0, :3, 0].tolist() == [0, 255, 128]
    assert len(loaded.arrays["train"]["label"]) == 10
    assert "usps" in data.available(folder)


@pytest.mark.parametrize("damage", ["truncated", "text", "fewer lines", "no gzip"])
def test_damaged_files_of_usps_are_named(fake_usps, damage):
    folder, _ = fake_usps
    path = folder / "usps" / "zip.test.gz"
    content = path.read_bytes()
    lines = gzip.decompress(content).split(b"\n")
    changed, message = {
        "truncated": (content[:-50], "is damaged"),
        "text": (gzip.compress(b"7 a b c\n"), "is damaged"),
        "fewer lines": (
            gzip.compress(b"\n".join(lines[:2])),
            r"holds \(2, 257\) numbers; it must be 3 lines of 257",
        ),
        "no gzip": (b"\n".join(lines), "is damaged"),
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"zip.test.gz {message}"):
        data.load("usps", validation=2, data_dir=folder)


def test_no_flipped_bit_of_usps_changes_a_digit(fake_usps):
    folder, _ = fake_usps
    own = folder / "usps"
    right = usps._parsed(own)
    path = own / "zip.test.gz"
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = usps._parsed(own)
        except ValueError as error:
            assert "zip.test.gz" in str(error)
            refused += 1
        else:  # of the header: a time, a name
            np.testing.assert_array_equal(found["test_image"], right["test_image"])
    assert refused > len(whole) / 7 - 10


def test_usps_that_is_not_there_names_the_command(fake_usps):
    folder, _ = fake_usps
    (folder / "usps" / "zip.train.gz").unlink()
    command = f"python -m lottery_jax.data.prepare usps --data-dir {folder}\n"
    with pytest.raises(FileNotFoundError) as error:
        data.load("usps", data_dir=folder)
    assert command in str(error.value) and "data-prepare" not in str(error.value)
    assert "usps" not in data.available(folder)


def test_prepare_copies_the_files_of_usps_and_leaves_those_that_are_there(
    fake_usps, tmp_path, monkeypatch, capsys
):
    folder, _ = fake_usps
    monkeypatch.setattr(usps, "URL", f"{(folder / 'usps').as_uri()}/")
    own = tmp_path / "own" / "usps"
    own.mkdir(parents=True)
    (own / "zip.test.gz").write_bytes(b"mine")
    prepare.main(["usps", "--data-dir", str(own.parent)])
    assert "usps: prepared" in capsys.readouterr().out
    assert sorted(path.name for path in own.iterdir()) == [
        "zip.test.gz",
        "zip.train.gz",
    ]
    train = folder / "usps" / "zip.train.gz"
    assert (own / "zip.train.gz").read_bytes() == train.read_bytes()
    assert (own / "zip.test.gz").read_bytes() == b"mine"
    # Nothing is left of a download that failed.
    monkeypatch.setattr(usps, "URL", f"{(folder / 'nowhere').as_uri()}/")
    with pytest.raises(OSError):
        prepare.prepare("usps", tmp_path / "other")
    assert usps.find(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnist", "'lottery-jax[data-prepare]'"),
        ("usps", "put the file into"),
        ("glue", "--from"),
        ("tiny_shakespeare", "with --from"),
    ],
)
def test_what_cannot_be_prepared_is_a_line_and_no_traceback(
    name, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for module in (usps, published):
        monkeypatch.setattr(module, "URL", f"{(tmp_path / 'nowhere').as_uri()}/")
    with pytest.raises(SystemExit) as stop:
        prepare.main([name, "--data-dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.startswith(f"error: {name}: ") and said in message


def test_the_published_usps(prepared_data):
    loaded = data.load("usps", validation=0, data_dir=prepared_data("usps"))
    train, test = loaded.arrays["train"], loaded.arrays["test"]
    assert (len(train["label"]), len(test["label"])) == (7291, 2007)
    # As published with the files.
    counts = [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert np.bincount(train["label"]).tolist() == counts
    counts = [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert np.bincount(test["label"]).tolist() == counts
    adapted = data.grey28(loaded).arrays["train"]["image"]
    np.testing.assert_array_equal(adapted[:, 6:22, 6:22], train["image"])
    assert not adapted[:, :6].any() and not adapted[:, :, 22:].any()


def test_unit_l2_leaves_an_empty_image_empty():
    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[1, 0, 0, 0] = 9
    expected = np.zeros((2, 2, 2, 1), np.float32)
    expected[1, 0, 0, 0] = 1
    np.testing.assert_array_equal(sets._unit_l2(images), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1500}, r"validation=1500; it must lie in \[0, 1499\]"),
        ({"validation": -1}, "validation=-1;"),
        (
            {"validation": 500, "subset": 1001},
            r"subset=1001; it must lie in \[1, 1000\]",
        ),
        ({"validation": 500, "subset": 0}, "subset=0;"),
        ({"validation": 1, "label_noise": 1.5}, "label_noise=1.5; it must"),
        ({"validation": 1, "blur": 0.5}, r"blur=0.5; it must lie in \[1, 28\]"),
        ({"validation": 1, "normalization": "l2"}, "dataset, imagenet, none, unit_l2"),
        ({"validation": 1, "normalization": "imagenet"}, "three colour channels"),
        ({"validation": 1, "seed": -1}, "seed=-1; it must be between 0 and"),
        ({"validation": 1, "classes": 1}, "classes=1; it must be between 2 and 10"),
        ({"validation": 1, "classes": 11}, "classes=11; it must be between 2 and 10"),
        ({"validation": 1, "classes": 2.0}, "classes=2.0; it must be a whole number"),
        ({"validation": 1, "half": "c"}, "half='c'; it must be one of a, b"),
        (
            {"validation": 500, "half": "a", "subset": 501},
            r"subset=501; it must lie in \[1, 500\] for 'kmnist' .*, half='a'",
        ),
    ],
)
def test_options_out_of_range(fake, options, message):
    folder, _ = fake("kmnist")
    with pytest.raises(ValueError, match=message):
        data.load("kmnist", data_dir=folder, **options)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="mnist1d") as error:
        data.load("imagenet")
    assert all(name in str(error.value) for name in data.NAMES)


def test_signals_cannot_be_blurred():
    with pytest.raises(ValueError, match="blur needs images"):
        data.load("mnist1d", blur=2)


# --- the reader -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_every_builder_decodes_once(fake, name):
    num_classes = 100 if name == "cifar100" else 10
    folder, sources = fake(name, num_classes)
    for _ in range(2):
        loaded = data.load(name, validation=10, data_dir=folder)
    assert sources["train"].decoded == 1500  # the second time came from the cache
    assert loaded.num_classes == num_classes and loaded.shape == SHAPES[name]
    assert len(loaded.mean) == len(loaded.std) == SHAPES[name][-1]
    test = loaded.arrays["test"]
    np.testing.assert_array_equal(test["image"], sources["test"].images)
    np.testing.assert_array_equal(test["label"], sources["test"].labels)
    assert test["image"].dtype == np.uint8 and test["label"].dtype == np.int32
    assert data.available(folder) == tuple(
        n for n in data.NAMES if n == name or n in data.GENERATED
    )


def test_data_prepared_again_is_decoded_again(fake):
    folder, sources = fake("kmnist")
    data.load("kmnist", validation=1, data_dir=folder)
    record_file = folder / "kmnist" / "3.0.1" / "kmnist-train.array_record-0-of-1"
    record_file.write_bytes(b"new")
    data.load("kmnist", validation=1, data_dir=folder)
    assert sources["train"].decoded == 3000


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_is_made_again(fake, tmp_path, damage):
    folder, sources = fake("kmnist")
    expected = rows(data.load("kmnist", validation=1, data_dir=folder).arrays["train"])
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncate": -100, "flip": None, "empty": 0}[damage]])
    with pytest.warns(UserWarning, match="made again"):
        again = data.load("kmnist", validation=1, data_dir=folder)
    assert rows(again.arrays["train"]) == expected
    assert sources["train"].decoded == 3000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load("kmnist", validation=1, data_dir=folder)


def test_what_is_cached_is_what_was_made_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path))
    made = {"x": np.arange(3), "y": np.ones(2)}
    for make in (lambda: made, None):
        found = cache.cached("key", make)
        assert found.keys() == made.keys()
        assert all((found[name] == made[name]).all() for name in made)


def test_a_cache_that_cannot_be_written_costs_no_data(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not cached"):
        arrays = cache.cached("key", lambda: {"x": np.arange(3)})
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])


def test_labels_and_shapes_are_checked(fake):
    folder, sources = fake("kmnist")
    sources["train"].labels[7] = 10
    with pytest.raises(ValueError, match=r"labels in \[0, 10\], not in \[0, 10\)"):
        data.load("kmnist", validation=1, data_dir=folder)
    folder, _ = fake("cifar10")
    sources = {s: FakeSource((28, 28, 1), 10, 20, 0) for s in ("train", "test")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_source", lambda version_dir, split: sources[split])
        with pytest.raises(ValueError, match=r"not \[N, 32, 32, 3\]"):
            data.load("cifar10", validation=1, data_dir=folder)


def test_missing_data_fails_at_once_and_says_what_to_do(fake, monkeypatch):
    folder, _ = fake("kmnist")
    # Neither the reader nor the network may be asked.
    monkeypatch.setattr(prepared, "_source", None)
    with pytest.raises(FileNotFoundError) as error:
        data.load("svhn", data_dir=folder)
    message = str(error.value)
    assert str(folder) in message
    assert "pip install 'lottery-jax[data-prepare]'" in message
    command = f"python -m lottery_jax.data.prepare svhn --data-dir {folder}\n"
    assert command in message
    assert "Prepared there: kmnist." in message
    assert "without a network: mnist1d, digits." in message
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere") as error:
        data.load("svhn")
    assert "data.prepare svhn\n" in str(error.value)
    assert "Prepared there: nothing." in str(error.value)
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert prepared.data_dir().name == "tensorflow_datasets"


def test_tfrecord_files_are_named_as_the_obstacle(tmp_path):
    version_dir = write_info(tmp_path, "mnist")  # TFDS's default format goes unnamed
    with pytest.raises(FileNotFoundError, match="tfrecord files") as error:
        data.load("mnist", data_dir=tmp_path)
    assert str(version_dir) in str(error.value)


def test_the_newest_version_and_its_note(tmp_path):
    for version in ("3.0.9", "3.0.10", "incomplete.3.0.11"):
        version_dir = write_info(tmp_path, "mnist", version, fileFormat="array_record")
        (version_dir / "NOTE.txt").write_text(f"{version}\n")
    found = prepared.find("mnist", tmp_path)
    assert found is not None and found.name == "3.0.10"
    assert prepared.note(found) == "3.0.10"


def test_prepare_asks_for_array_record_files(tmp_path, monkeypatch, capsys):
    calls = []

    def builder(name, **options):
        calls.append((name, options))
        return types.SimpleNamespace(download_and_prepare=lambda: calls.append("run"))

    fake_tfds = types.ModuleType("tensorflow_datasets")
    fake_tfds.builder = builder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    prepare.main(["svhn", "--data-dir", str(tmp_path)])
    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert calls == [("svhn_cropped", options), "run"]
    assert "svhn: prepared" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one of mnist, "):
        prepare.prepare("digits")
    with pytest.raises(SystemExit):
        prepare.main(["digits"])


class OfTfds(Exception):
    """As `DownloadError` and `NonMatchingChecksumError` are: of no common base."""


@pytest.mark.parametrize("raised", [OfTfds, AssertionError, ConnectionError])
def test_whatever_tfds_raises_is_a_line_with_its_reason(
    tmp_path, monkeypatch, capsys, raised
):
    def download_and_prepare():
        raise raised("no route to host")

    fake_tfds = types.ModuleType("tensorflow_datasets")
    fake_tfds.builder = lambda name, **options: types.SimpleNamespace(
        download_and_prepare=download_and_prepare
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    with pytest.raises(SystemExit) as stop:
        prepare.main(["mnist", "--data-dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and len(message.splitlines()) == 1
    assert message.startswith(
        f"error: mnist: TFDS could not prepare mnist in {tmp_path}"
    )
    assert "no route to host" in message


@pytest.fixture
def short_answers():
    """The address of a server that announces twice what it sends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "20")
            self.end_headers()
            self.wfile.write(b"half of it")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["usps", "tiny_shakespeare"])
def test_a_download_that_ends_early_leaves_nothing(
    name, tmp_path, monkeypatch, capsys, short_answers
):
    monkeypatch.setenv("no_proxy", "*")
    for module in (usps, published):
        monkeypatch.setattr(module, "URL", short_answers)
    with pytest.raises(SystemExit) as stop:
        prepare.main([name, "--data-dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and len(message.splitlines()) == 1
    assert f"error: {name}: {short_answers}" in message and "IncompleteRead" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- augmentation ---------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 6, 3), dtype=np.uint8)


def test_flip_mirrors_about_half_and_is_an_involution():
    flip = jax.jit(data.flip)
    once = np.asarray(flip(jax.random.key(0), IMAGES))
    mirrored = IMAGES[:, :, ::-1]
    is_mirrored = (once == mirrored).all((1, 2, 3))
    is_same = (once == IMAGES).all((1, 2, 3))
    assert (is_mirrored ^ is_same).all() and 16 < is_mirrored.sum() < 48
    assert once.dtype == np.uint8
    np.testing.assert_array_equal(flip(jax.random.key(0), once), IMAGES)
    other = np.asarray(flip(jax.random.key(1), IMAGES))
    assert (other != once).any()


def corners_of(crops, images, padding):
    """For each crop the corners in the padded image that explain it."""
    width = (padding, padding)
    padded = np.pad(images, ((0, 0), width, width, (0, 0)))
    height, width = images.shape[1:3]
    found = [[] for _ in images]
    for i in range(2 * padding + 1):
        for j in range(2 * padding + 1):
            window = padded[:, i : i + height, j : j + width]
            for n in np.flatnonzero((window == crops).all((1, 2, 3))):
                found[n].append((i, j))
    return found


def test_shift_crop_cuts_a_uniform_window_of_the_padded_image():
    images = np.tile(IMAGES, (8, 1, 1, 1))
    crop = jax.jit(data.shift_crop, static_argnames="padding")
    crops = np.asarray(crop(jax.random.key(0), images, padding=2))
    assert crops.dtype == np.uint8
    found = corners_of(crops, images, 2)
    assert all(len(corners) == 1 for corners in found)
    counts = np.zeros((5, 5), int)
    for ((i, j),) in found:
        counts[i, j] += 1
    # 512 draws over 25 places: chi squared with 24 degrees of freedom.
    assert ((counts - 512 / 25) ** 2 / (512 / 25)).sum() < 52
    # The copies of one image got different windows: drawn per example, not per batch.
    assert len({found[0][0], *(found[64 * k][0] for k in range(1, 8))}) > 1
    again = crop(jax.random.key(0), images, padding=2)
    np.testing.assert_array_equal(crops, again)
    other = np.asarray(crop(jax.random.key(1), images, padding=2))
    assert (other != crops).any()


def test_shift_crop_pads_with_black_and_keeps_all_without_padding():
    white = np.full((32, 8, 6, 3), 255, np.uint8)
    crops = np.asarray(data.shift_crop(jax.random.key(0), white, padding=3))
    assert set(np.unique(crops)) == {0, 255}
    same = data.shift_crop(jax.random.key(0), IMAGES, padding=0)
    np.testing.assert_array_equal(same, IMAGES)


def test_augmentation_of_an_image_does_not_depend_on_the_others():
    key = jax.random.key(3)
    augment = jax.jit(data.flip_and_crop)
    changed = IMAGES.copy()
    changed[1:] = 7
    np.testing.assert_array_equal(augment(key, IMAGES)[0], augment(key, changed)[0])
    float_images = IMAGES.astype(np.float32)
    np.testing.assert_array_equal(
        augment(key, IMAGES).astype(jnp.float32), augment(key, float_images)
    )


def test_augmentation_of_replicas_equals_each_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(data.flip_and_crop, (0, None))(keys, jnp.asarray(IMAGES))
    for key, images in zip(keys, together, strict=True):
        np.testing.assert_array_equal(data.flip_and_crop(key, IMAGES), images)
    assert (together[0] != together[1]).any()


def test_normalize():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    normal = data.normalize(IMAGES, mean, std)
    assert normal.dtype == jnp.float32
    expected = (IMAGES / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normal, expected, rtol=1e-5, atol=1e-6)
    signals = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    np.testing.assert_allclose(
        data.normalize(signals, (0.5,), (2.0,)), (signals - 0.5) / 2, rtol=1e-6
    )


def test_augmentation_errors():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="padding=-1; it must be 0 or more"):
        data.shift_crop(key, IMAGES, padding=-1)
    for augment in (data.flip, data.shift_crop):
        with pytest.raises(ValueError, match=r"\[B, H, W, C\], got shape \(64, 8, 6\)"):
            augment(key, IMAGES[..., 0])
    with pytest.raises(ValueError, match="uint8 or real, got int32"):
        data.normalize(IMAGES.astype(np.int32), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="mean must hold 1 number or 3"):
        data.normalize(IMAGES, (0.0, 0.0), (1.0,))


# --- the order of examples ------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(2, 3))
def order(key, epoch, num_examples, batch_size):
    """The batches of one epoch, as training sees them."""
    steps = data.steps_per_epoch(num_examples, batch_size)
    return jax.vmap(lambda i: data.shuffled(key, i, num_examples, batch_size))(
        epoch * steps + jnp.arange(steps)
    )


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**28 - 1),
    sizes=st.sampled_from([(1, 1), (1, 5), (60, 20), (61, 20), (259, 70), (7, 7)]),
)
def test_an_epoch_holds_every_example_once(seed, epoch, sizes):
    num_examples, batch_size = sizes
    indices = np.asarray(order(jax.random.key(seed), epoch, num_examples, batch_size))
    steps = data.steps_per_epoch(num_examples, batch_size)
    assert indices.shape == (steps, batch_size) and indices.dtype == np.int32
    flat = indices.reshape(-1)
    np.testing.assert_array_equal(np.sort(flat[:num_examples]), np.arange(num_examples))
    assert (flat[num_examples:] == -1).all()


def test_leaving_out_the_last_batch_changes_no_other():
    key = jax.random.key(3)
    for num_examples in (61, 261):
        full = [
            data.shuffled(key, i, num_examples, 20, drop_last=True)
            for i in range(num_examples // 20)
        ]
        np.testing.assert_array_equal(full, order(key, 0, num_examples, 20)[:-1])
        # The next step is the first of the next epoch.
        after = data.shuffled(key, len(full), num_examples, 20, drop_last=True)
        np.testing.assert_array_equal(after, order(key, 1, num_examples, 20)[0])
    with pytest.raises(ValueError, match="batch_size=20; it must be 5 or less"):
        data.shuffled(key, 0, 5, 20, drop_last=True)


def test_50000_examples_make_391_batches_of_128():
    assert data.steps_per_epoch(50_000, 128) == 391
    indices = np.asarray(data.sequential(50_000, 128))
    assert indices.shape == (391, 128)
    assert (indices[-1] >= 0).sum() == 80
    np.testing.assert_array_equal(indices.reshape(-1)[:50_000], np.arange(50_000))


def test_orders_differ_by_epoch_and_key_and_repeat():
    key = jax.random.key(0)
    first = order(key, 0, 61, 20)
    assert (first != order(key, 1, 61, 20)).any()
    assert (first != order(jax.random.key(1), 0, 61, 20)).any()
    np.testing.assert_array_equal(first, order(key, 0, 61, 20))
    # The first epoch is shuffled too, and a traced epoch gives the same.
    assert (first != data.sequential(61, 20)).any()
    np.testing.assert_array_equal(
        jax.vmap(lambda e: order(key, e, 61, 20))(jnp.arange(2))[0], first
    )


def test_gather_weighs_examples_and_ignores_padding():
    arrays = {
        "image": jnp.arange(21, dtype=jnp.float32).reshape(7, 3),
        "label": jnp.arange(7, dtype=jnp.int32),
    }
    indices = data.sequential(7, 5)
    gather = jax.jit(data.gather)
    batches = [gather(arrays, row) for row in indices]
    np.testing.assert_array_equal(batches[0]["weight"], np.ones(5))
    np.testing.assert_array_equal(batches[0]["image"], arrays["image"][:5])
    np.testing.assert_array_equal(batches[1]["weight"], [1, 1, 0, 0, 0])
    assert batches[1]["weight"].dtype == jnp.float32
    # Empty slots repeat their own batch, never examples from elsewhere.
    np.testing.assert_array_equal(batches[1]["label"], [5, 6, 5, 6, 5])
    mean = sum((b["label"] * b["weight"]).sum() for b in batches) / 7
    assert float(mean) == 3.0


def test_order_errors():
    with pytest.raises(ValueError, match="batch_size=0; it must be 1 or more"):
        data.shuffled(jax.random.key(0), 0, 10, 0)
    with pytest.raises(ValueError, match="num_examples=0; it must be 1 or more"):
        data.sequential(0, 10)
    with pytest.raises(ValueError, match=r"indices must be \[B\]"):
        data.gather({"label": jnp.arange(7)}, data.sequential(7, 5))
    with pytest.raises(ValueError, match="weight"):
        data.gather({"weight": jnp.arange(7)}, data.sequential(7, 5)[0])


# --- real data ------------------------------------------------------------------------


def channel_statistics(images):
    counts = [
        np.bincount(images[..., c].reshape(-1), minlength=256)
        for c in range(images.shape[-1])
    ]
    levels = np.arange(256) / 255
    share = np.array(counts) / np.sum(counts[0])
    mean = share @ levels
    return mean, np.sqrt(share @ levels**2 - mean**2)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "per_class"),
    [
        ("mnist", (60_000, 10_000), 980),
        ("fashion_mnist", (60_000, 10_000), 1000),
        ("cifar10", (50_000, 10_000), 1000),
    ],
)
def test_real_data_has_its_published_size_and_statistics(
    prepared_data, name, sizes, per_class
):
    loaded = data.load(name, validation=0, data_dir=prepared_data(name))
    train, test = loaded.arrays["train"], loaded.arrays["test"]
    assert train["image"].shape == (sizes[0], *SHAPES[name])
    assert test["image"].shape == (sizes[1], *SHAPES[name])
    assert train["image"].dtype == np.uint8
    mean, std = channel_statistics(train["image"])
    # The published numbers have four digits; 76 images of CIFAR-10 may be inexact.
    np.testing.assert_allclose(loaded.mean, mean, atol=1e-4)
    np.testing.assert_allclose(loaded.std, std, atol=1e-4)
    assert np.bincount(test["label"])[0] == per_class
