"""The script that draws, as text to be put into a page: Vega-Lite, with all it needs."""

import importlib.metadata
import re

import numpy as np

from lottery_jax.data.cache import cached


def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; nothing is loaded when it runs.

    It is put together by vl-convert, once on a machine and version: that takes seconds.

    Raises:
      ImportError: vl-convert is missing; names the extra.
    """
    try:
        version = importlib.metadata.version("vl-convert-python")
    except importlib.metadata.PackageNotFoundError:
        raise missing() from None
    script = cached(f"vega-embed-{version}", _bundle)["script"]
    # A page ends its script at the first of these, also within a string.
    return re.sub("</(?=script)", r"<\\/", script.tobytes().decode(), flags=re.I)


def _bundle() -> dict[str, np.ndarray]:
    try:
        import vl_convert
    except ImportError:
        raise missing() from None
    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return {"script": np.frombuffer(text.encode(), np.uint8)}


def missing() -> ImportError:
    """What is said where a package is missing that reports need."""
    return ImportError(
        "reports need vl-convert and jinja2: pip install 'lottery-jax[experiments]'"
    )
