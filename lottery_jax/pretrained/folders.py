"""Folders with `config.json` and `model.safetensors`, read and written."""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lottery_jax import disk, errors, trees
from lottery_jax.models import BertShape
from lottery_jax.pretrained import names
from lottery_jax.pretrained.config import config_of, shape_of
from lottery_jax.pretrained.names import Leaf
from lottery_jax.storage import state_dicts
from lottery_jax.storage.state_dicts import StateDict
from lottery_jax.types import Params

CONFIG, WEIGHTS = "config.json", "model.safetensors"

TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Files of a tokeniser that may lie beside the weights."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Pretrained(NamedTuple):
    """An encoder from a folder.

    Attributes:
      shape: of the encoder; `models.Bert(shape, head=...)` computes what it did there.
      params: float32 NumPy arrays in nested dicts, every leaf that the file has: the
        encoder's; `head/transform`, `head/norm`, `head/bias` (and `head/decoder`, if it is
        not tied) of a masked-language head; `pooler`.
      folder: where the files are; a tokeniser is looked for there.
      heads: what the file has besides the encoder: "masked_lm", "pooler".
      unused: names of tensors that belong to nothing here, of other heads say.
      sha256: of the file of weights.
    """

    shape: BertShape
    params: Params
    folder: pathlib.Path
    heads: tuple[str, ...]
    unused: tuple[str, ...]
    sha256: str


# --- read -----------------------------------------------------------------------------


def load(source: str | os.PathLike[str]) -> Pretrained:
    """The encoder of a folder, with the heads that the file has.

    Names may have the prefix `bert.` or not, and norms `weight` and `bias` or, of old,
    `gamma` and `beta`. Kernels are transposed. Numbers of 16 or 64 bits become float32.
    Last layers of classifiers and of spans are among `unused`: their numbers mean
    something in one task alone.

    Args:
      source: a folder with `config.json` and `model.safetensors`. Where there is no such
        folder, a name at Hugging Face's hub, "owner/model": what is needed of it is
        downloaded into the hub's own cache, or found there.

    Raises:
      ValueError: a model that is not BERT or has more to it than is computed here, weights
        in pickles alone, tensors that are missing, of another shape or not finite, layers
        that the config does not count; names all of them.
      FileNotFoundError: no such folder and no such name, or a file is not there.
      ImportError: safetensors is missing; or huggingface_hub, where a name needs it.
    """
    folder = _folder(source)
    _check_files(folder)
    config = _config(folder / CONFIG)
    try:
        shape = shape_of(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    path = folder / WEIGHTS
    found = _named_alike(path, state_dicts.read(path))
    heads = _heads(path, found, shape)
    leaves = names.body(shape)
    leaves += names.masked_lm(shape) if "masked_lm" in heads else []
    leaves += names.pooler(shape) if "pooler" in heads else []
    _check(path, found, leaves)
    wanted = {leaf.theirs for leaf in leaves}
    unused = tuple(name for name in found if name not in wanted)
    if further := [name for name in unused if name.startswith("encoder.layer.")]:
        must = f"that of the file, which has further layers: {further}"
        raise errors.wrong("num_hidden_layers", shape.layers, must)
    params = _nested(
        {leaf.ours: leaf.swapped(_wide(found[leaf.theirs])) for leaf in leaves}
    )
    return Pretrained(shape, params, folder, heads, unused, disk.sha256(path))


def _folder(source: str | os.PathLike[str]) -> pathlib.Path:
    errors.is_a("source", source, (str, os.PathLike), "a folder, or a name at the hub")
    folder = errors.on_disk("source", source).expanduser()
    if folder.is_dir():
        return folder
    text = os.fspath(source)
    if not isinstance(source, str) or not _HUB_NAME.fullmatch(text):
        raise FileNotFoundError(
            f"source={text}: there is no such folder; it must hold {CONFIG} and {WEIGHTS}"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"source={text!r} is no folder, and as a name at the hub it needs "
            "huggingface_hub: pip install 'lottery-jax[hub]'; or download "
            f"{CONFIG} and {WEIGHTS} into a folder, and name that"
        ) from error
    wanted = [CONFIG, WEIGHTS, *TOKENIZER]
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(text, allow_patterns=wanted)
        )
    except Exception as error:  # a dozen types, of three packages
        reason = str(error).partition("\n")[0]  # the hub goes on for paragraphs
        raise FileNotFoundError(
            f"source={text!r} is no folder, and the hub does not give it "
            f"({type(error).__name__}: {reason}). Check the name and the network; or "
            f"download {CONFIG} and {WEIGHTS} elsewhere into a folder, and name that"
        ) from error


