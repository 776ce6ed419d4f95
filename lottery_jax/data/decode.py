"""One image, whatever it comes as, as uint8 pixels of one shape."""

from typing import Any

import numpy as np


def image(
    given: Any, *, side: int | None = None, channels: int = 3, name: str = "image"
) -> np.ndarray:
    """Pixels of an image, uint8 `[H, W, channels]`.

    Args:
      given: an array, encoded bytes (JPEG, PNG, WebP ...), or an image of Pillow.
      side: the shorter side is resized to this, and the centre square cut out; None
        leaves images as they are.
      channels: 3, or 1 for grey.
      name: what it is called where something is wrong with it.

    Raises:
      streams.SourceError: it is no image, or a broken one; says which and why.
      ImportError: Pillow is not installed; names the extra.
    """
    raise NotImplementedError
