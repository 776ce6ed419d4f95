"""Large sets prepared once: listed, decoded, resized, summed, and resumed after kills."""

import contextlib
import errno
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lottery_jax import disk, streams
from lottery_jax.data import decode, folders, maps, prepare

Image = pytest.importorskip("PIL.Image")


def encoded(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# --- listing --------------------------------------------------------------------------


def test_images_are_listed_by_class_and_name(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.JPEG", "a/z.jpg", "c/1.png", ".DS_Store", "c/.x")
    classes, names, labels = folders.class_folders(tmp_path)
    assert classes == ("a", "b", "c")
    assert names == ["a/z.jpg", "b/10.JPEG", "b/2.png", "c/1.png"]
    assert labels.tolist() == [0, 1, 1, 2] and labels.dtype == np.int32


def test_images_of_tiny_imagenet_lie_one_level_deeper(tmp_path):
    touch(tmp_path, "n1/images/n1_0.JPEG", "n1/n1_boxes.txt", "n2/images/n2_0.JPEG")
    classes, names, labels = folders.class_folders(tmp_path)
    assert classes == ("n1", "n2") and labels.tolist() == [0, 1]
    assert names == ["n1/images/n1_0.JPEG", "n2/images/n2_0.JPEG"]


def test_links_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    classes, names, _ = folders.class_folders(tmp_path / "set")
    assert classes == ("a",) and names == ["a/1.png"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((".hidden",), "there is none"),
        (("a/1.png", "readme.txt"), "readme.txt beside them is none"),
        (("a/1.png", "b/.hidden"), "b has no images"),
        (("a/1.png", "a/list.txt"), "list.txt in it is none"),
        (("a/1.png", "a/b/1.png"), "b in it is none"),
        (("a/1.png", "a/b.png/1.png"), "b.png in it is none"),
    ],
)
def test_other_folders_are_refused_by_what_is_wrong(names, said, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        folders.class_folders(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "x"))):
        folders.class_folders(tmp_path / "x")
    touch(tmp_path, "file")
    with pytest.raises(FileNotFoundError, match="file"):
        folders.class_folders(tmp_path / "file")


# --- splits ---------------------------------------------------------------------------


def picture(folder, name, values=None, seed=0, **options):
    """Writes an image file."""
    if values is None:
        shape = (9 + seed % 5, 8 + seed % 7, 3)
        values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(values) if isinstance(values, np.ndarray) else values
    made.save(path, **options)
    return path


@pytest.fixture
def unpacked(tmp_path):
    """A folder of 26 images of many sizes in three classes and two splits."""
    root = tmp_path / "unpacked"
    for number in range(20):
        picture(root, f"train/c{number % 3}/{number:02}.png", seed=number)
    for number in range(6):
        picture(root, f"val/c{number % 3}/{number:02}.jpg", seed=50 + number)
    return root


def test_a_folder_of_splits_is_read(unpacked):
    touch(unpacked, "words.txt")
    found = folders.splits(unpacked)
    assert list(found) == ["train", "validation"]
    train = found["train"]
    assert len(train) == 20 and train.classes == ("c0", "c1", "c2")
    assert train.names[:2] == ["train/c0/00.png", "train/c0/03.png"]
    content, label = train[8]
    assert content == (unpacked / train.names[8]).read_bytes() and label == 1


def test_the_digest_is_of_names_sizes_and_labels(unpacked):
    before = folders.splits(unpacked)["train"].digest
    assert folders.splits(unpacked)["train"].digest == before
    path = unpacked / "train/c1/01.png"
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    assert folders.splits(unpacked)["train"].digest != before
    path.write_bytes(content)
    path.rename(path.with_name("01b.png"))
    assert folders.splits(unpacked)["train"].digest != before


