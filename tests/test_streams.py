"""Streamed splits: every source reads the same bits, and says what is wrong with it."""

import os
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import lottery_jax as lj
from lottery_jax import data, probes, streams, tasks
from lottery_jax.data import decode, generated, maps, reading
from lottery_jax.data.streamed import decoded, rows, sources
from lottery_jax.types import Network

NUMBER, SHAPE, CLASSES = 90, (6, 5, 3), 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits between two tries are recorded and not waited for."""
    waits = []
    monkeypatch.setattr(reading.time, "sleep", waits.append)
    return waits


def pixels(number=NUMBER, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), np.uint8)


def classes(number=NUMBER, seed=0):
    """Sorted, as class folders give them."""
    drawn = np.random.default_rng(seed).integers(0, CLASSES, number - CLASSES)
    return np.sort(np.concatenate([np.arange(CLASSES), drawn])).astype(np.int32)


IMAGES, LABELS = pixels(), classes()


class Asked:
    """A source of items, `(image, label)`."""

    def __init__(self, images=IMAGES, labels=LABELS):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        assert type(number) is int
        return self.images[number], int(self.labels[number])


class Named(Asked):
    """In the manner of Hugging Face's: dicts, several at once, a fingerprint, features."""

    def __init__(self, *arrays, fingerprint="f00"):
        super().__init__(*arrays)
        self._fingerprint = fingerprint
        feature = type("ClassLabel", (), {"num_classes": CLASSES})()
        self.features = {"img": None, "fine": feature}
        self.calls = []

    def __getitem__(self, number):
        image, label = super().__getitem__(number)
        return {"img": image, "fine": label, "id": "x"}

    def __getitems__(self, numbers):
        self.calls.append(numbers)
        return [self[number] for number in numbers]


class Broken(Asked):
    """A source of which some items raise an error, or several in turn."""

    def __init__(self, broken, error, times=10**9):
        super().__init__()
        self.left = dict.fromkeys(broken, times)
        self.error, self.lock = error, threading.Lock()

    def __getitem__(self, number):
        with self.lock:
            fails = self.left.get(number, 0) > 0
            if fails:
                self.left[number] -= 1
        if fails:
            raise self.error
        return super().__getitem__(number)


def mapped(folder, images=IMAGES):
    file = folder / "pixels.bin"
    images.tofile(file)
    return np.memmap(file, np.uint8, "r", shape=images.shape)


def written(folder, images=IMAGES, labels=LABELS, suffix=".png"):
    """A folder of class folders; files in the order of their numbers."""
    image = pytest.importorskip("PIL.Image")
    for number, (one, label) in enumerate(zip(images, labels)):
        path = folder / f"class{label}" / f"{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(one).save(path)
    return folder


def examples(source, split="train", **options):
    options = {"num_classes": CLASSES, "workers": 2} | options
    return data.stream(source, **options).arrays[split]["image"].examples


def seen(source, numbers, **options):
    return streams.read(examples(source, **options), numbers)


def equal(one, other):
    assert one.keys() == other.keys()
    for field in one:
        assert one[field].dtype == other[field].dtype
        np.testing.assert_array_equal(one[field], other[field])


# --- the same bits --------------------------------------------------------------------

