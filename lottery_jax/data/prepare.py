"""Downloads data sets and prepares them for reading, once.

    pip install 'lottery-jax[data-prepare]'
    python -m lottery_jax.data.prepare mnist cifar10 [--data-dir DIR]
    python -m lottery_jax.data.prepare glue squad wikitext2 tiny_shakespeare --from FOLDER

This alone needs a network, and TensorFlow for all images but usps. It runs TFDS's own
builders, and stores array_record files: TFDS's default format cannot be read without
TensorFlow. Files of texts are taken from a folder that has them as published.
"""

import argparse
import os
from collections.abc import Sequence

from lottery_jax.data import prepared, sets, usps
from lottery_jax.data.text import files, published


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Downloads one data set and prepares it; what is there already is left alone.

    Args:
      name: one of `data.NAMES`, but not of `data.GENERATED`.
      data_dir: TFDS's data folder; None for $TFDS_DATA_DIR or TFDS's default.

    Raises:
      ValueError: an unknown name, or one that needs no preparation.
      ImportError: the extra `data-prepare` is not installed.
      OSError: no network, or the folder cannot be written.
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
    builder = tfds.builder(tfds_name, data_dir=folder, file_format=prepared.FORMAT)
    builder.download_and_prepare()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's docstring.

    Args:
      arguments: None for those of the process.
    """
    images = [name for name in sets.NAMES if name not in sets.GENERATED]
    choices = [*images, *files.FOLDERS]
    parser = argparse.ArgumentParser(
        prog="python -m lottery_jax.data.prepare",
        description="Downloads data sets and prepares them for reading, once.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=choices)
    parser.add_argument("--data-dir", help="default: $TFDS_DATA_DIR, or TFDS's own")
    parser.add_argument("--from", dest="source", help="a folder with files of texts")
    options = parser.parse_args(arguments)
    for name in options.names:
        if options.source is not None and name not in files.FOLDERS:
            parser.error(f"--from is for {', '.join(files.FOLDERS)}, not for {name}")
    for name in options.names:
        if name in files.FOLDERS:
            done = published.place(name, options.source, options.data_dir)
            without = f", without {', '.join(done.missing)}" if done.missing else ""
            print(f"{name}: prepared in {done.folder}{without}")
            continue
        prepare(name, options.data_dir)
        print(f"{name}: prepared in {prepared.data_dir(options.data_dir)}")


if __name__ == "__main__":
    main()
