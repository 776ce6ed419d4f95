"""Masks and tickets that show themselves in a notebook, as a table of their leaves.

No matplotlib is needed; elsewhere than in a notebook the table is plain text. Inside of
treescope the table unfolds where the mask stands, and `visualizer` draws each bool array of
a tree in its place:

    with treescope.active_autovisualizer.set_scoped(lj.plots.visualizer):
        treescope.display({"mask": mask, "params": params})
"""

import base64
import dataclasses
import html
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lottery_jax import errors, masks, trees
from lottery_jax.plots._canvas import STYLES
from lottery_jax.plots.pictures import mask_picture

_PIXELS = 96
"""Places along a side of a small picture, at most."""

_SIDE = 128
"""Pixels of a screen that its longer side gets, if that is a multiple of its places."""

_CELL = "padding:3px 8px;text-align:{};white-space:nowrap;vertical-align:middle"


@dataclasses.dataclass(frozen=True, repr=False)
class Leaf:
    """A leaf of a mask; in a notebook, its numbers and a picture.

    Attributes:
      path: its key path.
      mask: bool, of any number of axes.
      counted: whether it is prunable, and so part of the density.
    """

    path: str
    mask: np.ndarray
    counted: bool = True

    @property
    def shape(self) -> str:
        """Its shape in words, such as 784x300."""
        return "x".join(map(str, self.mask.shape)) or "scalar"

    @property
    def survive(self) -> int:
        """How many weights survive."""
        return int(self.mask.sum())

    @property
    def density(self) -> str:
        """The share of them, in percent; of a leaf that is not counted, that it is not."""
        return _percent(self.survive, self.mask.size) if self.counted else "not counted"

    def __repr__(self) -> str:
        share = _percent(self.survive, self.mask.size)
        return f"bool[{self.shape}], {share} survive"

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(repr(self))}<br>{_image(self)}</div>"


@dataclasses.dataclass(frozen=True, repr=False)
class Shown:
    """What `shown` returns: leaves by row, and what holds of all of them.

    Attributes:
      title: what it is.
      leaves: in tree order.
    """

    title: str
    leaves: tuple[Leaf, ...]

    @property
    def summary(self) -> str:
        """The title, and the density of the leaves that count."""
        own = [leaf for leaf in self.leaves if leaf.counted]
        alive, total = sum(x.survive for x in own), sum(x.mask.size for x in own)
        return (
            f"{self.title}: {alive:,} of {total:,} weights survive, "
            f"{_percent(alive, total)}"
        )

    def __repr__(self) -> str:
        rows = [("leaf", "shape", "survive", "of", "density"), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = (
            "  ".join(
                text.ljust(width) if i < 2 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        )
        return "\n".join([self.summary, *lines])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for leaf in self.leaves:
            numbers = f"{leaf.survive:,}", f"{leaf.mask.size:,}"
            yield leaf.path, leaf.shape, *numbers, leaf.density

    def _repr_html_(self) -> str:
        head = (
            "leaf",
            "shape",
            "survive",
            "of",
            "density",
            "",
            "units down, inputs across",
        )
        rows = [_row("th", head)]
        for leaf, texts in zip(self.leaves, self._rows()):
            cells = [html.escape(text) for text in texts]
            own = (_bar(leaf), _image(leaf)) if leaf.counted else ("", "")
            rows.append(_row("td", (*cells, *own)))
        return (
            '<div style="overflow-x:auto">'
            f"<p><b>{html.escape(self.summary)}</b></p>"
            f'<table style="border-collapse:collapse">{"".join(rows)}</table></div>'
        )


def shown(mask: Any, prunable: masks.PrunableLike = None) -> Shown:
    """A mask or a ticket as a table that shows itself, in a notebook with pictures.

    Each leaf has its key path, its shape, how many of its weights survive, and a picture:
    dark is what survives, a row for each unit and a column for each input, neighbours drawn
    as one where there are many.

    Args:
      mask: a mask of one network, or a `Ticket`; what it says of itself is the title.
      prunable: which leaves count; None for those that a ticket names, or whose names tell.

    Raises:
      ValueError: a leaf that is not bool, or names that do not settle what counts.
    """
    title, about = "mask", getattr(mask, "metadata", None)
    if about is not None and hasattr(mask, "mask"):
        title, mask = _title(about), mask.mask
        if prunable is None and "prunable" in about:
            named = set(about["prunable"])
            prunable = trees.map_by_path(lambda path, _: path in named, mask)
    leaves = trees.by_path(trees.host(mask))
    for path, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if dtype != np.bool_:
            raise errors.wrong(f"mask: dtype of leaf {path!r}", dtype, "bool")
    flags = masks.resolve(mask, prunable)
    return Shown(
        title,
        tuple(
            Leaf(path, np.asarray(leaf), take)
            for (path, leaf), take in zip(leaves.items(), flags)
        ),
    )


def visualizer(value: Any, path: str | None) -> Any:
    """For treescope: draws each bool array of a tree in its place.

    Args:
      value: a node of a tree.
      path: where it stands, as treescope writes it.

    Returns:
      What treescope shows instead of an array of bool with two axes or more; None for
      anything else, which it shows as ever.

    Raises:
      ImportError: treescope is not installed; says how.
    """
    is_mask = getattr(value, "dtype", None) == np.bool_ and np.ndim(value) >= 2
    if not is_mask:
        return None
    try:
        import treescope
    except ImportError:
        raise ImportError(
            "pictures in trees need treescope: pip install 'lottery-jax[notebooks]'"
        ) from None
    return treescope.IPythonVisualization(Leaf(path or "", np.asarray(value)))


def _title(about: Any) -> str:
    """Which ticket it is, by what its metadata says."""
    title = "ticket"
    for word, name in (("of", "model"), ("on", "task")):
        if about.get(name):
            title += f" {word} {about[name]}"
    return f"{title}, level {about['level']}" if "level" in about else title


def _percent(alive: int, total: int) -> str:
    return f"{100 * alive / total:.3g}%" if total else "-"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    """Names to the left, numbers to the right."""
    sides = ("left", "left", "right", "right", "right", "left", "left")
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="{_CELL.format(side)}">{cell}</{tag}>'
            for side, cell in zip(sides, cells)
        )
        + "</tr>"
    )