SOURCES = {
    "arrays": lambda folder: (IMAGES, LABELS),
    "fields": lambda folder: {"image": IMAGES, "label": LABELS.astype(np.int64)},
    "on a device": lambda folder: (jnp.asarray(IMAGES), jnp.asarray(LABELS)),
    "map": lambda folder: (mapped(folder), LABELS),
    "rows of columns": lambda folder: (np.asfortranarray(IMAGES), LABELS),
    "items": lambda folder: Asked(),
    "a list": lambda folder: list(zip(IMAGES, LABELS)),
    "several at once": lambda folder: Named(),
    "folder": written,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_reads_the_bits_it_was_made_of(kind, tmp_path):
    options = {"fields": ("img", "fine")} if kind == "several at once" else {}
    dataset = data.stream(SOURCES[kind](tmp_path), num_classes=CLASSES, **options)
    split = dataset.arrays["train"]
    assert dataset.shape == SHAPE and dataset.num_classes == CLASSES
    assert split["image"].shape == IMAGES.shape and split["image"].dtype == np.uint8
    assert split["label"].shape == (NUMBER,) and split["label"].dtype == np.int32
    # In any order, one twice.
    numbers = np.random.default_rng(1).integers(0, NUMBER, 200)
    found = streams.read(split["image"].examples, numbers)
    equal(found, {"image": IMAGES[numbers], "label": LABELS[numbers]})
    few = streams.read(split["image"].examples, numbers[:1])
    equal(few, {"image": IMAGES[numbers[:1]], "label": LABELS[numbers[:1]]})


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_threads_give_equal_results(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "COPIED", 200)  # a range is two images
    numbers = np.random.default_rng(2).permutation(NUMBER)
    for source in ((mapped(tmp_path), LABELS), Asked()):
        found = seen(source, numbers, workers=workers)
        equal(found, {"image": IMAGES[numbers], "label": LABELS[numbers]})


def test_several_are_asked_for_at_once():
    source = Named()
    numbers = np.arange(40)
    seen(source, numbers, fields=("img", "fine"), workers=1)
    assert sum(source.calls, []) == list(range(40))
    assert max(map(len, source.calls)) == decoded.DECODED > 1


def test_real_numbers_stay_what_they_are_in_float32():
    images = np.random.default_rng(0).normal(size=(NUMBER, 7))
    dataset = data.stream((images, LABELS))
    assert dataset.shape == (7,) and dataset.mean == (0.0,) and dataset.std == (1.0,)
    found = streams.read(dataset.arrays["train"]["image"].examples, [3, 1])
    equal(found, {"image": images[[3, 1]].astype(np.float32), "label": LABELS[[3, 1]]})
    half = images.astype(np.float16)
    assert data.stream((half, LABELS)).arrays["train"]["image"].dtype == np.float16


@pytest.mark.data
def test_cifar10_of_tfds_is_what_load_gives(prepared_data):
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = prepared_data("cifar10")
    loaded = data.load("cifar10", data_dir=folder)
    source = {
        split: tfds.data_source("cifar10", split=split, data_dir=folder, download=False)
        for split in ("train", "test")
    }
    streamed = data.stream(source, validation=5000, mean=loaded.mean, std=loaded.std)
    assert streamed._replace(arrays=0) == loaded._replace(arrays=0)
    for split, fields in loaded.arrays.items():
        own = streamed.arrays[split]
        assert own["image"].shape == fields["image"].shape
        numbers = np.random.default_rng(3).integers(0, len(fields["label"]), 50)
        found = streams.read(own["image"].examples, numbers)
        equal(found, {name: array[numbers] for name, array in fields.items()})


# --- splits ---------------------------------------------------------------------------


def test_a_validation_split_is_held_out_as_load_does(monkeypatch):
    images = pixels(shape=(8, 8, 1))
    stored = {"train_image": images, "train_label": LABELS}
    stored |= {"test_image": images[:9], "test_label": LABELS[:9]}
    monkeypatch.setattr(generated, "digits", lambda: stored)
    source = {"train": (images, LABELS), "test": (images[:9], LABELS[:9])}
    for seed in (0, 1):
        loaded = data.load("digits", validation=20, seed=seed)
        streamed = data.stream(source, validation=20, seed=seed)
        assert list(streamed.arrays) == list(loaded.arrays)
        for split, fields in loaded.arrays.items():
            own = streamed.arrays[split]["image"].examples
            equal(streams.read(own, np.arange(len(own))), fields)


def test_validation_is_disjoint_and_together_it_is_all_of_train():
    numbered = np.arange(NUMBER, dtype=np.float32)[:, None]
    source = {"train": (numbered, LABELS), "test": (numbered[:9], LABELS[:9])}
    dataset = data.stream(source, validation=20, num_classes=CLASSES)
    assert list(dataset.arrays) == ["train", "validation", "test"]
    found = {
        split: streams.read(x["image"].examples, np.arange(len(x["label"])))
        for split, x in dataset.arrays.items()
    }
    numbers = {s: x["image"][:, 0].astype(int).tolist() for s, x in found.items()}
    assert len(numbers["validation"]) == 20 and numbers["test"] == list(range(9))
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(NUMBER))
    for split, own in numbers.items():
        np.testing.assert_array_equal(found[split]["label"], LABELS[own])
    again = data.stream(source, validation=20, num_classes=CLASSES)
    other = data.stream(source, validation=20, num_classes=CLASSES, seed=1)
    digests = [
        d.arrays["train"]["image"].examples.digest for d in (dataset, again, other)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.filterwarnings("ignore:.*has no classes")
@pytest.mark.parametrize(
    ("there", "splits"),
    [
        (("train",), {"train": 5}),
        (("train", "val"), {"train": 5, "test": 6}),
        (("train", "validation", "flat"), {"train": 5, "test": 6}),
        (("train", "val", "test"), {"train": 5, "validation": 6, "test": 7}),
        (("train", "test"), {"train": 5, "test": 7}),
    ],
)
def test_a_folder_of_splits(there, splits, tmp_path):
    sizes = {"train": 5, "val": 6, "validation": 6, "test": 7}
    for name in there:
        if name == "flat":  # as ImageNet's, without labels
            (tmp_path / "test" / "images").mkdir(parents=True)
        else:
            written(tmp_path / name, pixels(sizes[name]), classes(sizes[name]))
    dataset = data.stream(tmp_path)
    found = {split: len(x["label"]) for split, x in dataset.arrays.items()}
    assert found == splits and dataset.name == tmp_path.name
    assert dataset.num_classes == CLASSES
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (
        0.229,
        0.224,
        0.225,
    )


def test_a_map_is_read_as_it_was_prepared(tmp_path):
    folder, own = tmp_path / "mine", tmp_path / "map"
    written(folder / "train"), written(folder / "val", pixels(20, seed=1), classes(20))
    truncated(sorted((folder / "train").rglob("*.png"))[17])
    maps.write(folder, own, side=5, skip_corrupt=True)
    dataset = data.stream(own, validation=10)
    assert dataset.name == "map" and dataset.num_classes == CLASSES
    assert {split: len(x["label"]) for split, x in dataset.arrays.items()} == {
        "train": 80,
        "validation": 10,
        "test": 20,
    }
    # The same pixels as from the files, whichever is replaced.
    from_files = data.stream(folder, validation=10, side=5, skip_corrupt=True)
    for split, fields in dataset.arrays.items():
        one, other = (x.arrays[split]["image"].examples for x in (dataset, from_files))
        numbers = np.arange(len(fields["label"]))[::-1]
        equal(streams.read(one, numbers), streams.read(other, numbers))
        assert one.digest != other.digest
    train, other = (x.arrays["train"]["image"].examples for x in (dataset, from_files))
    assert len(train.replaced) == len(other.replaced) == 1
    # A split of it beside another source.
    mixed = data.stream({"train": own, "test": folder / "val"}, side=5)
    equal(
        streams.read(mixed.arrays["test"]["image"].examples, [3]),
        streams.read(dataset.arrays["test"]["image"].examples, [3]),
    )


def test_a_map_of_another_size_than_its_description_is_refused(tmp_path):
    own = tmp_path / "map"
    maps.write({"train": Asked()}, own, side=5)
    assert digest(own) == digest(own)
    with pytest.raises(ValueError, match="side=6; it must be None: images of"):
        data.stream(own, side=6)
    file = next(own.glob("*images*"))
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(streams.SourceError, match=f"{re.escape(str(file))} has"):
        data.stream(own)


def test_images_of_many_sizes_become_squares(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wide, high = pixels(1, (8, 16, 3))[0], pixels(1, (20, 10, 3))[0]
    image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    image.fromarray(high).save(tmp_path / "b" / "high.PNG")
    found = seen(tmp_path, [0, 1], side=8, num_classes=None)
    np.testing.assert_array_equal(found["image"][0], wide[:, 4:12])
    expected = decode.image(high, side=8)
    np.testing.assert_array_equal(found["image"][1], expected)
    grey = seen(tmp_path, [0, 1], side=8, channels=1, num_classes=None)
    assert grey["image"].shape == (2, 8, 8, 1)


def test_the_number_of_classes_is_what_a_source_says():
    assert data.stream(Named(), fields=("img", "fine")).num_classes == CLASSES
    assert data.stream((IMAGES, LABELS)).num_classes == CLASSES
    pair = {"train": (IMAGES, LABELS), "test": (IMAGES[:1], np.array([6]))}
    assert data.stream(pair).num_classes == 7
    listed = Asked()
    listed.classes = list("abcd")
    assert data.stream(listed).num_classes == CLASSES


def test_parts_of_parts():
    whole = examples(Asked())
    some = streams.part(streams.part(whole, slice(10, 60, 2)), np.array([4, 0, 24]))
    numbers = np.array([18, 10, 58])
    equal(
        streams.read(some, np.arange(3)),
        {"image": IMAGES[numbers], "label": LABELS[numbers]},
    )
    assert some == streams.part(whole, numbers) and some.digest != whole.digest
    np.testing.assert_array_equal(
        sources.known_labels(streams.part(examples((IMAGES, LABELS)), numbers)),
        LABELS[numbers],
    )


def test_a_column_does_not_become_an_array():
    column = data.stream((IMAGES, LABELS)).arrays["train"]["image"]
    for turn in (np.asarray, jnp.asarray, np.sum):
        with pytest.raises(TypeError, match="streams.read|not a valid JAX"):
            turn(column)


# --- what a digest sees ---------------------------------------------------------------


def digest(source, **options):
    return examples(source, **options).digest


def test_a_folder_is_known_by_names_and_sizes(tmp_path):
    folder = written(tmp_path / "a")
    first = digest(folder)
    read_first = examples(folder)
    streams.read(read_first, np.arange(NUMBER)[::-1])
    assert first == read_first.digest == digest(folder, workers=1)
    assert digest(written(tmp_path / "b")) == first  # elsewhere
    files = sorted(folder.rglob("*.png"))
    files[7].rename(files[7].with_name("0007b.png"))
    renamed = digest(folder)
    with open(files[9], "ab") as file:
        file.write(b"\0")
    grown = digest(folder)
    files[8].unlink()
    assert len({first, renamed, grown, digest(folder)}) == 4
    for option in ({"side": 4}, {"channels": 1}, {"skip_corrupt": True}):
        assert digest(folder, **option) != digest(folder)


def test_arrays_are_known_by_shape_dtype_labels_and_some_rows(tmp_path):
    first = digest((IMAGES, LABELS))
    assert first == digest((IMAGES.copy(), LABELS.astype(np.int64)))
    assert examples((IMAGES, LABELS)) == examples((IMAGES, LABELS))
    other = LABELS.copy()
    other[50] = 0
    changed = IMAGES.copy()
    changed[-1, 0, 0, 0] += 1
    others = [
        (IMAGES, other),
        (changed, LABELS),
        (IMAGES.reshape(NUMBER, -1), LABELS),
        (IMAGES.astype(np.float32), LABELS),
        (IMAGES[:-1], LABELS[:-1]),
        (mapped(tmp_path), LABELS),
    ]
    digests = [digest(source) for source in others]
    assert len({first, *digests}) == 7
    with open(tmp_path / "pixels.bin", "ab") as file:
        file.write(b"\0")
    assert digest(others[-1]) != digests[-1]


def test_items_are_known_by_what_they_say_of_themselves():
    names = {"fields": ("img", "fine")}
    assert digest(Named(), **names) == digest(Named(pixels(seed=1), LABELS), **names)
    assert digest(Named(), **names) != digest(Named(fingerprint="f01"), **names)
    assert digest(Asked()) == digest(Asked())
    assert digest(Asked()) != digest(Asked(pixels(seed=1), LABELS))
    assert digest(Asked()) != digest(Asked(IMAGES[:-1], LABELS[:-1]))


# --- bad input ------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_a_corrupt_file_is_named(tmp_path):
    folder = written(tmp_path)
    found = examples(folder)
    files = sorted(folder.rglob("*.png"))
    truncated(files[17])
    with pytest.raises(streams.SourceError, match=re.escape(str(files[17]))):
        streams.read(found, np.arange(NUMBER))
    files[17].write_text("no image")
    with pytest.raises(streams.SourceError, match=re.escape(str(files[17]))):
        streams.read(found, np.array([1, 17]))
    streams.read(found, np.array([1, 18]))


def test_the_next_readable_file_stands_in_on_request(tmp_path):
    folder = written(tmp_path)
    files = sorted(folder.rglob("*.png"))
    for number in (17, 18, NUMBER - 1):
        truncated(files[number])
    instead = np.arange(NUMBER)
    instead[[17, 18, NUMBER - 1]] = 19, 19, 0
    expected = {"image": IMAGES[instead], "label": LABELS[instead]}
    whole = examples(folder, skip_corrupt=True)
    equal(streams.read(whole, np.arange(NUMBER)), expected)
    assert whole.replaced == {
        str(files[17]): str(files[19]),
        str(files[18]): str(files[19]),
        str(files[NUMBER - 1]): str(files[0]),
    }
    # Whatever is read together, and in which order.
    alone = examples(folder, skip_corrupt=True)
    assert alone.replaced == {}
    for number in (NUMBER - 1, 17, 17):
        found = streams.read(alone, [number])
        equal(found, {field: x[[number]] for field, x in expected.items()})
    assert len(alone.replaced) == 2
    assert streams.part(alone, [3, 17]).replaced == alone.replaced


@pytest.mark.parametrize(
    "error", [ValueError("bad"), SyntaxError("broken PNG"), OSError("truncated")]
)
def test_items_that_cannot_be_decoded(error):
    found = examples(Broken([17], error))
    said = re.escape("example 17 of the split train of streamed cannot be read")
    with pytest.raises(streams.SourceError, match=said) as caught:
        streams.read(found, np.arange(NUMBER))
    assert caught.value.__cause__ is error
    found = examples(Broken([17], error), skip_corrupt=True)
    equal(streams.read(found, [17]), {"image": IMAGES[[18]], "label": LABELS[[18]]})
    of = "of the split train of streamed"
    assert found.replaced == {f"example 17 {of}": f"example 18 {of}"}


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError()])
def test_nothing_stands_in_for_what_cannot_be_reached(error):
    found = examples(Broken([17], error), skip_corrupt=True)
    with pytest.raises(streams.SourceError, match="example 17 .* tried 4 times"):
        streams.read(found, [17])
    assert not found.replaced


