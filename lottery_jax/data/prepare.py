"""Downloads data sets and prepares them for reading, once.

    pip install 'lottery-jax[data-prepare]'
    python -m lottery_jax.data.prepare mnist cifar10 [--data-dir DIR]
    python -m lottery_jax.data.prepare glue squad wikitext2 tiny_shakespeare --from FOLDER
    python -m lottery_jax.data.prepare imagenet --from FOLDER [--side 256] [--into DIR]

This alone needs a network, for sets of images by their names, and TensorFlow for all of
them but usps. It runs TFDS's own builders, and stores array_record files: TFDS's default
format cannot be read without TensorFlow. Files of texts are taken from a folder that has
them as published.

Large sets of images are taken from a folder that has them unpacked, class folders in
`train` and `val`, and become memory maps (`data.maps`). That needs Pillow alone, of the
extra `data`; what was done before a kill is kept by the same command.

Exit status: 0 when all is prepared, 2 for an error.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Sequence

from lottery_jax import streams
from lottery_jax.data import maps, prepared, sets, usps
from lottery_jax.data.text import files, published

MAPS = {"imagenet": 256, "places365": 256, "tiny_imagenet": 64}
"""Large sets by name, and the side that their images get without `--side`."""

_EVERY = 5.0  # seconds between two lines of progress


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Downloads one data set and prepares it; what is there already is left alone.

    Args:
      name: one of `data.NAMES`, but not of `data.GENERATED`.
      data_dir: TFDS's data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Raises:
      ValueError: an unknown name, or one that needs no preparation.
      ImportError: the extra `data-prepare` is not installed.
      OSError: it cannot be downloaded, or the folder cannot be written.
    """
    if name == "usps":
        usps.download(prepared.data_dir(data_dir))
        return
    tfds_name = sets.tfds_name(name)
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"preparing {name!r} needs the package {error.name}: "
            "pip install 'lottery-jax[data-prepare]'"
        ) from error
    folder = os.fspath(prepared.data_dir(data_dir))
    try:
        builder = tfds.builder(tfds_name, data_dir=folder, file_format=prepared.FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # errors of TFDS's own and of requests have no base
        raise OSError(
            f"TFDS could not prepare {tfds_name} in {folder}; it needs a network and room "
            f"on the disk: {error!r}"
        ) from error


class Progress:
    """Prints how far a map is, every few seconds.

    Attributes:
      name: of the set.
      begun: when the first call came, and how many images were done by then.
      said: when the last line was printed.
    """

    def __init__(self, name: str):
        self.name = name
        self.begun: tuple[float, int] | None = None
        self.said = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun = now, done
            if done:
                print(f"{self.name}: {done:,} of {total:,} images were done already")
        elif now - self.said < _EVERY and done < total:
            return
        self.said = now
        start, before = self.begun
        if done > before and now > start:
            speed = (done - before) / (now - start)
            left = _duration((total - done) / speed)
            print(
                f"{self.name}: {done:,} of {total:,} images, {speed:,.0f} a second, "
                f"{left} left",
                flush=True,
            )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _map(options: argparse.Namespace, name: str) -> None:
    into = options.into or maps.folder(name, options.data_dir)
    made = maps.write(
        options.source,
        into,
        side=MAPS[name] if options.side is None else options.side,
        workers=options.workers,
        skip_corrupt=options.skip_corrupt,
        watch=Progress(name),
    )
    said = maps.description(made)
    for split, part in said["splits"].items():
        counts = [f"{count:,} {kind}" for kind, count in part["converted"].items()]
        if part["replaced"]:
            counts.append(f"{len(part['replaced']):,} corrupt and replaced")
        more = f" ({', '.join(counts)})" if counts else ""
        classes = said["num_classes"]
        print(
            f"{name}: {split}, {part['number']:,} images of {classes:,} classes{more}"
        )
    print(f"{name}: prepared in {made}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring.

    Args:
      arguments: None for those of the process.
    """
    images = [name for name in sets.NAMES if name not in sets.GENERATED]
    choices = [*images, *files.FOLDERS, *MAPS]
    parser = argparse.ArgumentParser(
        prog="python -m lottery_jax.data.prepare",
        description="Downloads data sets and prepares them for reading, once.",
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"{', '.join(choices)}; or of a map"
    )
    parser.add_argument("--data-dir", help="default: $TFDS_DATA_DIR, or TFDS's own")
    parser.add_argument(
        "--from", dest="source", help="a folder with files of texts, or class folders"
    )
    large = parser.add_argument_group("memory maps of large sets of images")
    large.add_argument("--side", type=int, help="of the images, in pixels")
    large.add_argument(
        "--into",
        type=pathlib.Path,
        help="the map's folder; default: DATA_DIR/maps/NAME",
    )
    large.add_argument("--workers", type=int, help="default: one per core")
    large.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="replace an image that cannot be decoded by the next one, and record it",
    )
    options = parser.parse_args(arguments)
    is_map = _are_maps(parser, options, choices)
    for name in options.names:
        if not is_map and options.source is not None and name not in files.FOLDERS:
            parser.error(f"--from is for {', '.join(files.FOLDERS)}, not for {name}")
    for name in options.names:
        try:
            if is_map:
                _map(options, name)
            else:
                _set(options, name)
        except (ValueError, OSError, streams.SourceError, ImportError) as error:
            parser.exit(2, f"error: {name}: {error}\n")


def _set(options: argparse.Namespace, name: str) -> None:
    """Prepares texts or a set of images, and says where it is."""
    if name in files.FOLDERS:
        done = published.place(name, options.source, options.data_dir)
        without = f", without {', '.join(done.missing)}" if done.missing else ""
        print(f"{name}: prepared in {done.folder}{without}")
        return
    prepare(name, options.data_dir)
    print(f"{name}: prepared in {prepared.data_dir(options.data_dir)}")


def _are_maps(
    parser: argparse.ArgumentParser, options: argparse.Namespace, choices: list[str]
) -> bool:
    """Whether a map is asked for, by a name of its own or any other and `--into`."""
    flags = {
        "--side": options.side,
        "--into": options.into,
        "--workers": options.workers,
        "--skip-corrupt": options.skip_corrupt or None,
    }
    used = [flag for flag, value in flags.items() if value is not None]
    own = [name for name in options.names if options.into or name in MAPS]
    for name in options.names:
        if name not in (*choices, *own):
            parser.error(
                f"argument NAME: invalid choice: {name!r} (choose from "
                f"{', '.join(choices)}; a map of another name needs --into DIR)"
            )
    if not own:
        if used:
            parser.error(
                f"{used[0]} is for {', '.join(MAPS)}, not for {options.names[0]}"
            )
        return False
    if len(options.names) > 1:
        parser.error(f"one map at a time, not {', '.join(options.names)}")
    if options.source is None:
        parser.error(
            f"{own[0]} needs --from FOLDER, with class folders in train and val"
        )
    if options.side is None and own[0] not in MAPS:
        parser.error(f"{own[0]} needs --side, pixels of a side")
    return True


if __name__ == "__main__":
    main()
