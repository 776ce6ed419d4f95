"""Images as they are usually unpacked: a folder of class folders for each split.

    train/n01440764/n01440764_10026.JPEG ...      ImageNet, Places365
    train/n01443537/images/n01443537_0.JPEG ...   TinyImageNet

A listing asks for no file's status and has names, no paths, so that a million of them are
listed in seconds and take a hundred megabytes.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import warnings
from collections.abc import Iterable

import numpy as np

from lottery_jax import errors

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
)
"""How the names of images end, in small or capital letters."""

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "val"),
    "test": ("test",),
}
"""The splits, and what their folders are called."""

_WITHIN = "images"  # TinyImageNet has the images of a class one level deeper.
_ANNOTATIONS = "val_annotations.txt"


def class_folders(
    folder: pathlib.Path,
) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Lists the images of a split, whose classes are folders.

    Where a class has a folder `images`, its images are those in there, and other files
    beside it are left alone. What is hidden (a name that begins with a point) is ignored.

    Args:
      folder: of the split.

    Returns:
      The classes, sorted by name; the images, "class/name" below the folder, sorted by
      class and name; and int32 labels `[N]`, the number of each image's class.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no class folder, a class without images, or a file that is no image by
        its name where only images and classes belong; names it.
    """
    classes, own = [], errors.on_disk("folder", folder).expanduser()
    must = "a folder of class folders, one for each class"
    for entry in _entries(own):
        if not entry.is_dir():
            raise errors.wrong(
                "folder", own, f"{must}; {entry.name} beside them is none"
            )
        classes.append(entry.name)
    if not classes:
        raise errors.wrong("folder", own, f"{must}; there is none")
    classes.sort()
    names: list[str] = []
    counts = [0] * len(classes)
    for number, name in enumerate(classes):
        found = _images(own, name)
        if not found:
            raise errors.wrong("folder", own, f"{must}; {name} has no images")
        names += found
        counts[number] = len(found)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return tuple(classes), names, labels


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, in no order."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"folder={folder}; there is no such folder") from error


def _images(root: pathlib.Path, below: str) -> list[str]:
    """The images in a folder, by their names below the root, sorted."""
    folder = root / below
    entries = _entries(folder)
    if any(entry.name == _WITHIN and entry.is_dir() for entry in entries):
        folder, below = folder / _WITHIN, f"{below}/{_WITHIN}"
        entries = _entries(folder)
    for entry in entries:
        if not entry.name.lower().endswith(SUFFIXES) or entry.is_dir():
            raise errors.wrong(
                "folder", folder, f"a folder of images; {entry.name} in it is none"
            )
    return [f"{below}/{name}" for name in sorted(entry.name for entry in entries)]


# --- splits ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """The images of a split: `[i]` is the content of file i, and its label.

    Attributes:
      root: what names are relative to.
      classes: their names, sorted.
      names: of the image files, below the root, with slashes between.
      labels: int32 `[N]`, in [0, number of classes).
    """

    root: pathlib.Path
    classes: tuple[str, ...]
    names: list[str]
    labels: np.ndarray

    def path(self, index: int) -> str:
        """Where an image is."""
        return os.path.join(self.root, self.names[index])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the names and sizes of the files, and of their labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for index, name in enumerate(self.names):
            size = os.stat(self.path(index)).st_size
            digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.path(index), "rb") as file:
            return file.read(), int(self.labels[index])


def splits(folder: str | os.PathLike[str]) -> dict[str, Files]:
    """The splits of a set that lies in a folder, each with class folders.

    A `val` of TinyImageNet, whose labels are in `val_annotations.txt`, is read as well. A
    `test` without class folders, as ImageNet's is published, has no labels: it is left
    out, with a warning.

    Args:
      folder: has `train`, `val` (or `validation`) or `test`, or some of them.

    Returns:
      "train", "validation", "test": those that are there.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no split, one under two names, one with other classes than the first;
        or a folder that `class_folders` refuses.
    """
    root = errors.on_disk("folder", folder).expanduser()
    names = {entry.name for entry in _entries(root)}
    found: dict[str, Files] = {}
    for split, called in SPLITS.items():
        own = [name for name in called if name in names]
        if len(own) > 1:
            raise errors.wrong("folder", root, f"with one of {' and '.join(own)}")
        classes = next(iter(found.values())).classes if found else None
        if own and (files := _split(root, root / own[0], split, classes)) is not None:
            found[split] = files
    if not found:
        must = f"a folder with {', '.join(sum(SPLITS.values(), ()))}, or some of them"
        raise errors.wrong("folder", root, must)
    return found


def _split(
    root: pathlib.Path,
    own: pathlib.Path,
    split: str,
    classes: tuple[str, ...] | None,
) -> Files | None:
    entries = _entries(own)
    if any(entry.name == _ANNOTATIONS for entry in entries):
        return _annotated(root, own, classes)
    if split == "test" and not any(e.is_dir() and e.name != _WITHIN for e in entries):
        warnings.warn(f"{own} has no classes: it is left out", stacklevel=3)
        return None
    there, names, labels = class_folders(own)
    if classes is not None and there != classes:
        raise _other_classes(own, there, classes)
    return Files(root, there, [f"{own.name}/{name}" for name in names], labels)


def _other_classes(
    own: pathlib.Path, there: Iterable[str], classes: tuple[str, ...]
) -> ValueError:
    must = f"of the same classes as the other splits: {difference(there, classes)}"
    return errors.wrong("folder", own, must)


def difference(there: Iterable[str], classes: Iterable[str]) -> str:
    """Which classes one split has alone, and which it lacks, in words; empty for none.

    Args:
      there: names of its classes.
      classes: of another's.
    """
    own, others = {*there}, {*classes}
    more, fewer = sorted(own - others), sorted(others - own)
    text = [f"{errors.shown(more)} only here"] if more else []
    text += [f"{errors.shown(fewer)} missing"] if fewer else []
    return ", ".join(text)


def _annotated(
    root: pathlib.Path, own: pathlib.Path, classes: tuple[str, ...] | None
) -> Files:
    """Images with a list of their classes, as TinyImageNet's are published."""
    listed = own / _ANNOTATIONS
    lines = [line.split("\t") for line in listed.read_text().splitlines() if line]
    of = {line[0]: line[1] for line in lines if len(line) > 1}
    if len(of) < len(lines):
        must = (
            "a name and a class in every line, with a tabulator between, no name twice"
        )
        raise errors.wrong("folder", listed, must)
    names = _images(root, own.name)
    each = [os.path.basename(name) for name in names]
    for name in each:
        if name not in of:
            raise errors.wrong("folder", listed, f"a list of all images, {name} too")
    if len(names) < len(of):
        raise errors.wrong("folder", own, f"a folder of the {len(of)} images listed")
    if classes is None:
        classes = tuple(sorted(set(of.values())))
    elif set(of.values()) != set(classes):
        raise _other_classes(own, of.values(), classes)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.asarray([numbers[of[name]] for name in each], np.int32)
    return Files(root, classes, names, labels)