def test_tiny_imagenet_is_read_as_published(tmp_path):
    touch(tmp_path, "train/n1/images/n1_0.JPEG", "train/n1/n1_boxes.txt")
    touch(tmp_path, "train/n2/images/n2_0.JPEG", "wnids.txt")
    touch(tmp_path, "val/images/val_0.JPEG", "val/images/val_1.JPEG")
    touch(tmp_path, "test/images/test_0.JPEG")
    listed = tmp_path / "val/val_annotations.txt"
    listed.write_text("val_1.JPEG\tn1\t0\t0\t9\t9\nval_0.JPEG\tn2\t0\t0\t9\t9\n")
    with pytest.warns(UserWarning, match="test has no classes: it is left out"):
        found = folders.splits(tmp_path)
    assert list(found) == ["train", "validation"]
    assert found["validation"].names == [
        "val/images/val_0.JPEG",
        "val/images/val_1.JPEG",
    ]
    assert found["validation"].labels.tolist() == [1, 0]
    assert found["validation"].classes == ("n1", "n2")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("val_0.JPEG\tn1\n", "val_1.JPEG too"),
        ("val_0.JPEG\tn1\nval_1.JPEG\tn2\nval_2.JPEG\tn1\n", "the 3 images listed"),
        ("val_0.JPEG\tn1\nval_1.JPEG\tn3\n", "('n3',) only here"),
        ("val_0.JPEG n1\nval_1.JPEG n2\n", "a tabulator between"),
        ("val_0.JPEG\tn1\nval_0.JPEG\tn2\n", "no name twice"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(lines, said, tmp_path):
    touch(tmp_path, "train/n1/0.JPEG", "train/n2/0.JPEG")
    touch(tmp_path, "val/images/val_0.JPEG", "val/images/val_1.JPEG")
    (tmp_path / "val/val_annotations.txt").write_text(lines)
    with pytest.raises(ValueError) as caught:
        folders.splits(tmp_path)
    assert said.replace("(", "[").replace(",)", "]") in str(caught.value)


def test_splits_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder with train, validation, val, test"):
        folders.splits(tmp_path)
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    with pytest.raises(ValueError, match=r"val; .*\['c'\] only here, \['b'\] missing"):
        folders.splits(tmp_path)
    touch(tmp_path, "validation/a/1.png")
    with pytest.raises(ValueError, match="with one of validation and val"):
        folders.splits(tmp_path)


# --- maps -----------------------------------------------------------------------------

SIDE = 6


class Source:
    """Twelve examples from memory, counting how often each is read."""

    def __init__(self, images, labels=None, **more):
        self.images = images
        self.labels = np.arange(len(images)) % 3 if labels is None else labels
        self.read = []
        vars(self).update(more)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read.append(index)
        return self.images[index], self.labels[index]


def noise(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 9, 3), np.uint8)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four images of SIDE in a block, two to a worker at a time."""
    monkeypatch.setattr(maps, "_BLOCK_BYTES", 4 * SIDE * SIDE * 3)
    monkeypatch.setattr(maps, "_PIECE", 2)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_map_holds_what_decode_makes(unpacked, tmp_path):
    made = maps.write(unpacked, tmp_path / "map", side=SIDE)
    assert made == tmp_path / "map"
    assert sorted(content(made)) == [
        "map.json",
        "train-images.npy",
        "train-labels.npy",
        "validation-images.npy",
        "validation-labels.npy",
    ]
    for split, source in folders.splits(unpacked).items():
        found = maps.open(made, split)
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        assert found.images.dtype == np.uint8 and found.labels.dtype == np.int32
        wanted = [decode.image(given, side=SIDE) for given, _ in source]
        np.testing.assert_array_equal(found.images, wanted)
        np.testing.assert_array_equal(found.labels, source.labels)
        assert found.classes == ("c0", "c1", "c2") and found.num_classes == 3
        plain = np.load(made / f"{split}-images.npy", mmap_mode="r")
        np.testing.assert_array_equal(plain, wanted)
    maps.check(made)
    assert maps.open(made, "train").digest != maps.open(made, "validation").digest
    assert not (tmp_path / "map.incomplete").exists()


@pytest.mark.parametrize("form", ["pairs", "mappings", "list", "encoded", "pillow"])
def test_a_source_is_any_sequence_of_images_and_labels(form, tmp_path):
    images, labels = noise(7), [4, 0, 1, 2, 3, 4, 0]
    make = {"encoded": encoded, "pillow": Image.fromarray}.get(form, lambda x: x)
    pairs = [(make(x), np.int64(y)) for x, y in zip(images, labels)]
    if form == "mappings":
        pairs = [{"image": x, "label": y} for x, y in pairs]
    source = pairs if form != "pairs" else Source(images, labels)
    maps.write({"train": source}, tmp_path / "map", side=SIDE, channels=1)
    found = maps.open(tmp_path / "map", "train")
    wanted = [decode.image(x, side=SIDE, channels=1) for x in images]
    np.testing.assert_array_equal(found.images, wanted)
    assert found.labels.tolist() == labels
    assert found.classes is None and found.num_classes == 5


def test_what_was_converted_is_counted_and_stated(tmp_path):
    values = noise(1)[0]
    grey, alpha = values[..., 0], np.concatenate([values, values[..., :1]], -1)
    picture(tmp_path, "in/train/a/1.png", values)
    picture(tmp_path, "in/train/a/2.png", grey)
    picture(tmp_path, "in/train/a/3.png", grey.astype(np.uint16) * 257)
    picture(tmp_path, "in/train/a/4.png", alpha)
    picture(tmp_path, "in/train/a/5.jpg", Image.fromarray(values).convert("CMYK"))
    picture(tmp_path, "in/train/a/6.png", grey)
    made = maps.write(tmp_path / "in", tmp_path / "map", side=SIDE)
    said = maps.description(made)
    assert said["splits"]["train"]["converted"] == {
        "grey": 3,
        "CMYK": 1,
        "alpha": 1,
        "16-bit": 1,
    }
    assert "bilinear" in said["resized"] and "Pillow" in said["decoder"]
    assert said["side"] == SIDE and said["classes"] == ["a"]


def test_workers_change_no_byte(unpacked, tmp_path):
    made = [
        content(maps.write(unpacked, tmp_path / str(n), side=SIDE, workers=n))
        for n in (1, 2, 7)
    ]
    assert made[0] == made[1] == made[2]


def test_progress_ends_with_all(unpacked, tmp_path):
    seen = []
    maps.write(unpacked, tmp_path / "map", side=SIDE, watch=lambda *at: seen.append(at))
    counts = [done for done, _ in seen]
    assert counts == [0, 4, 8, 12, 16, 20, 24, 26] and {n for _, n in seen} == {26}
    checked = []
    maps.check(tmp_path / "map", watch=lambda *at: checked.append(at))
    assert checked[-1] == (26, 26)


def test_a_map_that_is_there_is_left_alone(tmp_path):
    source = Source(noise(9), digest="of nine")
    made = maps.write({"train": source}, tmp_path / "map", side=SIDE)
    before, reads = content(made), len(source.read)
    assert maps.write({"train": source}, made, side=SIDE) == made
    assert content(made) == before and len(source.read) == reads


# --- kills ----------------------------------------------------------------------------


class Killed(BaseException):
    pass


STEPS = (
    (maps, "_put"),
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "replace"),
    (pathlib.Path, "unlink"),
)
"""Everything that changes what is on the disk."""


def killed_at(step, call):
    """Runs a call that dies at one of `STEPS`, halfway through it if it writes.

    True if it came to an end before.
    """
    count = 0

    def dying(real, name):
        def run(*args, **options):
            nonlocal count
            count += 1
            if count == step and name == "_put":
                file, values, start = args
                raw = np.frombuffer(values, np.uint8)
                real(file, raw[: len(raw) // 2], start)
            if count >= step:
                raise Killed
            return real(*args, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_OURS", secrets.token_hex(4))  # as in a process of its own
        for owner, name in STEPS:
            patch.setattr(owner, name, dying(getattr(owner, name), name))
        try:
            call()
        except Killed:
            return False
    return True


def test_a_kill_at_any_step_changes_no_byte(tmp_path):
    sources = {"train": Source(noise(9)), "test": Source(noise(3, seed=1))}
    whole = content(maps.write(sources, tmp_path / "whole", side=SIDE))
    for step in range(1, 100):
        made = tmp_path / str(step)

        def call(made=made):
            maps.write(sources, made, side=SIDE, workers=1)

        if killed_at(step, call):
            break
        with contextlib.suppress(FileNotFoundError):
            # Under its name there is nothing, or all.
            maps.open(made, "test")
            maps.check(made)
        call()
        assert content(made) == whole, f"killed at step {step}"
        assert not (tmp_path / f"{step}.incomplete").exists()
    assert 30 < step < 99


def test_many_kills_in_a_row_change_no_byte(tmp_path):
    sources = {"train": Source(noise(30))}
    whole = content(maps.write(sources, tmp_path / "whole", side=SIDE))
    made, kills = tmp_path / "map", 0
    while not killed_at(12, lambda: maps.write(sources, made, side=SIDE)):
        kills += 1
        assert kills < 30, "no progress between the kills"
    assert kills > 3 and content(made) == whole


def test_what_is_done_is_not_done_again(tmp_path):
    source = Source(noise(12), digest="of twelve")

    def stop(done, total):
        if done == 8:
            raise Killed

    with pytest.raises(Killed):
        maps.write({"train": source}, tmp_path / "map", side=SIDE, watch=stop)
    source.read.clear()
    seen = []
    maps.write(
        {"train": source},
        tmp_path / "map",
        side=SIDE,
        watch=lambda *at: seen.append(at),
    )
    assert sorted(source.read) == [8, 9, 10, 11]
    assert seen == [(8, 12), (12, 12)]


def test_a_block_that_was_damaged_meanwhile_is_done_again(tmp_path):
    source = Source(noise(12), digest="of twelve")
    whole = content(maps.write({"train": source}, tmp_path / "whole", side=SIDE))

    def stop(done, total):
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        maps.write({"train": source}, tmp_path / "map", side=SIDE, watch=stop)
    path = tmp_path / "map.incomplete" / "train-images.npy"
    flip(path, path.stat().st_size - 1)
    source.read.clear()
    maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert sorted(source.read) == [8, 9, 10, 11]
    assert content(tmp_path / "map") == whole


_KILLED = """
import os, pathlib, signal, sys, time
import numpy as np
from lottery_jax.data import maps

