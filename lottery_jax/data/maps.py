"""Large sets prepared once: decoded and resized into memory maps of uint8.

    maps.write("/data/imagenet", maps.folder("imagenet"), side=256)
    images, labels, *_ = maps.open(maps.folder("imagenet"), "train")

A map is a folder that has, for each split, `SPLIT-images.npy`, uint8
`[N, side, side, channels]`, and `SPLIT-labels.npy`, int32 `[N]`, which
`np.load(..., mmap_mode="r")` opens too, and `map.json`, which says what they are and how
they were made: classes, sizes, how images were resized, how many were converted, which
were replaced, and the SHA-256 of every block of examples.

What is being written lies in `FOLDER.incomplete`, with a journal of the blocks that are
done. Whenever the process is killed, the same call goes on from there, and ends in the
same bytes; complete, the folder gets its name.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lottery_jax import disk, errors, streams
from lottery_jax.data import decode, folders, prepared, reading

DESCRIPTION = "map.json"
"""The file that says what the others are."""

FORMAT = 1
"""The number of the form of the folder, which its description has."""

_JOURNAL = "journal.jsonl"
_BLOCK_BYTES = 1 << 25  # a second of work for a core: what a kill may lose
_PIECE = 16  # images that a worker is given at a time
_FIELDS = ("images", "labels")
_SAID = ("side", "channels", "block", "classes", "num_classes")
_SAID_OF_SPLITS = ("number", "digest", "converted", "replaced")
_HIGHEST = np.iinfo(np.int32).max

Watch = Callable[[int, int], None]


class Map(NamedTuple):
    """A split of a map.

    Attributes:
      images: uint8 `[N, side, side, channels]`, a memory map: read as it is used.
      labels: int32 `[N]`, in memory.
      classes: their names; None where the source had none.
      num_classes: labels lie in [0, num_classes).
      digest: SHA-256 of all the sums: tells this split from any other.
      replaced: by the names of corrupt images, those that stand in their place.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None
    num_classes: int
    digest: str
    replaced: Mapping[str, str]