@pytest.mark.parametrize("error", [MemoryError, ImportError])
def test_what_is_wrong_with_the_machine_is_not_the_examples_fault(error):
    found = examples(Broken([17], error("x")), skip_corrupt=True)
    with pytest.raises(error):
        streams.read(found, [17])


def test_nothing_stands_in_where_nothing_can_be_read():
    with pytest.raises(streams.SourceError, match=f"none of the {NUMBER} .*bad"):
        examples(Broken(range(NUMBER), ValueError("bad")), skip_corrupt=True)


def test_the_first_wrong_example_is_named_whichever_thread_is_sooner():
    found = examples(Broken([85, 40, 60], ValueError("bad")), workers=7)
    for _ in range(5):
        with pytest.raises(streams.SourceError, match="example 40 of"):
            streams.read(found, np.arange(NUMBER))


def test_a_file_that_comes_back_is_read(tmp_path, monkeypatch):
    folder = written(tmp_path)
    found = examples(folder)
    gone, away = folder / "class0" / "0000.png", tmp_path / "away"
    gone.rename(away)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            away.rename(gone)

    monkeypatch.setattr(reading.time, "sleep", sleep)
    equal(streams.read(found, [0]), {"image": IMAGES[:1], "label": LABELS[:1]})
    assert waits == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_stays_away_stops_with_its_name(skip, tmp_path, impatient):
    folder = written(tmp_path)
    found = examples(folder, skip_corrupt=skip)
    gone = folder / "class0" / "0000.png"
    gone.unlink()
    with pytest.raises(streams.SourceError, match=re.escape(str(gone))) as caught:
        streams.read(found, [1, 0])
    assert "tried 4 times: No such file" in str(caught.value)
    assert impatient == pytest.approx([0.1, 0.4, 1.6]) and not found.replaced