folder, side = pathlib.Path(sys.argv[1]), 6
maps._BLOCK_BYTES, maps._PIECE = 4 * side * side * 3, 2
images = np.random.default_rng(0).integers(0, 256, (60, 8, 9, 3), np.uint8)

class Slow:
    digest = "of sixty"
    def __len__(self): return len(images)
    def __getitem__(self, index):
        time.sleep(0.004)
        return images[index], index % 3

draw, kills = np.random.default_rng(1), 0
for attempt in range(40):
    child = os.fork()
    if not child:
        maps.write({"train": Slow()}, folder, side=side, workers=2)
        os._exit(0)
    time.sleep(draw.uniform(0.02, 0.1))
    os.kill(child, signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if folder.exists():
        break
print(kills)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of POSIX")
def test_processes_that_are_killed_change_no_byte(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path / "map")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 9, 3), np.uint8)
    source = Source(images, np.arange(60) % 3, digest="of sixty")
    whole = maps.write({"train": source}, tmp_path / "whole", side=SIDE)
    # Whether the last of them came to its end or not.
    maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert content(tmp_path / "map") == content(whole)


# --- disks ----------------------------------------------------------------------------


def test_a_process_that_comes_second_finds_what_the_first_one_made(
    tmp_path, monkeypatch
):
    source = Source(noise(12), digest="of twelve")
    made = maps.write({"train": source}, tmp_path / "map", side=SIDE)
    whole, real, asked = content(made), maps._complete, []

    def at_first_not(target, job):
        asked.append(target)
        return len(asked) > 1 and real(target, job)

    monkeypatch.setattr(maps, "_complete", at_first_not)
    source.read.clear()
    assert maps.write({"train": source}, tmp_path / "map", side=SIDE) == made
    assert content(made) == whole and not source.read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map"]


