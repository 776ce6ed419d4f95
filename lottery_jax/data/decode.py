"""One image, whatever it comes as, as uint8 pixels of one shape.

Where an image is not what is wanted, it is converted, always in the same way, and what
was converted can be counted (`converted`):

- **grey** is repeated over three channels; colours become luminance for one channel,
  0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), after resizing;
- **palette**, **CMYK** and other colour spaces become RGB as Pillow converts them;
- **alpha** is dropped: colours are those that are stored, however transparent;
- **16-bit** values become x / 257, rounded, so that 65,535 is 255; of 16-bit *colour*,
  Pillow gives the higher byte alone; floating point, whose range nobody states, is
  refused;
- orientation (EXIF) and colour profiles are ignored, and of several frames the first is
  taken, as is usual with ImageNet.
"""

import contextlib
import importlib.metadata
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from lottery_jax import errors, streams

RESIZED = (
    "the centre square, its side the shorter one of the image (left and top rounded "
    "down), resized by Pillow's bilinear filter, widened where images become smaller "
    "(antialias); JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves the "
    "shorter side no shorter than the one wanted"
)
"""What `image` does to an image of another size, to be stated beside a result."""

KINDS = ("grey", "colour", "palette", "CMYK", "other colours", "alpha", "16-bit")
"""What `converted` tells of an image that was converted."""

_ENCODED = (bytes, bytearray, memoryview)
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_SIXTEEN = 65535

# Pillow's switch that lets truncated images pass is one for all threads.
_lock = threading.Lock()
_decoding = 0
_lenient = False


def image(
    given: Any, *, side: int | None = None, channels: int = 3, name: str = "image"
) -> np.ndarray:
    """Pixels of an image, uint8 `[H, W, channels]`.

    Args:
      given: an array, uint8 or uint16, `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or
        `[H, W, 4]` (alpha); encoded bytes (JPEG, PNG, WebP ...), or an image of Pillow.
      side: the centre square is resized to this (`RESIZED` says how); None leaves images
        as large as they are.
      channels: 3, or 1 for grey.
      name: what it is called where something is wrong with it.

    Returns:
      The pixels, to be read only: an array that needs no conversion is given back.

    Raises:
      streams.SourceError: it is no image, or a broken one; says which and why.
      ImportError: Pillow is needed, and not installed; names the extra.
    """
    return converted(given, side=side, channels=channels, name=name)[0]


def converted(
    given: Any, *, side: int | None = None, channels: int = 3, name: str = "image"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels of an image, and what was converted.

    Args:
      given: as for `image`.
      side: likewise.
      channels: likewise.
      name: likewise.

    Returns:
      uint8 `[H, W, channels]`, and those of `KINDS` that it was; none where it was as
      wanted.

    Raises:
      streams.SourceError: as for `image`.
      ImportError: likewise.
    """
    if side is not None:
        side = errors.whole("side", side, 1)
    errors.one_of("channels", channels, (1, 3))
    if isinstance(given, _ENCODED) or hasattr(given, "getbands"):
        pixels, kinds = _opened(given, side, name)
    else:
        pixels, kinds = _array(given, name)
        if side is not None:
            pixels = _square(pixels, side, name)
    if pixels.shape[-1] == channels:
        kinds -= {"grey", "colour"}
    elif channels == 1:
        pixels = luminance(pixels)
    else:
        pixels = np.repeat(pixels, 3, axis=-1)
    return pixels, tuple(kind for kind in KINDS if kind in kinds)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels of coloured ones: 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601).

    Args:
      pixels: uint8 `[..., 3]`.

    Returns:
      uint8 `[..., 1]`.
    """
    weighted = pixels.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., None]


def _broken(name: str, why: object) -> streams.SourceError:
    return streams.SourceError(f"{name}: {why}")


# --- arrays ---------------------------------------------------------------------------


def _array(given: Any, name: str) -> tuple[np.ndarray, set[str]]:
    """Pixels `[H, W, 1]` or `[H, W, 3]` of an array, and what it was."""
    must = "uint8 or uint16, [H, W] or [H, W, 1, 3 or 4]"
    if not hasattr(given, "shape") or not hasattr(given, "dtype"):
        raise _broken(name, f"{errors.shown(given)} is no image")
    pixels = np.asarray(given)
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    fits = pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4)
    if pixels.dtype not in (np.uint8, np.uint16) or not fits:
        raise _broken(
            name, f"an array {pixels.dtype} of shape {shape}; it must be {must}"
        )
    if not pixels.size:
        raise _broken(name, f"an image without pixels, of shape {shape}")
    kinds = {"grey" if pixels.shape[-1] == 1 else "colour"}
    if pixels.shape[-1] == 4:
        kinds.add("alpha")
        pixels = pixels[..., :3]
    if pixels.dtype == np.uint16:
        kinds.add("16-bit")
        pixels = _eight_bits(pixels)
    return pixels, kinds


def _eight_bits(values: np.ndarray) -> np.ndarray:
    # 257 is odd: nothing lies in the middle of two numbers.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _square(pixels: np.ndarray, side: int, name: str) -> np.ndarray:
    height, width, channels = pixels.shape
    shorter = min(height, width)
    if shorter == side:
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[top : top + side, left : left + side]
    plane = pixels[..., 0] if channels == 1 else pixels
    made = _pillow(name).fromarray(np.ascontiguousarray(plane))
    return _pixels(_resized(made, side))


