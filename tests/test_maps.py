"""Large sets prepared once: listed, decoded, resized, summed, and resumed after kills."""

import re

import numpy as np
import pytest

from lottery_jax.data import folders


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# --- listing --------------------------------------------------------------------------


def test_images_are_listed_by_class_and_name(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.JPEG", "a/z.jpg", "c/1.png", ".DS_Store", "c/.x")
    classes, files, labels = folders.class_folders(tmp_path)
    assert classes == ("a", "b", "c")
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "a/z.jpg",
        "b/10.JPEG",
        "b/2.png",
        "c/1.png",
    ]
    assert labels.tolist() == [0, 1, 1, 2] and labels.dtype == np.int32


def test_images_of_tiny_imagenet_lie_one_level_deeper(tmp_path):
    touch(tmp_path, "n1/images/n1_0.JPEG", "n1/n1_boxes.txt", "n2/images/n2_0.JPEG")
    classes, files, labels = folders.class_folders(tmp_path)
    assert classes == ("n1", "n2") and labels.tolist() == [0, 1]
    assert [path.name for path in files] == ["n1_0.JPEG", "n2_0.JPEG"]


def test_links_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    classes, files, _ = folders.class_folders(tmp_path / "set")
    assert classes == ("a",) and files == [tmp_path / "set" / "a" / "1.png"]


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
