"""Text below figures, and files."""

import pathlib
from collections.abc import Sequence
from typing import Any

from lottery_jax import errors

CAPTION_SIZE = 7
"""Size of the text below a figure, in points."""


def caption(figure: Any, lines: Sequence[str]) -> Any:
    """Writes text below a figure; `save` makes the page as much longer.

    What is drawn keeps its place and size, so nothing can overlap the text.

    Args:
      figure: from any function here, or another of matplotlib's.
      lines: of text, each broken where it would be wider than the figure; what follows
        is set in. None of them: nothing is written.

    Returns:
      The figure.
    """
    if not lines:
        return figure
    points = 72 * figure.get_figwidth()
    left = 0.02
    broken = [part for line in lines for part in _broken(line, points * (0.94 - left))]
    text = figure.text(left, 0, "\n".join(broken), va="top", fontsize=CAPTION_SIZE)
    text.set_parse_math(False)
    return figure


def _broken(line: str, width: float) -> list[str]:
    """A line in parts no wider than so many points, where its words allow it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=CAPTION_SIZE)

    def wide(text: str) -> float:
        return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]

    parts, indent = [""], "    "
    for word in line.split():
        longer = f"{parts[-1]} {word}" if parts[-1].strip() else f"{parts[-1]}{word}"
        if parts[-1].strip() and wide(longer) > width:
            longer = indent + word
            parts.append("")
        parts[-1] = longer
    return parts


def save(
    figure: Any, path: pathlib.Path, formats: Sequence[str] = ("png", "svg")
) -> None:
    """Writes a figure in several formats beside each other and closes it.

    Text below the figure, from `caption`, belongs to it.

    Raises:
      ValueError: the path is an address.
      OSError: a file cannot be written; names it.
    """
    from matplotlib import pyplot

    path = errors.on_disk("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        page = _page(figure)
        for suffix in formats:
            # No date in the file: the same figure makes the same bytes.
            metadata = {"Date": None} if suffix == "svg" else None
            target = path.with_suffix(f".{suffix}")
            figure.savefig(target, dpi=150, metadata=metadata, bbox_inches=page)
    except OSError as error:
        reason = error.strerror or error
        failed = OSError(f"cannot write {target}: {reason}")
        failed.errno = error.errno
        raise failed from error
    finally:
        pyplot.close(figure)


def _page(figure: Any) -> Any:
    """What is written of a figure, in inches: all of it, with the text below; or None."""
    from matplotlib.transforms import Bbox

    page = figure.bbox_inches
    boxes = [text.get_window_extent() for text in figure.texts]
    bottom = min((box.y0 / figure.dpi for box in boxes), default=0.0)
    if bottom >= page.y0:
        return None
    # A legend outside of the axes would go to the lower end of what is written.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    return Bbox.from_extents(page.x0, bottom - 0.08, page.x1, page.y1)