def test_too_little_room_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    needed = 12 * (SIDE * SIDE * 3 + 4)
    usage = shutil.disk_usage(tmp_path)
    source = Source(noise(12), digest="of twelve")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=needed - 1)
    )
    said = f"{needed:,} bytes more are needed, {needed - 1:,} are free"
    with pytest.raises(OSError, match=said) as caught:
        maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert caught.value.errno == errno.ENOSPC and not source.read
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    maps.write({"train": source}, tmp_path / "map", side=SIDE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_stops_it_and_what_is_done_is_kept(
    number, tmp_path, monkeypatch
):
    source = Source(noise(12), digest="of twelve")
    whole = content(maps.write({"train": source}, tmp_path / "whole", side=SIDE))
    real = os.pwrite

    def full(file, values, start):
        if start > 128 + 8 * SIDE * SIDE * 3:  # within the third block
            raise OSError(number, os.strerror(number))
        return real(file, values[:100], start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        OSError, match="map.incomplete. What is done there is kept"
    ) as c:
        maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert c.value.errno == number
    with pytest.raises(FileNotFoundError, match=r"map\.incomplete has to be finished"):
        maps.open(tmp_path / "map", "train")
    monkeypatch.setattr(os, "pwrite", real)
    source.read.clear()
    maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert sorted(source.read) == [8, 9, 10, 11]
    assert content(tmp_path / "map") == whole


# --- what is not as it was ------------------------------------------------------------


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 1]))


