"""The published files of texts, and how they get to where they are read."""

import bz2
import gzip
import hashlib
import lzma
import os
import pathlib
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from lottery_jax import disk, errors
from lottery_jax.data import _fetch
from lottery_jax.data.text import corpora, files, glue

SQUAD = ("train-v1.1.json", "dev-v1.1.json")
"""The files of SQuAD 1.1."""

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
"""Where tiny Shakespeare is."""

DIGESTS = {
    "CoLA/train.tsv": "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624",
    "CoLA/dev.tsv": "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd",
    "SST-2/train.tsv": "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
    "SST-2/dev.tsv": "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0",
    "MRPC/train.tsv": "f178bcc72ab4c2c1c778b480912e0c8e1dba3ead150dc1d490d70682ab888c1e",
    "MRPC/dev.tsv": "9e8f284788040f7c9ecde2e1b3c07237c756f926bd9ef8548ef5d34b56f69f17",
    "RTE/train.tsv": "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c",
    "RTE/dev.tsv": "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb",
    "STS-B/train.tsv": "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2",
    "STS-B/dev.tsv": "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59",
    "WNLI/train.tsv": "9a88e9d54b6861cc796a088e9acf4f5f65064a9ef65ae6fa7a688b28391e5c9a",
    "WNLI/dev.tsv": "cba00490596dd14be8cf53b4f53bb744abe3a7b89f81ab210528d80225338ed5",
    "QNLI/dev.tsv": "ac19409dcb04631eaaa094bdebdcf621086bc352503dfb6a1a648b614986f4fd",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "wiki.train.tokens": (
        "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"
    ),
    "wiki.valid.tokens": (
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"
    ),
    "wiki.test.tokens": (
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"
    ),
    "input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}
"""SHA-256 of published files, as far as known; other official copies may differ."""

_UNPACK: dict[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
}
_ARCHIVES = (".zip", ".tgz", ".tar", *(f".tar{ending}" for ending in _UNPACK))
_DAMAGE = (
    lzma.LZMAError,
    EOFError,
    OSError,
    tarfile.TarError,
    zipfile.BadZipFile,
    # A byte of a header of a zip's can say a newer version, or that there is a password.
    NotImplementedError,
    RuntimeError,
    zlib.error,
)
"""What reading a file that is damaged raises."""


def wanted(name: str) -> tuple[str, ...]:
    """The files of a set that are read, within its folder.

    Args:
      name: one of `files.FOLDERS`.
    """
    if name == "glue":
        forms = glue.FORMATS.values()
        return tuple(f"{f.folder}/{file}" for f in forms for file in (f.train, f.test))
    if name == "squad":
        return SQUAD
    if name == "wikitext2":
        return tuple(corpora.WIKITEXT.values())
    return ("input.txt",)


class Placed(NamedTuple):
    """What `place` did.

    Attributes:
      folder: where the files of the set are.
      there: the files that are there now.
      missing: those that were not found; what needs them cannot be read.
    """

    folder: pathlib.Path
    there: tuple[str, ...]
    missing: tuple[str, ...]


def place(
    name: str,
    source: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Placed:
    """Puts the files of a set where they are read.

    Found are plain files, files packed one by one (.xz, .gz) and members of
    archives (.zip, .tar and packed ones), in `source` or its folder of the set; of an
    archive nothing is read but members of the names looked for. A file whose sum is not
    the known one is used, with a warning.

    Args:
      name: one of `files.FOLDERS`.
      source: the folder that has them; None to download, of which tiny Shakespeare alone
        has an address that lasts.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Returns:
      What is there now, and what is missing.

    Raises:
      ValueError: an unknown name, or a damaged file or archive; names it.
      FileNotFoundError: nothing was found; says what was looked for.
      OSError: no network, or the folder cannot be written.
    """
    errors.one_of("name", name, files.FOLDERS)
    own = files.folder(name, data_dir)
    looked_for = wanted(name)
    if source is None:
        if name == "tiny_shakespeare" and not (own / "input.txt").is_file():
            disk.write(own / "input.txt", _downloaded())
    else:
        found = errors.on_disk("--from", source).expanduser()
        if not found.is_dir():
            raise FileNotFoundError(f"--from={found}; it must be a folder")
        for file, content in _found(name, looked_for, found):
            known = DIGESTS.get(file)
            if known is not None and hashlib.sha256(content).hexdigest() != known:
                warnings.warn(
                    f"{file} of {found} is not the copy whose SHA-256 is known; it is "
                    "used as it is",
                    stacklevel=2,
                )
            path = own / file
            # One that is the same keeps its time, and what was made of it stays valid.
            if not path.is_file() or path.read_bytes() != content:
                disk.write(path, content)
    there = tuple(file for file in looked_for if (own / file).is_file())
    if not there:
        where = f"{own}" if source is None else f"{own} or {found}"
        raise FileNotFoundError(
            f"{name!r} needs {', '.join(looked_for)}; there is none in {where}. "
            "--from names the folder that has them as published, packed or not"
        )
    missing = tuple(file for file in looked_for if file not in there)
    return Placed(own, there, missing)


def _found(
    name: str, looked_for: tuple[str, ...], source: pathlib.Path
) -> Iterator[tuple[str, bytes]]:
    places = [source, source / files.FOLDERS[name], source / name]
    places = [place for place in dict.fromkeys(places) if place.is_dir()]
    left = list(looked_for)
    for file in looked_for:
        for path in (
            place / f"{file}{end}" for place in places for end in ("", *_UNPACK)
        ):
            if path.is_file():
                yield file, _content(path)
                left.remove(file)
                break
    for archive in _archives(name, places):
        if not left:
            return
        for file, content in _members(archive, left):
            yield file, content
            left.remove(file)


def _content(path: pathlib.Path) -> bytes:
    try:
        with _stream(path) as file:
            return file.read()
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error


def _stream(path: pathlib.Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name says that they are packed."""
    ending = path.suffix.lower().replace(".tgz", ".gz")
    return _UNPACK[ending](path) if ending in _UNPACK else path.open("rb")


def _archives(name: str, places: list[pathlib.Path]) -> Iterator[pathlib.Path]:
    """In the folder of the set all, in the folder of everything those of its name."""
    begins = [name, files.FOLDERS[name], name.rstrip("0123456789")]
    begins += [file.split("/")[0] for file in wanted(name) if "/" in file]
    for number, place in enumerate(places):
        for path in sorted(place.iterdir()):
            low = path.name.lower()
            is_one = low.endswith(_ARCHIVES)
            named = any(low.startswith(begin.lower()) for begin in begins)
            if path.is_file() and is_one and (number or named):
                yield path


def _members(archive: pathlib.Path, left: list[str]) -> list[tuple[str, bytes]]:
    """By name, read into memory: no member says where anything is written."""
    found = {}
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as packed:
                for member in packed.namelist():
                    if (file := _named(member, left)) and file not in found:
                        found[file] = packed.read(member)
        else:
            with _stream(archive) as stream, tarfile.open(fileobj=stream) as packed_tar:
                for entry in packed_tar:
                    file = _named(entry.name, left) if entry.isfile() else None
                    content = packed_tar.extractfile(entry) if file else None
                    if file and content and file not in found:
                        found[file] = content.read()
                # The sum of what is compressed is at its end, behind that of the tar.
                while stream.read(2**20):
                    pass
    except _DAMAGE as error:
        raise ValueError(f"{archive} cannot be read: {error!r}") from error
    return list(found.items())


def _named(member: str, left: list[str]) -> str | None:
    """Which of the files a member is: its path ends with theirs."""
    parts = pathlib.PurePosixPath(member).parts
    for file in left:
        own = pathlib.PurePosixPath(file).parts
        if parts[-len(own) :] == own:
            return file
    return None


def _downloaded() -> bytes:
    otherwise = "name a folder that has the file with --from"
    content = _fetch.content(f"{URL}input.txt", otherwise)
    if hashlib.sha256(content).hexdigest() != DIGESTS["input.txt"]:
        raise ValueError(
            f"{URL}input.txt is not the published file: its SHA-256 differs"
        )
    return content