def test_items_of_a_file_system_that_fails_are_tried_again(impatient):
    error = OSError(5, "Input/output error")
    found = examples(Broken([17], error, times=3))
    equal(
        streams.read(found, [16, 17]),
        {"image": IMAGES[16:18], "label": LABELS[16:18]},
    )
    assert len(impatient) == 3
    found = examples(Broken([17], error), skip_corrupt=True, retries=1)
    with pytest.raises(streams.SourceError, match="tried 2 times: Input/output error"):
        streams.read(found, [17])


def test_a_map_whose_file_has_become_shorter(tmp_path):
    found = examples((mapped(tmp_path), LABELS))
    os.truncate(tmp_path / "pixels.bin", 100)
    with pytest.raises(streams.SourceError, match="pixels.bin has 100 bytes; it must"):
        streams.read(found, [0])


class Odd(Asked):
    """A source whose item 17 is something else."""

    def __init__(self, item):
        super().__init__()
        self.item = item

    def __getitem__(self, number):
        return self.item if number == 17 else super().__getitem__(number)


ODD = {
    "label 4": (
        (IMAGES[0], 4),
        r"has the label 4; it must be a whole number in \[0, 4\)",
    ),
    "label -1": ((IMAGES[0], -1), "has the label -1; it must"),
    "text": ((IMAGES[0], "cat"), "has the label 'cat'; it must"),
    "share": ((IMAGES[0], 0.0), "has the label 0.0; it must"),
    "one-hot": ((IMAGES[0], np.eye(4)[0]), "has the label ndarray of shape"),
    "shape": ((IMAGES[0][:4], 0), r"has the shape \(4, 5, 3\); it must be \(6, 5, 3\)"),
    "three": (
        (1, 2, 3),
        r"is tuple; it must be \(image, label\), or a dict with 'image'",
    ),
    "an image": (IMAGES[0], "is ndarray; it must"),
    "names": ({"img": IMAGES[0], "label": 0}, "is a dict of img, label; it must"),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_an_item_that_is_no_example_is_named_and_never_skipped(name, skip):
    item, said = ODD[name]
    found = examples(Odd(item), skip_corrupt=skip)
    with pytest.raises(
        streams.SourceError, match=f"example 17 of the split train .*{said}"
    ):
        streams.read(found, np.arange(NUMBER))
    assert not found.replaced


def test_pixels_that_are_not_finite_are_named():
    images = np.zeros((NUMBER, 3), np.float64)
    images[17, 1] = 1e39
    found = examples((images, LABELS))
    with pytest.raises(streams.SourceError, match="example 17 of .* not finite"):
        streams.read(found, np.arange(NUMBER))


def test_a_number_that_is_no_example():
    for numbers in ([-1], [0, NUMBER]):
        with pytest.raises(ValueError, match=f"indices={numbers[-1]}; it must"):
            seen((IMAGES, LABELS), numbers)


def test_several_at_once_are_as_many_as_asked_for():
    class Few(Named):
        def __getitems__(self, numbers):
            return super().__getitems__(numbers)[1:]

    with pytest.raises(streams.SourceError, match="gave 1 examples for 2 numbers"):
        seen(Few(), [1, 2], fields=("img", "fine"))


REFUSED = {
    "nothing": (
        lambda: data.stream(None),
        r"source\['train'\]=None; it must be images",
    ),
    "empty": (
        lambda: data.stream([]),
        r"len\(source\['train'\]\)=0; it must be 1 or more",
    ),
    "an array": (lambda: data.stream(IMAGES), r"source\['train'\]=ndarray of shape"),
    "split": (
        lambda: data.stream({"trian": Asked()}),
        "source: split='trian'; it must",
    ),
    "no train": (lambda: data.stream({"test": Asked()}), r"source=\['test'\]; it must"),
    "classes": (lambda: data.stream(Asked()), "num_classes=None; it must be how many"),
    "one class": (
        lambda: data.stream(Asked(), num_classes=1),
        "num_classes=1; it must be 2 or more",
    ),
    "other classes": (
        lambda: data.stream(Named(), num_classes=5, fields=("img", "fine")),
        r"classes of source\['train'\]=4; it must be 5, as num_classes",
    ),
    "label": (
        lambda: data.stream((IMAGES, LABELS), num_classes=3),
        r"the split train of streamed: labels\[\d+\]=3; it must be in \[0, 3\)",
    ),
    "negative": (
        lambda: data.stream((IMAGES, LABELS - 1)),
        r"train: labels\[0\]=-1; it must be 0 or more",
    ),
    "one-hot": (
        lambda: data.stream((IMAGES, np.eye(NUMBER, dtype=int))),
        "labels=int64 of shape .*; it must be integers",
    ),
    "lengths": (
        lambda: data.stream((IMAGES[1:], LABELS)),
        r"images.shape=\(89, 6, 5, 3\); it must be \[90, ...\]",
    ),
    "dtype": (
        lambda: data.stream((IMAGES.astype(np.int16), LABELS)),
        "images.dtype=int16; it must be uint8",
    ),
    "side of arrays": (
        lambda: data.stream((IMAGES, LABELS), side=4),
        r"side=4; it must be None: images of the split .* are stored as \(6, 5, 3\)",
    ),
    "channels of arrays": (
        lambda: data.stream((IMAGES, LABELS), channels=1),
        "channels=1; it must be None",
    ),
    "side": (lambda: data.stream(Asked(), side=0), "side=0; it must be 1 or more"),
    "channels": (
        lambda: data.stream(Asked(), channels=4),
        "channels=4; it must be one",
    ),
    "workers": (lambda: data.stream(Asked(), workers=0), "workers=0; it must be 1"),
    "retries": (lambda: data.stream(Asked(), retries=-1), "retries=-1; it must be 0"),
    "skip": (lambda: data.stream(Asked(), skip_corrupt=1), "skip_corrupt=1; it must"),
    "fields": (lambda: data.stream(Asked(), fields="image"), "fields='image'; it must"),
    "field": (
        lambda: data.stream(Asked(), fields=("image", "image")),
        r"fields=\('image', 'image'\); it must be two names",
    ),
    "std": (
        lambda: data.stream((IMAGES, LABELS), mean=0.5),
        "std=None; it must be given, as",
    ),
    "mean": (
        lambda: data.stream((IMAGES, LABELS), mean=(0.1, 0.2), std=1.0),
        r"len\(mean\)=2; it must be 1, or 3",
    ),
    "held out": (
        lambda: data.stream((IMAGES, LABELS), validation=NUMBER),
        "validation=90; it must be between 1 and 89, 90 examples",
    ),
    "two validations": (
        lambda: data.stream(
            {"train": (IMAGES, LABELS), "validation": (IMAGES, LABELS)}, validation=5
        ),
        "validation=5; it must be 0: the source has a split validation",
    ),
    "shapes": (
        lambda: data.stream(
            {"train": (IMAGES, LABELS), "test": (IMAGES[:, :4], LABELS)}
        ),
        r"side=None; it must be a number of pixels: .*\(6, 5, 3\), .* test \(4, 5, 3\)",
    ),
    "name": (lambda: data.stream((IMAGES, LABELS), name=3), "name=3; it must be text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_source_is_refused_by_name(name):
    call, said = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert re.match(".*" + said, str(caught.value)), str(caught.value)


def test_class_folders_that_differ_are_named(tmp_path):
    train, val = written(tmp_path / "train"), written(tmp_path / "val")
    (val / "class3").rename(val / "class9")
    with pytest.raises(ValueError, match="'class9'. only here, .'class3'. missing"):
        data.stream(tmp_path)
    said = (
        r"classes of source\['test'\]=4; it must be those of train: \['class9'\] only"
    )
    with pytest.raises(ValueError, match=said):
        data.stream({"test": val, "train": train})
    (val / "class9").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"train: \['class3'\] missing"):
        data.stream({"train": train, "test": val})


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.stream(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="class folders"):
        data.stream(tmp_path)
    for name in ("train", "val", "validation"):
        written(tmp_path / name, pixels(4), classes(4))
    with pytest.raises(ValueError, match="with one of validation and val"):
        data.stream(tmp_path)


# --- what needs values ----------------------------------------------------------------


def streamed_toy():
    """The toy set with a train split that is streamed."""
    made = toys.dataset()
    own = data.stream(made.arrays["train"], num_classes=made.num_classes)
    return made._replace(arrays=made.arrays | {"train": own.arrays["train"]})


def test_a_data_set_with_a_streamed_split_is_sound():
    made = streamed_toy()
    checked = data.check(made)
    assert checked.arrays["train"]["image"] is made.arrays["train"]["image"]
    with pytest.raises(
        ValueError, match=r"arrays\['train'\]\['label'\]\[\d+\]=.*in \[0, 2"
    ):
        data.check(made._replace(num_classes=2))
    with pytest.raises(ValueError, match="as the rest of its split"):
        mixed = made.arrays["train"] | {
            "label": toys.dataset().arrays["train"]["label"]
        }
        data.check(made._replace(arrays=made.arrays | {"train": mixed}))
    swapped = dict(zip(("image", "label"), reversed(made.arrays["train"].values())))
    with pytest.raises(ValueError, match="dtype"):
        data.check(made._replace(arrays=made.arrays | {"train": swapped}))


@pytest.mark.usefixtures("compiled_quickly")
def test_a_task_takes_it_like_any_other():
    model = lj.models.make("mlp-8", toys.dataset().num_classes)
    plain = tasks.classification(toys.dataset(), model, batch_size=32)
    task = tasks.classification(streamed_toy(), model, batch_size=32)
    assert task.steps_per_epoch == plain.steps_per_epoch
    for step in (0, 4, 5):
        key = lj.keys.of_seed(step)
        np.testing.assert_array_equal(task.order(key, step), plain.order(key, step))
    assert streams.streamed(task.data).keys() == {"train"}


def test_what_needs_every_value_refuses_it_by_name():
    dataset = data.stream((pixels(NUMBER, (8, 8, 3)), LABELS), name="mine")
    model = lj.models.make("mlp-8", CLASSES)
    task = tasks.classification(dataset, model, batch_size=32)
    said = (
        r"arrays\['train'\] of mine=streamed; it must be in memory, as data.load gives"
    )
    for call in (
        lambda: data.grey28(dataset),
        lambda: data.colour32(dataset),
        lambda: tasks.adversarial(task, dataset, attack=tasks.Attack.fgsm(0.1)),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match="images=streamed; it must be an array"):
        probes.features(
            model, Network({}, {}), dataset.arrays["train"]["image"], dataset
        )


def test_contrastive_pretraining_takes_pixels_and_refuses_real_numbers():
    images = pixels(NUMBER, (8, 8, 3))
    model = lj.models.make("mlp-8", 16)
    tasks.contrastive(data.stream((images, LABELS)), model, batch_size=16)
    real = data.stream((images.astype(np.float32) / 255, LABELS))
    with pytest.raises(
        ValueError, match="streamed; it must be in memory.*uint8 may be"
    ):
        tasks.contrastive(real, model, batch_size=16)
    assert isinstance(jax.tree.leaves(real.arrays)[0], streams.Column)