@pytest.mark.parametrize("field", ["images", "labels"])
def test_a_flipped_bit_is_found_wherever_it_is(field, tmp_path):
    made = maps.write({"train": Source(noise(10))}, tmp_path / "map", side=SIDE)
    path = made / f"train-{field}.npy"
    size = path.stat().st_size
    for at in {*range(0, size, 17), 127, 128, size - 1}:
        flip(path, at)
        with pytest.raises(streams.SourceError, match=f"train-{field}.npy"):
            maps.check(made)
        flip(path, at)
        maps.check(made)


def test_a_header_that_was_damaged_meanwhile_is_written_again(tmp_path):
    source = Source(noise(12), digest="of twelve")
    whole = content(maps.write({"train": source}, tmp_path / "whole", side=SIDE))

    def stop(done, total):
        if done == total:
            raise Killed

    with pytest.raises(Killed):
        maps.write({"train": source}, tmp_path / "map", side=SIDE, watch=stop)
    for field in ("images", "labels"):
        flip(tmp_path / "map.incomplete" / f"train-{field}.npy", 20)
    maps.write({"train": source}, tmp_path / "map", side=SIDE)
    assert content(tmp_path / "map") == whole


def test_a_damaged_block_is_named_by_its_examples(tmp_path):
    made = maps.write({"train": Source(noise(10))}, tmp_path / "map", side=SIDE)
    flip(made / "train-images.npy", 128 + 5 * SIDE * SIDE * 3)
    with pytest.raises(streams.SourceError, match="examples 4 to 7 are not what was"):
        maps.check(made)


@pytest.mark.parametrize("field", ["images", "labels"])
def test_a_file_of_another_size_is_refused_by_its_name(field, tmp_path):
    made = maps.write({"train": Source(noise(10))}, tmp_path / "map", side=SIDE)
    path = made / f"train-{field}.npy"
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(wrong)
        said = f"train-{field}.npy has {len(wrong)} bytes; it must be .* {len(whole)} bytes"
        with pytest.raises(streams.SourceError, match=said):
            maps.open(made, "train")
    np.save(path, _turned(whole))
    with pytest.raises(
        streams.SourceError, match=f"train-{field}.npy does not begin as"
    ):
        maps.open(made, "train")
    path.unlink()
    with pytest.raises(streams.SourceError, match=f"train-{field}.npy is missing"):
        maps.open(made, "train")


def _turned(stored):
    """An array of the same size in another shape or dtype."""
    values = np.load(io.BytesIO(stored))
    return values.swapaxes(0, 1) if values.ndim > 1 else values.view(np.float32)


def test_what_is_no_map_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.prepare NAME --from"):
        maps.open(tmp_path / "map", "train")
    made = maps.write({"train": Source(noise(5))}, tmp_path / "map", side=SIDE)
    with pytest.raises(ValueError, match="split='test'; it must be one of train"):
        maps.open(made, "test")
    path = made / "map.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"format": 2}))
    with pytest.raises(streams.SourceError, match="format 2; this version reads"):
        maps.open(made, "train")
    path.write_text('{"format": 1}')
    with pytest.raises(
        streams.SourceError, match="map.json is damaged: it lacks splits"
    ):
        maps.open(made, "train")
    half = {**said, "splits": {"train": {"number": 5, "images": None}}}
    path.write_text(json.dumps({name: half[name] for name in half if name != "side"}))
    with pytest.raises(
        streams.SourceError, match="lacks side, images of train, labels"
    ):
        maps.check(made)
    path.write_text(json.dumps(said)[:-9])
    with pytest.raises(streams.SourceError, match="map.json is damaged"):
        maps.check(made)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": 7}, "side: 6 there, 7 now"),
        ({"channels": 1}, "channels: 3 there, 1 now"),
        ({"number": 9}, "number of train: 10 there, 9 now"),
        ({"digest": "other"}, "digest of train: one there, other now"),
        ({"classes": "xyz"}, "classes: ['a', 'b', 'c'] there, ['x', 'y', 'z'] now"),
        ({"split": "test"}, "number of test: None there, 10 now"),
    ],
)
def test_another_map_is_refused_by_what_differs(change, said, complete, tmp_path):
    def write(
        side=SIDE, channels=3, number=10, digest="one", classes="abc", split="train"
    ):
        source = Source(noise(number), digest=digest, classes=classes)

        def stop(done, total):
            if not complete and done:
                raise Killed

        return maps.write(
            {split: source}, tmp_path / "map", side=side, channels=channels, watch=stop
        )

    with contextlib.suppress(Killed):
        write()
    where = tmp_path / ("map" if complete else "map.incomplete")
    before = content(where)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        write(**change)
    assert str(caught.value).startswith(f"{where} holds another map")
    assert content(where) == before


