"""Masks and tickets that show themselves: as text, as HTML, inside of treescope."""

import base64
import html.parser
import re
import sys

import numpy as np
import pytest

from lottery_jax import plots, tickets

RNG = np.random.default_rng(0)
MASK = {
    "conv": {"kernel": RNG.random((3, 3, 2, 5)) < 0.3, "bias": np.ones(5, bool)},
    "head": {"kernel": RNG.random((200, 4)) < 0.1},
}


def pictures(text):
    """The PNGs in a page."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [base64.b64decode(one) for one in found]


class Cells(html.parser.HTMLParser):
    """The texts of a table by row; every tag that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag in ("br", "img"):
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_text_and_page_say_the_same_of_every_leaf():
    view = plots.shown(MASK)
    alive = MASK["conv"]["kernel"].sum() + MASK["head"]["kernel"].sum()
    first, head, *lines = repr(view).splitlines()
    assert first == f"mask: {alive} of 890 weights survive, {100 * alive / 890:.3g}%"
    rows = Cells(view._repr_html_()).rows
    assert head.split() == rows[0][:5]
    kernel = MASK["conv"]["kernel"]
    share = f"{100 * kernel.mean():.3g}%"
    assert rows[1][:5] == ["conv/bias", "5", "5", "5", "not counted"]
    assert rows[2][:5] == ["conv/kernel", "3x3x2x5", str(kernel.sum()), "90", share]
    for line, row in zip(lines, rows[1:], strict=True):
        assert line.split() == " ".join(row[:5]).split()


def test_pictures_are_the_masks():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    import io

    page = plots.shown({"kernel": MASK["head"]["kernel"][:50]})._repr_html_()
    (one,) = pictures(page)
    dark = pyplot.imread(io.BytesIO(one)).mean(axis=-1) < 1
    np.testing.assert_array_equal(dark, MASK["head"]["kernel"][:50].T)
    # What has many inputs is small all the same; a leaf that does not count has none.
    large, small = (pyplot.imread(io.BytesIO(x)) for x in pictures(view_of(MASK)))
    assert small.shape[:2] == (4, 67) and large.shape[:2] == (5 * 4 - 1, 2 * 4 - 1)


def view_of(mask, **options):
    return plots.shown(mask, **options)._repr_html_()


def test_a_ticket_says_what_it_is_and_which_leaves_count():
    metadata = {"model": "lenet", "task": "<mnist>", "level": 3}
    metadata["prunable"] = ["head/kernel"]
    view = plots.shown(tickets.Ticket(MASK, MASK, {}, metadata))
    assert view.summary.startswith("ticket of lenet on <mnist>, level 3: ")
    assert [leaf.counted for leaf in view.leaves] == [False, False, True]
    page = view._repr_html_()
    assert "<mnist>" not in page and "&lt;mnist&gt;" in page
    only = plots.shown(
        MASK, {"conv": {"kernel": True, "bias": True}, "head": {"kernel": 0}}
    )
    assert [leaf.counted for leaf in only.leaves] == [True, True, False]


def test_nothing_and_empty_leaves_are_shown():
    empty = {
        "kernel": np.zeros((3, 4), bool),
        "none": {"kernel": np.zeros((0, 4), bool)},
    }
    assert "0 of 12 weights survive, 0%" in repr(plots.shown(empty))
    assert len(pictures(view_of(empty))) == 1


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="leaf 'kernel'='?float64.*; it must be bool"):
        plots.shown({"kernel": np.ones((2, 2))})


def test_treescope_has_the_table_and_pictures_in_their_places():
    treescope = pytest.importorskip("treescope")
    tree = {"view": plots.shown(MASK), "mask": MASK, "weights": np.ones((2, 2))}
    plain = treescope.render_to_html(tree, compressed=False)
    assert "conv/kernel" in plain and "data:image/png" in plain
    assert plots.visualizer(tree["weights"], None) is None
    assert plots.visualizer(MASK["conv"]["bias"], None) is None
    with treescope.active_autovisualizer.set_scoped(plots.visualizer):
        drawn = treescope.render_to_html(MASK, compressed=False)
    assert drawn.count("data:image/png") == 2
    text = treescope.render_to_text(plots.shown(MASK))
    assert "conv/kernel" in text


def test_neither_matplotlib_nor_treescope_is_needed_for_a_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "treescope", None)
    assert len(pictures(view_of(MASK))) == 2
    assert plots.visualizer(1.0, None) is None
    with pytest.raises(ImportError, match=r"pip install 'lottery-jax\[notebooks\]'"):
        plots.visualizer(MASK["head"]["kernel"], None)


def test_a_notebook_shows_the_page_and_a_terminal_the_text():
    core = pytest.importorskip("IPython.core.formatters")
    shown, _ = core.DisplayFormatter().format(plots.shown(MASK))
    assert shown["text/html"] == view_of(MASK)
    assert shown["text/plain"] == repr(plots.shown(MASK))
