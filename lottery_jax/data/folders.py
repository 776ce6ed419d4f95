"""Images as they are usually unpacked: a folder of class folders for each split.

    train/n01440764/n01440764_10026.JPEG ...      ImageNet, Places365
    train/n01443537/images/n01443537_0.JPEG ...   TinyImageNet

A listing asks for no file's status, so that a million of them are listed in seconds.
"""

import os
import pathlib

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


def class_folders(
    folder: pathlib.Path,
) -> tuple[tuple[str, ...], list[pathlib.Path], np.ndarray]:
    """Lists the images of a split, whose classes are folders.

    Where a class has a folder `images`, its images are those in there, and other files
    beside it are left alone. What is hidden (a name that begins with a point) is ignored.

    Args:
      folder: of the split.

    Returns:
      The classes, sorted by name; the images, sorted by class and name; and int32
      labels `[N]`, the number of each image's class.

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
    files: list[pathlib.Path] = []
    counts = [0] * len(classes)
    for number, name in enumerate(classes):
        found = _images(own / name)
        if not found:
            raise errors.wrong("folder", own, f"{must}; {name} has no images")
        files += found
        counts[number] = len(found)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return tuple(classes), files, labels


def _entries(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, in no order."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"folder={folder}; there is no such folder") from error


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a class, sorted by name."""
    entries = _entries(folder)
    if any(entry.name == _WITHIN and entry.is_dir() for entry in entries):
        folder = folder / _WITHIN
        entries = _entries(folder)
    for entry in entries:
        if not entry.name.lower().endswith(SUFFIXES) or entry.is_dir():
            raise errors.wrong(
                "folder", folder, f"a folder of images; {entry.name} in it is none"
            )
    return [folder / name for name in sorted(entry.name for entry in entries)]