def folder(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where the map of a set lies: `DATA_DIR/maps/NAME`.

    Args:
      name: of the set.
      data_dir: the data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Raises:
      ValueError: no name of a folder.
    """
    errors.is_a("name", name, str, "a name of a folder")
    if name in ("", ".", "..") or pathlib.Path(name).name != name:
        raise errors.wrong("name", repr(name), "a name of a folder, without slashes")
    return prepared.data_dir(data_dir) / "maps" / name


# --- reading --------------------------------------------------------------------------


def description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a map says of itself, as in its `map.json`.

    Args:
      folder: of the map.

    Raises:
      FileNotFoundError: there is no map, or one that is not complete.
      streams.SourceError: a damaged description, or one of a later format.
    """
    own = errors.on_disk("folder", folder).expanduser()
    path = own / DESCRIPTION
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        begun = _incomplete(own)
        there = (
            f"; what is begun in {begun} has to be finished" if begun.exists() else ""
        )
        raise FileNotFoundError(
            f"no map in {own}{there}. `python -m lottery_jax.data.prepare NAME --from "
            f"FOLDER --into {own}` prepares one"
        ) from error
    except (ValueError, NotADirectoryError) as error:
        raise streams.SourceError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else None
        raise streams.SourceError(
            f"{path} is of format {form}; this version reads format {FORMAT}"
        )
    if lacking := _lacking(found):
        raise streams.SourceError(f"{path} is damaged: it lacks {', '.join(lacking)}")
    return found


def _lacking(said: dict[str, Any]) -> list[str]:
    """What a description must say and does not."""
    splits = said.get("splits")
    if not isinstance(splits, dict) or not all(
        isinstance(part, dict) for part in splits.values()
    ):
        return ["splits"]
    lacking = [name for name in _SAID if name not in said]
    for split, part in splits.items():
        for field in _FIELDS:
            if not {"file", "sha256"} <= {*(part.get(field) or {})}:
                lacking.append(f"{field} of {split}")
        own = [name for name in _SAID_OF_SPLITS if name not in part]
        lacking += [f"{name} of {split}" for name in own]
    return lacking


def open(folder: str | os.PathLike[str], split: str) -> Map:
    """Opens a split of a map. Sizes are checked here, contents by `check`.

    Args:
      folder: of the map.
      split: its name: "train", "validation", "test".

    Raises:
      FileNotFoundError: there is no map, or one that is not complete.
      ValueError: no such split; names those that are there.
      streams.SourceError: a file that is not as described; names it.
    """
    own = errors.on_disk("folder", folder).expanduser()
    said = description(own)
    errors.one_of("split", split, said["splits"])
    part = said["splits"][split]
    shape = (part["number"], said["side"], said["side"], said["channels"])
    images = _mapped(own / part["images"]["file"], np.dtype(np.uint8), shape)
    labels = _mapped(own / part["labels"]["file"], np.dtype(np.int32), shape[:1])
    sums = json.dumps([part[field]["sha256"] for field in _FIELDS])
    return Map(
        images,
        np.array(labels),
        None if said["classes"] is None else tuple(said["classes"]),
        said["num_classes"],
        hashlib.sha256(sums.encode()).hexdigest(),
        part["replaced"],
    )


def check(folder: str | os.PathLike[str], watch: Watch | None = None) -> None:
    """Reads all of a map, and compares it with the sums in its description.

    Args:
      folder: of the map.
      watch: called with the numbers of examples that are checked, and of all.

    Raises:
      FileNotFoundError: there is no map, or one that is not complete.
      streams.SourceError: a file that is not what was written; names it and the
        examples.
    """
    own = errors.on_disk("folder", folder).expanduser()
    said = description(own)
    total = sum(part["number"] for part in said["splits"].values())
    block, done = said["block"], 0
    for split, part in said["splits"].items():
        arrays = open(own, split)
        for start in range(0, part["number"], block):
            stop = min(start + block, part["number"])
            for field in _FIELDS:
                values = getattr(arrays, field)[start:stop]
                if _sum(values) != part[field]["sha256"][start // block]:
                    raise streams.SourceError(
                        f"{own / part[field]['file']}: examples {start} to {stop - 1} are "
                        "not what was written: their SHA-256 differs"
                    )
            done += stop - start
            if watch is not None:
                watch(done, total)


def _mapped(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a file of exactly this dtype and shape, read as they are needed.

    Its header is compared, not parsed: on a damaged one, what NumPy's parser raises
    depends on the version of Python.
    """
    header, size = _header(dtype, shape), _size(dtype, shape)
    must = f"{dtype} of shape {shape}, {size} bytes"
    try:
        with path.open("rb") as file:
            begins = file.read(len(header))
            found = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise streams.SourceError(f"{path} is missing; it must be {must}") from error
    if found != size:
        raise streams.SourceError(f"{path} has {found} bytes; it must be {must}")
    if begins != header:
        raise streams.SourceError(
            f"{path} does not begin as an array of NumPy's of {must} does"
        )
    return np.memmap(path, dtype, "r", len(header), shape)


def _sum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """How a file of NumPy's begins, before its values."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _size(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a whole file of NumPy's."""
    values = dtype.itemsize
    for length in shape:
        values *= length
    return len(_header(dtype, shape)) + values


# --- writing --------------------------------------------------------------------------


def write(
    splits: Mapping[str, Any] | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    side: int,
    channels: int = 3,
    workers: int | None = None,
    skip_corrupt: bool = False,
    watch: Watch | None = None,
) -> pathlib.Path:
    """Decodes and resizes the images of all splits into a map.

    Images become what `decode.image` makes of them, in parallel: Pillow lets other
    threads run while it decodes. How many workers there are changes no byte, nor does a
    kill: what was done is found in the journal, checked by its sums, and kept. A map
    that is there already, of this source and side, is left alone.

    Args:
      splits: for each split its source: it has a length, and `[i]` is an image (anything
        that `decode.image` takes) and its label, an int from 0 on. It may have `names` of
        its examples, `classes`, and a `digest`, a text that tells it from others. Or a
        folder with class folders for each split, see `data.folders.splits`.
      folder: where the map shall lie: nothing is there, or the same map, complete or not.
      side: of the images, see `decode.RESIZED`.
      channels: 3, or 1 for grey.
      workers: threads; None for one per core. A source whose `[i]` must not be called
        from several threads at once needs 1.
      skip_corrupt: an image that cannot be decoded is replaced by the next one that can,
        with its label, so that all keep their numbers; this is recorded by name.
      watch: called with the numbers of examples that are done, and of all.

    Returns:
      The folder.

    Raises:
      ValueError: a wrong argument, or a folder that holds another map, or something
        else; names what differs.
      streams.SourceError: an image that cannot be decoded; names it.
      OSError: the disk is too small (before anything is decoded) or full; says how many
        bytes are needed, and what is done is kept.
      ImportError: Pillow is not installed; names the extra.
    """
    target = errors.on_disk("folder", folder).expanduser()
    side = errors.whole("side", side, 1)
    errors.one_of("channels", channels, (1, 3))
    errors.flag("skip_corrupt", skip_corrupt)
    workers = (
        reading.cores() if workers is None else errors.whole("workers", workers, 1)
    )
    given = splits if isinstance(splits, Mapping) else folders.splits(splits)
    job = _Job(_sources(given), _incomplete(target), side, channels, skip_corrupt)
    if _complete(target, job):
        return target
    try:
        with _alone(job.work) as journal:
            if _complete(target, job):  # another process was first, meanwhile
                shutil.rmtree(job.work, ignore_errors=True)
                return target
            _write(job, journal, workers, watch)
            disk.sync_folder(job.work)
            os.replace(job.work, target)
            disk.sync_folder(target.parent)
            (target / _JOURNAL).unlink()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: cannot write {job.work}. What is done there is kept; once "
            "there is room the same call goes on",
        ) from error
    return target


class _Block(NamedTuple):
    split: str
    start: int
    stop: int


class _Done(NamedTuple):
    """A block as its journal knows it; `replaced` and `converted` are its own."""

    sums: dict[str, str]
    converted: dict[str, int]
    replaced: dict[str, str]


class _Source(NamedTuple):
    """A split as it was given; `names` is called with a number."""

    examples: Any
    number: int
    names: Callable[[int], str]
    classes: tuple[str, ...] | None
    digest: str


@dataclasses.dataclass(frozen=True)
class _Job:
    """What shall be written, and where."""

    sources: dict[str, _Source]
    work: pathlib.Path
    side: int
    channels: int
    skip_corrupt: bool

    @property
    def classes(self) -> tuple[str, ...] | None:
        return next(iter(self.sources.values())).classes

    @property
    def block(self) -> int:
        """Examples of a block."""
        return max(1, _BLOCK_BYTES // (self.side * self.side * self.channels))

    def identity(self) -> dict[str, Any]:
        """What determines the bytes of the map."""
        splits = {
            split: {"number": source.number, "digest": source.digest}
            for split, source in self.sources.items()
        }
        return {
            "format": FORMAT,
            "side": self.side,
            "channels": self.channels,
            "resized": decode.RESIZED,
            "decoder": decode.decoder(),
            "classes": None if self.classes is None else list(self.classes),
            "block": self.block,
            "splits": splits,
        }

    def blocks(self) -> list[_Block]:
        return [
            _Block(split, start, min(start + self.block, source.number))
            for split, source in self.sources.items()
            for start in range(0, source.number, self.block)
        ]

    def array(self, split: str, field: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Dtype and shape of a file."""
        number = self.sources[split].number
        if field == "labels":
            return np.dtype(np.int32), (number,)
        return np.dtype(np.uint8), (number, self.side, self.side, self.channels)

    def path(self, split: str, field: str) -> pathlib.Path:
        return self.work / f"{split}-{field}.npy"


def _sources(given: Mapping[str, Any]) -> dict[str, _Source]:
    if not given:
        raise errors.wrong("splits", {}, "at least one split")
    found: dict[str, _Source] = {}
    for split, examples in given.items():
        field = f"splits[{split!r}]"
        if not isinstance(split, str) or pathlib.Path(split).name != split:
            raise errors.wrong(
                "splits", repr(split), "names of splits, without slashes"
            )
        if not hasattr(examples, "__len__") or not hasattr(examples, "__getitem__"):
            must = "a sequence whose [i] is an image and a label"
            raise errors.wrong(field, errors.shown(examples), must)
        if not len(examples):
            raise errors.wrong(field, "empty", "a sequence of at least one example")
        classes = getattr(examples, "classes", None)
        classes = None if classes is None else tuple(map(str, classes))
        others = next(iter(found.values())).classes if found else classes
        if classes != others:
            must = f"the same classes as the other splits, {errors.shown(others)}"
            raise errors.wrong(f"{field}.classes", errors.shown(classes), must)
        names = getattr(examples, "names", None)
        if names is not None and len(names) != len(examples):
            raise errors.wrong(
                f"{field}.names", f"{len(names)} names", f"{len(examples)} names"
            )
        called = _called(split, names)
        digest = getattr(examples, "digest", None) or _digest(examples, called)
        found[split] = _Source(examples, len(examples), called, classes, str(digest))
    return found


def _called(split: str, names: Any) -> Callable[[int], str]:
    return lambda index: f"{split}[{index}]" if names is None else str(names[index])


def _digest(examples: Any, called: Callable[[int], str]) -> str:
    """Of the length, and of some examples from the first to the last."""
    digest = hashlib.sha256(str(len(examples)).encode())
    for index in np.unique(np.linspace(0, len(examples) - 1, 16).astype(int)):
        image, label = _pair(examples, int(index), called(int(index)))
        if hasattr(image, "getbands"):  # an image of Pillow may not be decoded yet
            image = f"{image.mode} {image.size}".encode()
        content = np.asarray(image).tobytes()
        digest.update(f"{called(int(index))} {label} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _pair(examples: Any, index: int, name: str) -> tuple[Any, int]:
    """Image and label of an example."""
    must = "an image and a label"
    try:
        example = examples[index]
    except OSError as error:
        raise streams.SourceError(f"{name}: cannot be read: {error}") from error
    try:
        if isinstance(example, Mapping):
            image, label = example["image"], example["label"]
        else:
            image, label = example
        number = errors.whole("label", np.asarray(label)[()], 0, _HIGHEST)
    except (TypeError, ValueError, KeyError) as error:
        raise streams.SourceError(f"{name}: not {must}: {error}") from error
    return image, number


# --- what is there already ------------------------------------------------------------


def _incomplete(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.incomplete")


def _complete(target: pathlib.Path, job: _Job) -> bool:
    """Whether the map is there; refuses a folder that holds anything else."""
    if (target / DESCRIPTION).exists():
        # What is decoded stays so, whatever decodes today, and in whatever blocks.
        ours = job.identity() | {"decoder": None, "block": None}
        _same(target, description(target), ours)
        (target / _JOURNAL).unlink(missing_ok=True)
        return True
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.wrong("folder", target, "new, or empty, or a map of this source")
    return False


def _same(where: pathlib.Path, there: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuses another map, naming what differs."""
    differ = []
    for key, value in ours.items():
        if key == "splits":
            for split in sorted({*value, *there[key]}):
                one, other = there[key].get(split, {}), value.get(split, {})
                for field in ("number", "digest"):
                    if one.get(field) != other.get(field):
                        text = f"{one.get(field)} there, {other.get(field)} now"
                        differ.append(f"{field} of {split}: {text}")
        elif value is not None and there.get(key) != value:
            text = f"{errors.shown(there.get(key))} there, {errors.shown(value)} now"
            differ.append(f"{key}: {text}")
    if differ:
        raise ValueError(
            f"{where} holds another map ({'; '.join(differ)}). Another folder is needed, "
            "or that one removed"
        )


@contextlib.contextmanager
def _alone(work: pathlib.Path) -> Iterator[int]:
    """The journal, opened by one process at a time."""
    work.mkdir(parents=True, exist_ok=True)
    journal = os.open(work / _JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            import fcntl

            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            must = "prepared by one process at a time; another one is at it"
            raise errors.wrong("folder", work, must) from error
        except (ImportError, OSError):
            pass  # not every system has such locks, nor every file system
        yield journal
    finally:
        os.close(journal)


def _journaled(job: _Job, journal: int) -> dict[_Block, _Done]:
    """The blocks that the journal knows, whose bytes still have their sums."""
    content = b""
    while part := os.pread(journal, 1 << 20, len(content)):
        content += part
    # What follows the last end of a line was being written when the process died.
    whole = content[: content.rfind(b"\n") + 1]
    os.ftruncate(journal, len(whole))
    if not whole:
        _put(journal, json.dumps(job.identity()).encode() + b"\n", 0)
        return {}
    try:
        first, *rest = map(json.loads, whole.splitlines())
        _same(job.work, first, job.identity())
        known = {_Block(*line["block"]): _Done(**line["done"]) for line in rest}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise streams.SourceError(
            f"{job.work / _JOURNAL} is damaged ({error!r}): {job.work} has to be removed"
        ) from error
    return {block: known[block] for block in job.blocks() if block in known}


def _intact(job: _Job, block: _Block, done: _Done) -> bool:
    with contextlib.suppress(OSError, streams.SourceError):
        for field in _FIELDS:
            path = job.path(block.split, field)
            found = _mapped(path, *job.array(block.split, field))
            if _sum(found[block.start : block.stop]) != done.sums[field]:
                return False
        return True
    return False


# --- block by block -------------------------------------------------------------------


def _write(job: _Job, journal: int, workers: int, watch: Watch | None) -> None:
    """Writes what is missing of a map, its description last."""
    known = _journaled(job, journal)
    blocks = job.blocks()
    total = sum(source.number for source in job.sources.values())
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda item: _intact(job, *item), known.items())
        done = {block: known[block] for block, whole in zip(known, found) if whole}
        count = sum(block.stop - block.start for block in done)
        if watch is not None:
            watch(count, total)
        left = [block for block in blocks if block not in done]
        _check_room(job, left)
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(_files(job))
            blocks_done = stack.enter_context(
                contextlib.closing(_decoded(job, left, pool))
            )
            for block, arrays, told in blocks_done:
                done[block] = _store(job, files, journal, block, arrays, told)
                count += block.stop - block.start
                if watch is not None:
                    watch(count, total)
    _describe(job, {block: done[block] for block in blocks})


def _check_room(job: _Job, left: list[_Block]) -> None:
    each = job.side * job.side * job.channels + np.dtype(np.int32).itemsize
    needed = each * sum(block.stop - block.start for block in left)
    free = shutil.disk_usage(job.work).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"No room: {needed:,} bytes more are needed, {free:,} are free",
        )


@contextlib.contextmanager
def _files(job: _Job) -> Iterator[dict[tuple[str, str], int]]:
    """All files, open for writing, of their final size and with their headers."""
    with contextlib.ExitStack() as opened:
        files = {}
        for split in job.sources:
            for field in _FIELDS:
                dtype, shape = job.array(split, field)
                path = job.path(split, field)
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                opened.callback(os.close, file)
                _put(file, _header(dtype, shape), 0)
                os.ftruncate(file, _size(dtype, shape))
                files[split, field] = file
        yield files


_Told = tuple[collections.Counter, dict[str, str]]


def _decoded(
    job: _Job, blocks: list[_Block], pool: concurrent.futures.Executor
) -> Generator[tuple[_Block, dict[str, np.ndarray], _Told], None, None]:
    """Blocks one after another, while the workers are at the next ones."""
    ahead: collections.deque = collections.deque()

    def begin(block: _Block) -> None:
        number = block.stop - block.start
        arrays: dict[str, np.ndarray] = {
            "images": np.empty((number, job.side, job.side, job.channels), np.uint8),
            "labels": np.empty(number, np.int32),
        }
        pieces = [
            pool.submit(_piece, job, block, range(at, min(at + _PIECE, number)), arrays)
            for at in range(0, number, _PIECE)
        ]
        ahead.append((block, arrays, pieces))

    left = iter(blocks)
    try:
        for block in left:
            begin(block)
            if len(ahead) < 3:
                continue
            yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        for _, _, pieces in ahead:
            for piece in pieces:
                piece.cancel()


def _finished(
    block: _Block,
    arrays: dict[str, np.ndarray],
    pieces: list[concurrent.futures.Future],
) -> tuple[_Block, dict[str, np.ndarray], _Told]:
    converted: collections.Counter = collections.Counter()
    replaced: dict[str, str] = {}
    try:
        for piece in pieces:
            kinds, others = piece.result()
            converted += kinds
            replaced |= others
    finally:
        for piece in pieces:
            piece.cancel()
    return block, arrays, (converted, replaced)


def _piece(
    job: _Job, block: _Block, rows: range, arrays: dict[str, np.ndarray]
) -> _Told:
    """Decodes some examples of a block into its arrays; what of them was converted."""
    source = job.sources[block.split]
    converted: collections.Counter = collections.Counter()
    replaced = {}
    for row in rows:
        index = block.start + row
        at, (pixels, kinds), label = _readable(job, source, index)
        arrays["images"][row], arrays["labels"][row] = pixels, label
        converted.update(kinds)
        if at != index:
            replaced[source.names(index)] = source.names(at)
    return converted, replaced


def _readable(
    job: _Job, source: _Source, index: int
) -> tuple[int, tuple[np.ndarray, tuple[str, ...]], int]:
    """An example, or, where this is asked for, the next one that can be decoded."""
    for step in range(source.number):
        at = (index + step) % source.number
        name = source.names(at)
        image, label = _pair(source.examples, at, name)
        if source.classes is not None and label >= len(source.classes):
            must = f"less than {len(source.classes)}, the number of classes"
            raise streams.SourceError(f"{name}: label {label}; it must be {must}")
        try:
            found = decode.converted(
                image, side=job.side, channels=job.channels, name=name
            )
        except streams.SourceError as error:
            if not job.skip_corrupt:
                raise streams.SourceError(
                    f"{error} (skip_corrupt, --skip-corrupt, takes the next one instead)"
                ) from error
            continue
        return at, found, label
    raise streams.SourceError(
        f"none of the {source.number} images can be decoded, {source.names(index)} first"
    )


def _store(
    job: _Job,
    files: dict[tuple[str, str], int],
    journal: int,
    block: _Block,
    arrays: dict[str, np.ndarray],
    told: _Told,
) -> _Done:
    """Writes a block, and only once it is on the disk, that it is there."""
    sums = {}
    for field in _FIELDS:
        values = arrays[field]
        dtype, shape = job.array(block.split, field)
        each = dtype.itemsize * values[0].size
        start = len(_header(dtype, shape)) + block.start * each
        _put(files[block.split, field], values, start)
        os.fsync(files[block.split, field])
        sums[field] = _sum(values)
    done = _Done(sums, dict(sorted(told[0].items())), told[1])
    line = json.dumps({"block": block, "done": done._asdict()}).encode() + b"\n"
    _put(journal, line, os.lseek(journal, 0, os.SEEK_END))
    os.fsync(journal)
    return done


def _put(file: int, content: bytes | np.ndarray, start: int) -> None:
    """Writes at a place in a file; not through a map, for a full disk would kill us."""
    left = np.frombuffer(content, np.uint8).data
    while len(left):
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def _describe(job: _Job, done: dict[_Block, _Done]) -> None:
    identity = job.identity()
    highest = 0
    for split, part in identity["splits"].items():
        own = [told for block, told in done.items() if block.split == split]
        converted: collections.Counter = collections.Counter()
        for told in own:
            converted.update(told.converted)
        for field in _FIELDS:
            part[field] = {
                "file": job.path(split, field).name,
                "bytes": _size(*job.array(split, field)),
                "sha256": [told.sums[field] for told in own],
            }
        part["converted"] = {
            kind: converted[kind] for kind in decode.KINDS if converted[kind]
        }
        part["replaced"] = {}
        for told in own:
            part["replaced"] |= told.replaced
        labels = _mapped(job.path(split, "labels"), *job.array(split, "labels"))
        highest = max(highest, int(labels.max()))
    number = highest + 1 if job.classes is None else len(job.classes)
    said = identity | {"num_classes": number}
    disk.write(job.work / DESCRIPTION, json.dumps(said, indent=1).encode())