def test_other_decoders_do_not_go_on_and_complete_maps_stay(tmp_path, monkeypatch):
    source = Source(noise(10), digest="of ten")

    def stop(done, total):
        if done:
            raise Killed

    with pytest.raises(Killed):
        maps.write({"train": source}, tmp_path / "map", side=SIDE, watch=stop)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decoder", lambda: "Pillow of tomorrow")
        said = "decoder: .* there, 'Pillow of tomorrow' now"
        with pytest.raises(ValueError, match=said):
            maps.write({"train": source}, tmp_path / "map", side=SIDE)
    maps.write({"train": source}, tmp_path / "map", side=SIDE)
    monkeypatch.setattr(decode, "decoder", lambda: "Pillow of tomorrow")
    maps.write({"train": source}, tmp_path / "map", side=SIDE)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    touch(tmp_path, "map/letter.txt")
    with pytest.raises(ValueError, match="new, or empty, or a map of this source"):
        maps.write({"train": Source(noise(5))}, tmp_path / "map", side=SIDE)
    assert list(content(tmp_path)) == ["map/letter.txt"]
    (tmp_path / "empty").mkdir()
    maps.write({"train": Source(noise(5))}, tmp_path / "empty", side=SIDE)
    maps.check(tmp_path / "empty")


def test_a_damaged_journal_is_named(tmp_path):
    def stop(done, total):
        if done:
            raise Killed

    with pytest.raises(Killed):
        maps.write({"train": Source(noise(9))}, tmp_path / "map", side=SIDE, watch=stop)
    flip(tmp_path / "map.incomplete" / "journal.jsonl", 0)
    with pytest.raises(streams.SourceError, match=r"journal.jsonl is damaged"):
        maps.write({"train": Source(noise(9))}, tmp_path / "map", side=SIDE)


def test_one_process_at_a_time_writes(tmp_path):
    pytest.importorskip("fcntl")
    with (
        maps._alone(tmp_path / "map.incomplete"),
        pytest.raises(ValueError, match="another one is at it"),
    ):
        maps.write({"train": Source(noise(5))}, tmp_path / "map", side=SIDE)


# --- corrupt images -------------------------------------------------------------------


def spoilt(number, *corrupt):
    """Encoded images of which some are cut off, named by letters."""
    images = [encoded(values) for values in noise(number)]
    for index in corrupt:
        images[index] = images[index][:60]
    names = [chr(ord("a") + index) for index in range(number)]
    return Source(images, names=names, digest="spoilt")


def test_a_corrupt_image_stops_it_by_name(tmp_path):
    with pytest.raises(
        streams.SourceError, match=r"^g: a broken image.*--skip-corrupt"
    ):
        maps.write({"train": spoilt(9, 6)}, tmp_path / "map", side=SIDE)
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_on_request_the_next_one_takes_its_place(workers, tmp_path):
    source = spoilt(9, 2, 3, 8)
    made = maps.write(
        {"train": source},
        tmp_path / "map",
        side=SIDE,
        workers=workers,
        skip_corrupt=True,
    )
    found = maps.open(made, "train")
    instead = [0, 1, 4, 4, 4, 5, 6, 7, 0]
    wanted = [decode.image(source.images[at], side=SIDE) for at in instead]
    np.testing.assert_array_equal(found.images, wanted)
    np.testing.assert_array_equal(found.labels, source.labels[instead])
    assert found.replaced == {"c": "e", "d": "e", "i": "a"}
    assert maps.description(made)["splits"]["train"]["replaced"] == found.replaced


def test_it_goes_on_once_skipping_is_asked_for(tmp_path):
    with pytest.raises(streams.SourceError, match="^i: "):
        maps.write({"train": spoilt(9, 8)}, tmp_path / "map", side=SIDE, workers=1)
    source = spoilt(9, 8)
    maps.write({"train": source}, tmp_path / "map", side=SIDE, skip_corrupt=True)
    assert sorted(source.read) == [0, 8]
    whole = maps.write(
        {"train": spoilt(9, 8)}, tmp_path / "whole", side=SIDE, skip_corrupt=True
    )
    assert content(tmp_path / "map") == content(whole)