def _check_files(folder: pathlib.Path) -> None:
    """Raises where a folder lacks a file, with what to do."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}, which says what encoder it is"
        )
    if (folder / WEIGHTS).is_file():
        return
    if (folder / f"{WEIGHTS}.index.json").is_file():
        must = (
            f"in one file {WEIGHTS}: load it in transformers and save it with a larger "
        )
        raise errors.wrong("weights", f"{folder} in parts", f"{must}max_shard_size")
    if pickles := sorted(one.name for one in folder.glob("*.bin")):
        must = (
            f"in {WEIGHTS}; pickles are never loaded, for they can run anything. Where "
            "they are trusted: transformers.AutoModelForPreTraining.from_pretrained("
            f"{str(folder)!r}).save_pretrained(other_folder) writes one"
        )
        raise errors.wrong("weights", f"{', '.join(pickles)} in {folder}", must)
    raise FileNotFoundError(f"{folder} has no {WEIGHTS}: a folder without weights")


def _config(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    errors.is_a(str(path), config, Mapping, "a JSON object")
    return config


def _named_alike(path: pathlib.Path, state: StateDict) -> StateDict:
    """The tensors by their names of today, without the prefix and without buffers."""
    found: StateDict = {}
    for name, array in state.items():
        alike = names.today(name)
        if alike in found:
            raise ValueError(f"{path} has two tensors {alike!r}, one of them {name!r}")
        if not names.is_buffer(alike):
            found[alike] = array
    return found


def _heads(path: pathlib.Path, found: StateDict, shape: BertShape) -> tuple[str, ...]:
    """The heads of a file; a decoder's second copies are taken out of `found`."""
    copy = found.pop(names.DECODER_BIAS, None)
    own = "cls.predictions.bias"
    if copy is not None and not np.array_equal(found.setdefault(own, copy), copy):
        raise ValueError(
            f"{path}: {names.DECODER_BIAS} must be {own} again; it differs"
        )
    if shape.tied and names.DECODER in found:
        words = "embeddings.word_embeddings.weight"
        if not np.array_equal(found.pop(names.DECODER), found.get(words, ())):
            raise ValueError(
                f"{path}: {names.DECODER} must be {words} again, since {CONFIG} ties them; "
                "it differs: say tie_word_embeddings=false there, if it counts"
            )
    parts = {"masked_lm": "cls.predictions.", "pooler": "pooler."}
    return tuple(
        head
        for head, start in parts.items()
        if any(name.startswith(start) for name in found)
    )


def _check(path: pathlib.Path, found: StateDict, leaves: Sequence[Leaf]) -> None:
    """Raises a ValueError that lists all tensors of a file that are not as they must be."""
    wrong = []
    for leaf in leaves:
        if leaf.theirs not in found:
            wrong.append(f"{leaf.theirs} ({leaf.ours}) is missing")
            continue
        array = found[leaf.theirs]
        if array.shape != leaf.shape_there:
            wrong.append(
                f"{leaf.theirs} ({leaf.ours}) has shape {array.shape}, and should have "
                f"{leaf.shape_there}"
            )
        elif array.dtype.kind not in "fV":  # V: bfloat16
            wrong.append(f"{leaf.theirs} ({leaf.ours}) is of {array.dtype}")
        elif not np.isfinite(_wide(array)).all():
            wrong.append(f"{leaf.theirs} ({leaf.ours}) is not finite")
    if wrong:
        raise ValueError(
            f"{path} does not hold the encoder that {CONFIG} describes: {'; '.join(wrong)}"
        )


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        node = root
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = leaf
    return root


# --- write ----------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    shape: BertShape,
    params: Params,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
) -> None:
    """Writes an encoder so that `load`, and `transformers`, read it back bit for bit.

    The folder appears complete or not at all.

    Args:
      folder: to make; it must not exist yet, or be empty.
      shape: of the encoder.
      params: its leaves, float32, and those of a masked-language head and of a pooler
        (`pooler` or `head/pooler`), if it has them. Weights off a mask are 0.
      tokenizer: a folder whose tokeniser's files are copied, `found.folder` say.

    Raises:
      ValueError: leaves that are missing, left over (a classifier's output layer has no
        place in an encoder's file), or of another shape or dtype; names all of them. A
        folder with something in it, or a `tokenizer` without such files.
      OSError: the files cannot be written.
      ImportError: safetensors is not installed.
    """
    folder = errors.on_disk("folder", folder)
    errors.is_a("shape", shape, BertShape, "a lottery_jax.models.BertShape")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.wrong("folder", folder, "a new one; this is there already")
    copied = _tokenizer_files(tokenizer)
    given = {
        re.sub("^head/pooler/", "pooler/", path): np.asarray(leaf)
        for path, leaf in trees.by_path(params).items()
    }
    leaves = names.body(shape)
    has_head = any(path.startswith("head/") for path in given)
    leaves += names.masked_lm(shape) if has_head else []
    if any(path.startswith("pooler/") for path in given):
        leaves += names.pooler(shape)
    _check_leaves(given, leaves)
    state = {
        (
            leaf.theirs
            if leaf.theirs.startswith("cls.")
            else names.PREFIX + leaf.theirs
        ): leaf.swapped(given[leaf.ours])
        for leaf in leaves
    }
    architecture = "BertForMaskedLM" if has_head else "BertModel"
    text = json.dumps(config_of(shape, architecture), indent=2)
    with disk.replacing(folder) as temporary:
        temporary.mkdir()
        # What readers of PyTorch look for.
        state_dicts.write(temporary / WEIGHTS, state, metadata={"format": "pt"})
        disk.write(temporary / CONFIG, f"{text}\n".encode())
        for path in copied:
            shutil.copyfile(path, temporary / path.name)


def _tokenizer_files(folder: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    if folder is None:
        return []
    paths = [errors.on_disk("tokenizer", folder) / name for name in TOKENIZER]
    there = [path for path in paths if path.is_file()]
    if not there:
        must = f"a folder with some of {', '.join(TOKENIZER)}"
        raise errors.wrong("tokenizer", os.fspath(folder), must)
    return there


def _check_leaves(given: Mapping[str, np.ndarray], leaves: Sequence[Leaf]) -> None:
    """Raises a ValueError that lists all leaves that no file can hold."""
    wanted = {leaf.ours: leaf.shape for leaf in leaves}
    wrong = [f"{path!r} has no place" for path in given if path not in wanted]
    for path, shape in wanted.items():
        if path not in given:
            wrong.append(f"{path!r} is missing")
        elif given[path].shape != shape:
            wrong.append(
                f"{path!r} has shape {given[path].shape}, and should have {shape}"
            )
        elif given[path].dtype != np.float32:
            wrong.append(f"{path!r} is of {given[path].dtype}, and should be float32")
    if wrong:
        raise ValueError(
            f"params are not those of an encoder of this shape: {'; '.join(wrong)}"
        )