# --- Pillow ---------------------------------------------------------------------------


def _pillow(name: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"decoding {name} needs the package Pillow: pip install 'lottery-jax[data]'"
        ) from error
    return Image


def _opened(given: Any, side: int | None, name: str) -> tuple[np.ndarray, set[str]]:
    """Pixels of encoded bytes or of an image of Pillow, and what it was."""
    pillow = _pillow(name)
    try:
        with _strictly(), contextlib.ExitStack() as opened:
            found = given
            if isinstance(given, _ENCODED):
                if not len(given):
                    raise _broken(name, "an empty file")
                found = opened.enter_context(pillow.open(io.BytesIO(given)))
            _check_size(found, pillow.MAX_IMAGE_PIXELS, name)
            # What the caller has opened is left as it is.
            frame = None if side is None or found is given else _reduced(found, side)
            return _decoded(found, side, frame, name)
    except streams.SourceError:
        raise
    except pillow.UnidentifiedImageError as error:
        why = "no image of a format that Pillow knows, or a broken one"
        raise _broken(name, why) from error
    except Exception as error:  # decoders raise any of a dozen types
        raise _broken(
            name, f"a broken image: {error or type(error).__name__}"
        ) from error


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Truncated images are refused inside, also where the program lets them pass."""
    global _decoding, _lenient
    from PIL import ImageFile

    with _lock:
        if not _decoding:
            _lenient = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                ImageFile.LOAD_TRUNCATED_IMAGES = _lenient


def _check_size(found: Any, most: int | None, name: str) -> None:
    width, height = found.size
    if not width or not height:
        raise _broken(name, f"an image without pixels, {width} x {height}")
    if most is not None and width * height > most:
        raise _broken(
            name,
            f"{width} x {height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS={most}",
        )


def _reduced(found: Any, side: int) -> tuple[float, float] | None:
    """Has a large JPEG decoded smaller; width and height of what is the image then."""
    size = found.size
    answer = found.draft(None, (side, side))
    return answer[1][2:] if answer and found.size != size else None


def _decoded(
    found: Any, side: int | None, frame: tuple[float, float] | None, name: str
) -> tuple[np.ndarray, set[str]]:
    kinds, mode = _kinds(found), found.mode
    if mode == "F":
        raise _broken(name, "an image of floating-point numbers")
    if mode in _PREMULTIPLIED:
        found = found.convert(_PREMULTIPLIED[mode])
    if mode.startswith("I"):
        plain = _of_16_bits(found, name)
    else:
        wanted = "L" if mode in _GREY else "RGB"
        plain = found if mode == wanted else found.convert(wanted)
    return _pixels(plain if side is None else _resized(plain, side, frame)), kinds


def _kinds(found: Any) -> set[str]:
    """What an image is, by its mode."""
    mode = found.mode
    kinds = {"grey" if mode in _GREY else "colour"}
    if mode in _ALPHA or "transparency" in found.info:
        kinds.add("alpha")
    # Pillow makes 8 bits of 16-bit colours as it decodes them, and tells only here.
    layouts = [str(tile[3]) for tile in getattr(found, "tile", ())]
    if mode.startswith("I") or any(";16" in layout for layout in layouts):
        kinds.add("16-bit")
    if mode in ("P", "PA"):
        kinds.add("palette")
    elif mode == "CMYK":
        kinds.add("CMYK")
    elif mode in ("YCbCr", "LAB", "HSV"):
        kinds.add("other colours")
    return kinds


def _of_16_bits(found: Any, name: str) -> Any:
    values = np.asarray(found)
    if values.min() < 0 or values.max() > _SIXTEEN:
        raise _broken(
            name, f"grey values outside [0, {_SIXTEEN}], of more than 16 bits"
        )
    return _pillow(name).fromarray(_eight_bits(values))


def _resized(found: Any, side: int, frame: tuple[float, float] | None = None) -> Any:
    """The centre square of an image of Pillow, resized to a side.

    A JPEG decoded at an eighth of 129 pixels has 17, of which 16.125 are the image, its
    `frame`.
    """
    bilinear = _pillow("an image").Resampling.BILINEAR
    if frame is not None:
        shorter = min(frame)
        start, above = ((length - shorter) / 2 for length in frame)
        box = (start, above, start + shorter, above + shorter)
        return found.resize((side, side), bilinear, box=box)
    width, height = found.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    square = found.crop((left, top, left + shorter, top + shorter))
    return square if shorter == side else square.resize((side, side), bilinear)


def _pixels(found: Any) -> np.ndarray:
    pixels = np.asarray(found)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decoder() -> str:
    """What decodes: other versions may give other pixels.

    Raises:
      ImportError: Pillow is not installed; names the extra.
    """
    try:
        from PIL import features
    except ImportError as error:
        raise ImportError(
            "decoding images needs the package Pillow: pip install 'lottery-jax[data]'"
        ) from error
    jpeg = "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
    version = features.version("libjpeg_turbo") or features.version("jpg")
    return f"Pillow {importlib.metadata.version('pillow')}, {jpeg} {version}"
