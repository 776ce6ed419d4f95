"""State dicts of PyTorch on disk: a name and an array for every tensor.

`.safetensors` files are read and written by safetensors alone. `.pt` and `.pth` files
need PyTorch, and are read as tensors only: nothing that a file holds is executed.
"""

import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from lottery_jax import disk, errors

StateDict: TypeAlias = dict[str, np.ndarray]
"""Arrays by the names that PyTorch gives tensors: `fc.weight`, say."""

_CODES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "C64": np.complex64,
    "BOOL": np.bool_,
}
"""What safetensors calls dtypes."""

_SAFE, _PICKLED = (".safetensors",), (".pt", ".pth")


def read(path: str | os.PathLike[str]) -> StateDict:
    """The tensors of a file, in the order of the file.

    Args:
      path: `*.safetensors`; or `*.pt`, `*.pth`, what `torch.save` made of a state dict
        or of any other dict of tensors. They are read onto the CPU.

    Returns:
      NumPy arrays by their names, with the dtypes that they are stored in; bfloat16, of
      `.safetensors` files, is JAX's.

    Raises:
      ValueError: another ending, a damaged file, one that holds anything but tensors by
        name, or a tensor that NumPy cannot hold (bfloat16, sparse); names it.
      FileNotFoundError: there is no such file.
      ImportError: what reads it is not installed.
    """
    path = _known(path)
    content = path.read_bytes()
    if path.suffix in _SAFE:
        safetensors = _safetensors()
        try:
            return {
                name: np.frombuffer(one["data"], _CODES[one["dtype"]]).reshape(
                    one["shape"]
                )
                for name, one in safetensors.deserialize(content)
            }
        except Exception as error:
            raise ValueError(
                f"{path} is no complete safetensors file of NumPy's dtypes: {error}"
            ) from error
    torch = _torch()
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is no complete file of tensors alone, and nothing else is read: "
            f"{str(error) or type(error).__name__}"
        ) from error
    errors.is_a(str(path), found, Mapping, "a dict of tensors by name")
    return {name: _array(f"{path}: {name!r}", tensor) for name, tensor in found.items()}


def write(
    path: str | os.PathLike[str],
    state: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by name; the file appears complete or not at all.

    Args:
      path: file to write or replace, `*.safetensors`, or `*.pt` or `*.pth` as
        `torch.save` writes them; its folder is made.
      state: NumPy or JAX arrays by their names.
      metadata: texts by name for the head of a `.safetensors` file; others have no place
        for them.

    Raises:
      ValueError: another ending, a name that is no text, or what is no array of numbers.
      OSError: the file could not be written.
      ImportError: what writes it is not installed.
    """
    path = _known(path)
    arrays = {}
    for name, value in state.items():
        errors.is_a("a name of state", name, str, "text")
        array = np.array(value, order="C")  # a copy, and never one dimension more
        if array.dtype.kind not in "biuf":
            raise errors.wrong(f"state[{name!r}].dtype", array.dtype, "of numbers")
        arrays[name] = array
    if path.suffix in _SAFE:
        numpy = _safetensors().numpy
        disk.write(path, numpy.save(arrays, dict(metadata) if metadata else None))
        return
    if metadata:
        raise errors.wrong("metadata", dict(metadata), f"None for a file {path.suffix}")
    torch = _torch()
    content = io.BytesIO()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, content)
    disk.write(path, content.getvalue())


def _known(path: str | os.PathLike[str]) -> pathlib.Path:
    path = errors.on_disk("path", path)
    if path.suffix not in (*_SAFE, *_PICKLED):
        raise errors.wrong("path", path, f"a file {', '.join((*_SAFE, *_PICKLED))}")
    return path


def _array(name: str, tensor: Any) -> np.ndarray:
    must = "a tensor that NumPy can hold: dense, and of a dtype of its own"
    if not hasattr(tensor, "detach"):
        raise errors.wrong(
            name, errors.shown(tensor), f"{must}. Save a state dict alone"
        )
    try:
        return np.array(tensor.detach().numpy())
    except Exception as error:
        what = f"a tensor of {tensor.dtype}, {tensor.layout}"
        raise errors.wrong(name, what, must) from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "safetensors files need safetensors: pip install 'lottery-jax[results]'"
        ) from error
    return safetensors


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            ".pt and .pth files need PyTorch: pip install 'lottery-jax[pytorch]'; a "
            ".safetensors file (safetensors.torch.save_file) does not"
        ) from error
    return torch