def _bar(leaf: Leaf) -> str:
    """The density as a length."""
    share = 100 * leaf.survive / max(leaf.mask.size, 1)
    color = STYLES["ticket"][0]
    return (
        '<div style="width:80px;height:10px;background:#8884">'
        f'<div style="width:{share:.1f}%;height:10px;background:{color}"></div></div>'
    )


def _image(leaf: Leaf) -> str:
    """The picture, so large that its places are seen."""
    if not leaf.mask.size:
        return ""
    picture, _ = mask_picture(leaf.mask, _PIXELS)
    times = max(1, _SIDE // max(picture.shape))
    height, width = (times * side for side in picture.shape)
    address = "data:image/png;base64," + base64.b64encode(_png(picture)).decode()
    style = "image-rendering:pixelated;border:1px solid #8886;vertical-align:middle"
    size = f'width="{width}" height="{height}"'
    words = html.escape(f"{leaf.path}: {leaf!r}")
    shown = f'<img {size} style="{style}" alt="{words}" src="{address}">'
    # Of a sparse mask whose places are shares little would be seen on one scale for all.
    most = float(np.nanmax(picture))
    scale = f'<div style="font-size:80%">darkest: {100 * most:.3g}%</div>'
    return shown + (scale if 0 < most < 1 else "")


def _png(picture: np.ndarray) -> bytes:
    """A picture of shares `[H, W]` as a PNG, from white to the colour of tickets."""
    color = STYLES["ticket"][0]
    dark = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], float)
    share = np.nan_to_num(picture / max(float(np.nanmax(picture)), 1e-9))[..., None]
    pixels = np.round(255 + share * (dark - 255)).astype(np.uint8)
    pixels[np.isnan(picture)] = 0xE4
    height, width = picture.shape
    # Each line begins with how it is filtered: not at all.
    lines = np.insert(pixels.reshape(height, 3 * width), 0, 0, axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
