"""What is timed of data that is read while networks train: the runner, and each source.

Files are made in a temporary folder, of noise that looks like photographs to a decoder:
large shapes with some grain.
"""

import io
import itertools
import pathlib
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

import lottery_jax as lj
from benchmarks.rows import Sizes
from benchmarks.run import Programs
from benchmarks.sides_jax import make_dataset, make_execution, make_task, make_tx
from lottery_jax import streams, training
from lottery_jax.data import Dataset
from lottery_jax.execution import Where
from lottery_jax.types import Task

# --- training -------------------------------------------------------------------------


def train(sizes: Sizes) -> Programs:
    """The runner, from arrays in memory (`memory`) and from a map of a file (`streamed`)."""
    dataset = make_dataset(sizes)
    whole = make_task(sizes)
    keys = lj.keys.of_replicas(0, range(sizes.replicas))
    tx, execution = make_tx(sizes), make_execution(sizes)
    runs = training.fresh(whole, tx, keys.init, keys.noise, where=Where(execution))

    def program(task: Task) -> Callable[[], int]:
        where = Where(execution)

        def run() -> int:
            training.train(task, tx, runs, sizes.steps, every=sizes.every, where=where)
            return sizes.replicas * sizes.steps

        return run

    away = whole._replace(data=_mapped(dataset).arrays)
    return {"memory": program(whole), "streamed": program(away)}


def waiting(sizes: Sizes) -> Programs:
    """The share of their time for which devices waited, in a run from a map of a file."""

    def find() -> dict[str, float]:
        task = make_task(sizes)._replace(data=_mapped(make_dataset(sizes)).arrays)
        where = Where(make_execution(sizes))
        lj.train(task, make_tx(sizes), sizes.steps, sizes.replicas, where=where)
        return {"share of the time that devices waited for data": where.waited.share}

    return {"run": find}


@lru_cache(maxsize=1)
def _folder() -> pathlib.Path:
    # Kept as long as the process: its files are read until the end.
    made = tempfile.TemporaryDirectory(prefix="lottery_jax")
    _kept.append(made)
    return pathlib.Path(made.name)


_kept: list[tempfile.TemporaryDirectory] = []
_count = itertools.count()


def _mapped(dataset: Dataset) -> Dataset:
    """The same examples, of which images lie in a file that is mapped."""
    sources = {}
    for split, arrays in dataset.arrays.items():
        path = _folder() / f"{split}-{next(_count)}.npy"
        np.save(path, arrays["image"])
        sources[split] = (np.load(path, mmap_mode="r"), arrays["label"])
    return lj.data.stream(
        sources,
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
        workers=1,
    )


# --- sources --------------------------------------------------------------------------


def sources(sizes: Sizes) -> Programs:
    """Examples that one thread reads from each source, in a random order of windows."""
    pixels = _photographs(sizes.examples, 32)
    labels = np.arange(len(pixels), dtype=np.int32) % 10
    small, large = (_photographs(sizes.examples, side) for side in (64, 256))

    def mapped(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        path = _folder() / f"{next(_count)}.npy"
        np.save(path, images)
        return np.load(path, mmap_mode="r"), labels

    png = _files(pixels, labels, "png", "PNG")
    jpeg = _files(_photographs(sizes.examples, 500, 375), labels, "jpeg", "JPEG")
    stream = partial(lj.data.stream, num_classes=10, workers=1)
    made = {
        "map of 32 x 32": stream(mapped(pixels)),
        "map of 64 x 64": stream(mapped(small)),
        "map of 256 x 256": stream(mapped(large)),
        "PNG of 32 x 32": stream(png),
        "JPEG of 500 x 375 to 64 x 64": stream(jpeg, side=64),
        "JPEG of 500 x 375 to 256 x 256": stream(jpeg, side=256),
    }
    return {name: _reading(own, sizes.batch) for name, own in made.items()}


def _reading(dataset: Dataset, at_once: int) -> Callable[[], int]:
    examples = streams.streamed(dataset.arrays)["train"]
    generator = np.random.default_rng(0)
    numbers = np.arange(len(examples))
    into = {
        name: np.empty((at_once, *x.shape), x.dtype)
        for name, x in examples.fields.items()
    }

    def run() -> int:
        chosen = generator.choice(numbers, min(at_once, len(numbers)), replace=False)
        own = {name: x[: len(chosen)] for name, x in into.items()}
        examples.read(np.sort(chosen), own)
        return len(chosen)

    return run


def _photographs(number: int, width: int, height: int | None = None) -> np.ndarray:
    """Images that a decoder takes for photographs, uint8 `[N, height, width, 3]`."""
    height = width if height is None else height
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    found = np.empty((number, height, width, 3), np.uint8)
    for i in range(number):
        waves = generator.uniform(1, 9, (3, 2))
        shapes = np.stack([np.sin(a * x + b * y) for a, b in waves], axis=-1)
        grain = generator.normal(0, 12, shapes.shape)
        found[i] = np.clip(127 + 90 * shapes + grain, 0, 255)
    return found


def _files(images: np.ndarray, labels: np.ndarray, suffix: str, form: str) -> str:
    from PIL import Image

    folder = _folder() / f"{suffix}-{next(_count)}"
    for i, (pixels, label) in enumerate(zip(images, labels)):
        own = folder / f"class_{label}"
        own.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form, quality=90)
        (own / f"{i:06d}.{suffix}").write_bytes(buffer.getvalue())
    return str(folder)