def test_without_any_image_it_gives_up(tmp_path):
    with pytest.raises(
        streams.SourceError, match="none of the 3 images can be decoded"
    ):
        maps.write(
            {"train": spoilt(3, 0, 1, 2)},
            tmp_path / "map",
            side=SIDE,
            skip_corrupt=True,
        )


def test_a_file_that_vanishes_is_named_and_not_skipped(unpacked, tmp_path):
    given = folders.splits(unpacked)
    assert given["train"].digest
    (unpacked / "train/c1/01.png").unlink()
    with pytest.raises(streams.SourceError, match="train/c1/01.png: cannot be read"):
        maps.write(given, tmp_path / "map", side=SIDE, skip_corrupt=True)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({}, "at least one split"),
        ({"train": []}, "a sequence of at least one example"),
        ({"a/b": [1]}, "without slashes"),
        ({"train": 3}, "a sequence whose [i] is an image and a label"),
        ({"train": Source(noise(3), names=["a"])}, "3 names"),
        (
            {
                "train": Source(noise(3), classes="abc"),
                "test": Source(noise(3), classes="abd"),
            },
            "the same classes as the other splits",
        ),
    ],
)
def test_wrong_splits_are_refused(splits, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        maps.write(splits, tmp_path / "map", side=SIDE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [-1, 0.5, "cat", [1, 2], None, 3, 1 << 40, True])
def test_wrong_labels_are_refused_by_the_name_of_the_example(label, tmp_path):
    source = Source(noise(3), [0, 1, label], classes="abc", digest="x")
    with pytest.raises(streams.SourceError, match=r"^train\[2\]: "):
        maps.write({"train": source}, tmp_path / "map", side=SIDE)


@pytest.mark.parametrize(
    "bad", [{"side": 0}, {"channels": 2}, {"workers": 0}, {"skip_corrupt": 1}]
)
def test_wrong_arguments_are_refused_by_name(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        maps.write({"train": Source(noise(3))}, tmp_path / "m", **{"side": SIDE} | bad)
    assert not list(tmp_path.iterdir())


# --- the command line -----------------------------------------------------------------


def test_a_map_has_a_place_of_its_own(tmp_path, monkeypatch):
    assert maps.folder("imagenet", tmp_path) == tmp_path / "maps" / "imagenet"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert maps.folder("imagenet") == tmp_path / "maps" / "imagenet"
    for name in ("", "a/b", "..", 3):
        with pytest.raises(ValueError, match="name="):
            maps.folder(name)


def test_the_command_prepares_a_map_and_says_what_it_did(unpacked, tmp_path, capsys):
    picture(unpacked, "train/c0/grey.png", noise(1)[0, ..., 0])
    (unpacked / "train/c2/02.png").write_bytes(b"no image")
    arguments = ["tiny_imagenet", "--from", str(unpacked), "--data-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    assert stop.value.code == 2
    assert "train/c2/02.png: no image of a format" in capsys.readouterr().err
    prepare.main([*arguments, "--skip-corrupt", "--workers", "1"])
    said = capsys.readouterr().out
    where = tmp_path / "maps" / "tiny_imagenet"
    assert maps.description(where)["side"] == 64
    assert "27 of 27 images" in said and f"prepared in {where}" in said
    assert "train, 21 images of 3 classes (1 grey, 1 corrupt and replaced)" in said


def test_any_name_goes_with_a_folder_of_its_own(unpacked, tmp_path, capsys):
    into = tmp_path / "own"
    prepare.main(f"mine --from {unpacked} --side 8 --into {into}".split())
    maps.check(into)
    assert maps.open(into, "train").images.shape == (20, 8, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("mine --from x", "invalid choice: 'mine'"),
        ("mine --from x --into y", "--side"),
        ("imagenet", "imagenet needs --from FOLDER"),
        ("imagenet places365 --from x", "one map at a time"),
        ("mnist --side 3", "--side is for imagenet"),
        ("mnist --from x", "--from is for"),
        ("imagenet --from x", "there is no such folder"),
        ("imagenet --from x --side 0", "side=0"),
    ],
)
def test_wrong_commands_say_what_is_missing(
    arguments, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        prepare.main([*arguments.split(), "--data-dir", str(tmp_path)])
    assert stop.value.code and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
