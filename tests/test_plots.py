"""Figures show the numbers they are given."""

import errno

import numpy as np
import pytest

from lottery_jax import plots

pytest.importorskip("matplotlib")

DENSITY = np.array([1.0, 0.8, 0.64])


@pytest.fixture(autouse=True)
def closed():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def lines_of(figure):
    axes = figure.axes[0]
    return {
        container.get_label(): container.lines[0].get_xydata()
        for container in axes.containers
    }


def test_lines_are_means_and_bars_reach_from_minimum_to_maximum():
    values = np.array([[90.0, 80.0, np.nan], [92.0, 84.0, np.nan], [94.0, 94.0, 70.0]])
    figure = plots.against_density(
        DENSITY, {"ticket": values}, ylabel="accuracy (%)", title="title"
    )
    axes = figure.axes[0]
    expected = np.stack([[100, 80, 64], [92, 86, 70]], axis=1)
    np.testing.assert_allclose(lines_of(figure)["ticket"], expected)
    (bars,) = axes.containers[0].lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[90, 94], [80, 94], [70, 70]])
    assert axes.get_ylabel() == "accuracy (%)" and axes.get_title() == "title"
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert left > 100 > 64 > right  # density falls from left to right


def test_points_and_lines_without_a_number_are_left_out():
    values = np.array([[90.0, np.nan, 70.0]])
    figure = plots.against_density(
        DENSITY,
        {"ticket": values, "reinit": np.full((2, 3), np.nan)},
        ylabel="accuracy (%)",
    )
    found = lines_of(figure)
    np.testing.assert_allclose(found["ticket"], [[100, 90], [64, 70]])
    assert len(found["reinit"]) == 0


def test_arms_keep_their_colour_and_chains_their_line_style():
    values = {
        f"{chain}: {arm}": np.ones((2, 3))
        for chain in ("geometric", "one_shot")
        for arm in ("ticket", "random_mask")
    }
    figure = plots.against_density(DENSITY, values, ylabel="y")
    drawn = [c.lines[0] for c in figure.axes[0].containers]
    colors, styles = [x.get_color() for x in drawn], [x.get_linestyle() for x in drawn]
    ticket, random_mask = (plots.STYLES[n][0] for n in ("ticket", "random_mask"))
    assert colors == [ticket, random_mask] * 2
    assert styles == ["-", "-", "--", "--"]


def test_chains_of_one_arm_keep_apart_by_colour():
    values = {f"{chain}: ticket": np.ones((2, 3)) for chain in ("geometric", "linear")}
    figure = plots.against_density(DENSITY, values, ylabel="y")
    one, two = (c.lines[0].get_color() for c in figure.axes[0].containers)
    assert one != two


@pytest.mark.parametrize("low", [0.9, 0.64, 0.2, 0.01])
def test_axes_have_plain_ticks_within_the_densities(low):
    density = np.geomspace(1.0, low, 3)
    figures = [
        plots.against_density(density, {"ticket": np.ones((2, 3))}, ylabel="y"),
        plots.layer_densities(density, {"head": density}),
    ]
    for axis in [f.axes[0].xaxis for f in figures] + [figures[1].axes[0].yaxis]:
        ticks, (a, b) = axis.get_ticklocs(), sorted(axis.get_view_interval())
        assert len(ticks) >= 2 and a <= ticks.min() and ticks.max() <= b
        labels = [label.get_text() for label in axis.get_ticklabels()]
        np.testing.assert_allclose([float(x) for x in labels], ticks, rtol=0.01)
        assert len(axis.get_ticklocs(minor=True)) == 0


def test_a_short_axis_of_few_densities_names_these():
    for density in (np.array([0.4, 0.16]), np.array([0.95, 0.9, 0.85])):
        lines = {"ticket": np.ones((2, len(density)))}
        axis = plots.against_density(density, lines, ylabel="y").axes[0].xaxis
        np.testing.assert_allclose(sorted(axis.get_ticklocs()), 100 * density[::-1])


def test_a_single_level_is_seen():
    figure = plots.layer_densities(np.array([0.5]), {"head": np.array([0.4])})
    assert figure.axes[0].lines[0].get_marker() == "."
    left, right = figure.axes[0].get_xlim()
    assert left < 60 and right > 40


def test_every_line_may_have_densities_of_its_own():
    own = np.array([[1.0, 0.8], [1.0, 0.5]])
    values = {"a": np.ones((1, 2)), "b": np.zeros((1, 2))}
    found = lines_of(plots.against_density(own, values, ylabel="y"))
    np.testing.assert_allclose(found["a"][:, 0], [100, 80])
    np.testing.assert_allclose(found["b"][:, 0], [100, 50])


def test_a_path_reaches_down_to_zero_only_where_zero_means_something():
    alphas, values = np.linspace(0, 1, 5), {"return": np.full((2, 5), 100.0)}
    for from_zero in (True, False):
        figure = plots.along_path(
            alphas, values, ylabel="return (reward)", from_zero=from_zero
        )
        axes = figure.axes[0]
        assert axes.get_ylabel() == "return (reward)"
        assert (axes.get_ylim()[0] == 0) == from_zero


def test_better_values_of_a_plane_are_brighter():
    at, values = np.linspace(0, 1, 3), np.arange(9.0).reshape(3, 3)
    networks = np.array([[0, 0], [1, 0], [0, 1]])

    def best(better):
        figure = plots.loss_plane(
            at, at, values, networks, label="return (reward)", better=better
        )
        (filled,) = figure.axes[0].collections
        return filled.cmap(0.0 if better == "lower" else 1.0)

    # The brightest colour of viridis is its yellow.
    assert best("lower") == best("higher") and best("lower")[0] > 0.9
    with pytest.raises(ValueError, match="better='more'; it must be one of"):
        best("more")


def test_layers_are_drawn_in_percent_and_empty_ones_left_out():
    layers = {"dense": DENSITY**2, "head": np.array([1.0, 0.5, 0.0])}
    figure = plots.layer_densities(DENSITY, layers, "title")
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(drawn["dense"].get_ydata(), 100 * DENSITY**2)
    np.testing.assert_array_equal(drawn["head"].get_ydata(), [100, 50, np.nan])


@pytest.mark.parametrize("logarithmic, mean", [(True, 3.0), (False, 5.0)])
def test_errors_over_counts_are_averaged_as_their_axis_shows_them(logarithmic, mean):
    counts, values = np.array([4, 8]), np.array([[1.0, 2.0], [9.0, 2.0]])
    figure = plots.against(
        {"sums": (counts, values)},
        xlabel="candidates",
        ylabel="error",
        logarithmic=(False, logarithmic),
        second=("neurons", 2.0),
    )
    np.testing.assert_allclose(lines_of(figure)["sums"], [[4, mean], [8, 2]])
    axes = figure.axes[0]
    (bars,) = axes.containers[0].lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[1, 9], [2, 2]])
    assert axes.get_xscale() == "linear"
    assert axes.get_yscale() == ("log" if logarithmic else "linear")
    figure.canvas.draw()
    (above,) = axes.child_axes
    np.testing.assert_allclose(above.get_xlim(), 2 * np.array(axes.get_xlim()))
    assert above.get_xlabel() == "neurons"


def test_a_histogram_counts_what_is_positive_and_marks_a_place():
    values = {"few": np.array([0.0, 1e-3, 1.0]), "many": np.geomspace(0.01, 0.1, 50)}
    figure = plots.histogram(values, xlabel="x", ylabel="y", marks={"bound": 10.0})
    axes = figure.axes[0]
    heights = [patch.get_xy()[:, 1].max() for patch in axes.patches]
    assert heights[0] == 1 and heights[1] < 50
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == ["bound", "few", "many"]
    assert axes.lines[0].get_xdata()[0] == 10.0 and axes.get_xscale() == "log"


def test_files_are_written_the_same_each_time_and_figures_closed(tmp_path):
    from matplotlib import pyplot

    for folder in ("one", "two"):
        figure = plots.against_density(
            DENSITY, {"ticket": np.ones((2, 3))}, ylabel="y", baseline=1.0
        )
        plots.save(figure, tmp_path / folder / "figure")
    for name in ("figure.png", "figure.svg"):
        one, two = ((tmp_path / f / name).read_bytes() for f in ("one", "two"))
        assert len(one) > 1000 and one == two
    assert figure.number not in pyplot.get_fignums()


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "figure.png").mkdir()
    figure = plots.against_density(DENSITY, {"ticket": np.ones((2, 3))}, ylabel="y")
    with pytest.raises(OSError, match=r"cannot write .*figure.png") as error:
        plots.save(figure, tmp_path / "figure")
    assert error.value.errno == errno.EISDIR


def test_lines_over_any_quantity_rise_with_it():
    sizes = np.array([100, 400])
    values = {"one": np.array([[1.0, 2.0], [3.0, np.nan]]), "two": np.ones((1, 2))}
    figure = plots.against(
        {label: (sizes, y) for label, y in values.items()},
        xlabel="weights",
        ylabel="accuracy (%)",
        logarithmic=(True, False),
        ticks={100: "narrow", 400: "wide"},
        baseline=5.0,
        baseline_label="trained",
    )
    axes = figure.axes[0]
    np.testing.assert_array_equal(lines_of(figure)["one"], [[100, 2], [400, 2]])
    assert axes.get_xscale() == "log" and axes.get_xlim()[0] < 100
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["narrow", "wide"]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["trained", "one", "two"]


def test_named_rows_show_their_mean_from_the_first_at_the_top():
    values = {
        "first": np.array([10.0, 20.0, np.nan]),
        "second": np.array([30.0]),
        "none": np.array([np.nan]),
    }
    figure = plots.by_name(values, label="accuracy (%)", reference=10.0)
    axes = figure.axes[0]
    found = [container.lines[0].get_xydata()[0] for container in axes.containers]
    np.testing.assert_array_equal(found, [[15, 0], [30, 1]])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(values)
    assert {"15.0", "30.0"} <= {text.get_text() for text in axes.texts}


# --- tickets --------------------------------------------------------------------------


def image_of(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def test_a_mask_is_drawn_with_a_row_for_each_unit():
    mask = np.random.default_rng(0).random((7, 5)) < 0.4
    figure = plots.masks({"head/kernel": mask}, title="whose")
    axes = figure.axes[0]
    np.testing.assert_array_equal(image_of(axes), mask.T)
    assert f"{100 * mask.mean():.3g}% survive" in axes.get_title()
    assert "head/kernel\n7x5" in axes.get_title()
    assert figure.get_suptitle() == "whose" and len(figure.axes) == 1


def test_many_neighbours_are_drawn_as_one_by_their_share():
    mask = np.random.default_rng(0).random((1203, 10)) < 0.4
    picture = image_of(plots.masks({"a": mask}).axes[0])
    # Four inputs to a place; three are left for the last one.
    expected = [mask[i : i + 4].mean(axis=0) for i in range(0, 1203, 4)]
    np.testing.assert_allclose(picture, np.array(expected).T)


def test_kernels_lie_side_by_side_with_lines_between_them():
    mask = np.random.default_rng(0).random((3, 2, 4, 5)) < 0.5
    picture = image_of(plots.masks({"conv": mask}).axes[0])
    assert picture.shape == (5 * 4 - 1, 4 * 3 - 1)
    for unit in range(5):
        for channel in range(4):
            tile = picture[4 * unit : 4 * unit + 3, 3 * channel : 3 * channel + 2]
            np.testing.assert_array_equal(tile, mask[:, :, channel, unit])
    assert np.isnan(picture[3]).all() and np.isnan(picture[:, 2]).all()


def test_more_kernels_than_can_be_seen_are_drawn_by_their_share():
    mask = np.random.default_rng(0).random((3, 3, 150, 20)) < 0.5
    picture = image_of(plots.masks({"conv": mask}).axes[0])
    np.testing.assert_allclose(picture, mask.mean(axis=(0, 1)).T)


def test_no_masks_make_no_figure():
    with pytest.raises(ValueError, match="leaves={}; it must be some masks"):
        plots.masks({})


def test_receptive_fields_are_the_units_with_the_most_left_and_their_sum():
    rng = np.random.default_rng(0)
    mask, weights = rng.random((12, 9)) < 0.4, rng.normal(size=(12, 9))
    figure = plots.receptive_fields(mask, (2, 3, 2), weights=weights, number=4)
    *units, total, _ = figure.axes
    best = np.argsort(-mask.sum(axis=0), kind="stable")[:4]
    for axes, unit in zip(units, best, strict=True):
        assert axes.get_title() == f"unit {unit}: {mask[:, unit].sum()}"
        alive = mask[:, unit].reshape(2, 3, 2)
        field = np.where(alive, weights[:, unit].reshape(2, 3, 2), 0).sum(axis=-1)
        expected = np.where(alive.any(axis=-1), field, np.nan)
        np.testing.assert_allclose(image_of(axes), expected)
    counts = mask.reshape(2, 3, 2, 9).sum(axis=(2, 3))
    np.testing.assert_array_equal(image_of(total), counts)


def test_receptive_fields_on_a_line_are_rows_above_a_count():
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    figure = plots.receptive_fields(mask, (6,))
    above, below = figure.axes
    best = np.argsort(-mask.sum(axis=0), kind="stable")
    expected = np.where(mask.T[best], 1.0, np.nan)
    np.testing.assert_array_equal(image_of(above), expected)
    heights = [bar.get_height() for bar in below.patches]
    np.testing.assert_array_equal(heights, mask.sum(axis=1))


def test_receptive_fields_of_kernels_have_their_own_shape():
    rng = np.random.default_rng(0)
    mask, weights = rng.random((2, 3, 2, 9)) < 0.4, rng.normal(size=(2, 3, 2, 9))
    flat = {"weights": weights.reshape(12, 9), "number": 4}
    expected = plots.receptive_fields(mask.reshape(12, 9), (2, 3, 2), **flat).axes
    found = plots.receptive_fields(mask, weights=weights, number=4).axes
    for one, other in zip(found, expected, strict=True):
        assert one.get_title() == other.get_title()
        if one.images:
            np.testing.assert_array_equal(image_of(one), image_of(other))


@pytest.mark.parametrize(
    ("shape", "weights", "message"),
    [
        ((3, 3), None, r"shape=\(3, 3\); it must be the shape of 8 inputs"),
        ((2, 2, 1, 2), None, "one to three numbers"),
        (None, None, "shape=None; it must be the shape of 8 inputs"),
        ((8,), np.ones((8, 3)), r"weights.shape=\(8, 3\); it must be \(8, 2\)"),
    ],
)
def test_receptive_fields_that_do_not_fit_are_refused(shape, weights, message):
    with pytest.raises(ValueError, match=message):
        plots.receptive_fields(np.ones((8, 2), bool), shape, weights=weights)


def test_an_overview_has_a_row_for_each_layer():
    rng = np.random.default_rng(0)
    leaves = {"conv": rng.random((3, 3, 2, 5)) < 0.3, "head": rng.random((20, 4)) < 0.5}
    leaves["head"][:, 1] = False
    weights = {name: rng.normal(size=mask.shape) for name, mask in leaves.items()}
    figure = plots.overview(leaves, weights=weights, title="whose")
    drawn = [figure.axes[i : i + 3] for i in (0, 3)]
    for (picture, units, values), (name, mask) in zip(drawn, leaves.items()):
        assert picture.get_title().startswith(name)
        left = np.sort(mask.reshape(-1, mask.shape[-1]).sum(axis=0))[::-1]
        np.testing.assert_array_equal(units.patches[0].get_data().values, left)
        none = f"{(left == 0).sum()} of {len(left)} units have none"
        assert units.get_title() == none
        counted = sum(bar.get_height() for bar in values.patches)
        assert counted == mask.sum()
    assert len(plots.overview(leaves).axes) == 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"a": np.ones((2, 3))},
            r"weights\['a'\]=\(2, 3\); it must be an array of the",
        ),
        ({"b": np.ones((2, 2))}, r"weights\['a'\]='?none"),
    ],
)
def test_an_overview_of_what_does_not_fit_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        plots.overview({"a": np.ones((2, 2), bool)}, weights=weights)
    with pytest.raises(ValueError, match="leaves={}; it must be some masks"):
        plots.overview({})


LINES = [
    "matching dense: yes at 9 of 16 densities, no at 4, undecided at 3 (16 "
    "comparisons; after Bonferroni: yes 8, no 3), and on",
    "short",
    "costs $5 and $6 at 100%",
]


def six_lines():
    """A figure whose legend lies below its axes."""
    values = {f"line {i}": np.full((2, 3), float(i)) for i in range(6)}
    return plots.against_density(DENSITY, values, ylabel="y")


def test_a_caption_lies_below_all_else_and_is_no_wider_than_the_figure():
    figure = plots.caption(six_lines(), LINES)
    (text,) = figure.texts
    figure.draw_without_rendering()
    box = text.get_window_extent()
    assert box.y1 <= 0 < box.x0 and box.x1 <= figure.bbox.x1
    (legend,) = figure.legends
    for part in (figure.axes[0], legend):
        assert part.get_tightbbox().y0 >= 0
    # Broken between words, and nothing lost.
    written = text.get_text().split("\n")
    assert [line.startswith("    ") for line in written] == [False, True, False, False]
    assert " ".join(text.get_text().split()) == " ".join(LINES)


def test_a_saved_figure_is_as_much_longer_as_its_caption(tmp_path):
    from matplotlib import image

    plots.save(six_lines(), tmp_path / "bare")
    plots.save(plots.caption(six_lines(), []), tmp_path / "none")
    captioned = plots.caption(six_lines(), LINES)
    height = -captioned.texts[0].get_window_extent().y0 / captioned.dpi
    plots.save(captioned, tmp_path / "long")
    bare, long = (image.imread(tmp_path / f"{n}.png") for n in ("bare", "long"))
    assert bare.shape[:2] == (570, 900)
    assert long.shape[1] == 900 and long.shape[0] == pytest.approx(
        570 + 150 * (height + 0.08), abs=2
    )
    # What is drawn stays where it was, but for the hinting of its letters; the legend too.
    ink = [(x[:570, :, :3] < 0.9).any(axis=-1) for x in (bare, long)]
    rows = [x.any(axis=1)[470:] for x in ink]
    assert np.mean(rows[0] != rows[1]) < 0.1 and rows[0].any()
    assert (long[570:, :, :3] < 0.5).any()
    for suffix in ("png", "svg"):
        one, other = (tmp_path / f"{n}.{suffix}" for n in ("bare", "none"))
        assert one.read_bytes() == other.read_bytes()


# --- several panels -------------------------------------------------------------------


def test_panels_have_the_lines_of_their_own_and_one_legend():
    panels = {
        f"on {target}": plots.Panel(
            {
                label: np.full((2, 3), 10.0 * i + j)
                for j, label in enumerate(("native", "random ticket", "from b"))
            },
            {"dense": 55.0} if target == "b" else {},
        )
        for i, target in enumerate("abc")
    }
    figure = plots.panels_against_density(DENSITY, panels, ylabel="accuracy (%)")
    assert len(figure.axes) == 4 and not figure.axes[3].axison
    colors = []
    for i, axes in enumerate(figure.axes[:3]):
        assert axes.get_title() == f"on {'abc'[i]}"
        found = {c.get_label(): c.lines[0] for c in axes.containers}
        for j, line in enumerate(found.values()):
            expected = np.stack([100 * DENSITY, np.full(3, 10.0 * i + j)], axis=1)
            np.testing.assert_allclose(line.get_xydata(), expected)
        colors.append({name: line.get_color() for name, line in found.items()})
        dashed = [line for line in axes.lines if line.get_label() == "dense"]
        assert [line.get_ydata()[0] for line in dashed] == ([55.0] if i == 1 else [])
    # A name has one colour, and no two have the same; the control's is its own.
    assert colors[0] == colors[1] == colors[2]
    assert len(set(colors[0].values())) == 3
    assert colors[0]["random ticket"] == plots.STYLES["random_ticket"][0]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == ["dense", "from b", "native", "random ticket"]
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["accuracy (%)", ""]


def test_matrices_write_their_numbers_and_mark_cells():
    values = {
        "mean": np.array([[0.0, -1.26, np.nan], [2.5, 0.04, -0.5]]),
        "sparsest": np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    }
    sure = {"mean": np.array([[False, True, False], [True, False, False]])}
    figure = plots.matrices(
        values, rows=["a", "b_c"], columns=list("xyz"), label="points", marked=sure
    )
    mean, sparsest, bar = figure.axes
    written = {(t.get_position()[1], t.get_position()[0]): t for t in mean.texts}
    assert {place: text.get_text() for place, text in written.items()} == {
        (0, 0): "+0.0", (0, 1): "-1.3*", (1, 0): "+2.5*", (1, 1): "+0.0", (1, 2): "-0.5"
    }  # fmt: skip
    weights = {place: text.get_fontweight() for place, text in written.items()}
    assert {place for place, w in weights.items() if w == "bold"} == {(0, 1), (1, 0)}
    np.testing.assert_array_equal(
        mean.images[0].get_array().filled(np.nan), values["mean"]
    )
    # One scale for all, with white at 0.
    limits = {axes.images[0].get_clim() for axes in (mean, sparsest)}
    assert limits == {(-2.5, 2.5)}
    assert [text.get_text() for text in mean.get_yticklabels()] == ["a", "b c"]
    assert bar.get_ylabel() == "points"


def test_matrices_without_a_number_are_drawn():
    figure = plots.matrices(
        {"": np.full((1, 2), np.nan)}, rows=["a"], columns=["x", "y"], label="points"
    )
    assert not figure.axes[0].texts


def test_panels_share_their_axes_and_show_their_own_lines_and_levels():
    values = {
        name: np.array([[1.0, 2, 3], [3, 4, 5]]) + i for i, name in enumerate("ab")
    }
    panels = {
        name: plots.Panel({"ticket, at best": y}, {"dense": y.mean(), "other": 9.0})
        for name, y in values.items()
    }
    figure = plots.panels_against_density(
        DENSITY, panels, ylabel="y (%)", title="all", shared=True
    )
    one, two = figure.axes
    assert [axes.get_title() for axes in (one, two)] == ["a", "b"]
    assert one.get_ylim() == two.get_ylim() and one.get_ylabel() == "y (%)"
    for axes, y in zip((one, two), values.values()):
        (line,) = (container.lines[0] for container in axes.containers)
        np.testing.assert_allclose(line.get_ydata(), y.mean(axis=0))
        assert line.get_color() == plots.STYLES["ticket"][0]
        levels = [
            x.get_ydata()[0] for x in axes.lines if x.get_label() in panels["a"][1]
        ]
        assert levels == [y.mean(), 9.0]
    (legend,) = figure.legends
    shown = sorted(text.get_text() for text in legend.get_texts())
    assert shown == ["dense", "other", "ticket, at best"]


def test_rows_of_panels_have_an_axis_that_shows_all_of_them():
    panels = {
        str(i): plots.Panel({"ticket": np.array([[1.0, 2, 3]]) * 10**i})
        for i in range(5)
    }
    figure = plots.panels_against_density(
        DENSITY, panels, ylabel=["upper", "lower"], columns=3
    )
    grid = np.array(figure.axes).reshape(2, 3)
    assert [row[0].get_ylabel() for row in grid] == ["upper", "lower"]
    assert not grid[1, 2].axison
    for row, highest in zip(grid, (300, 30_000)):
        assert len({axes.get_ylim() for axes in row[:2]}) == 1
        assert row[0].get_ylim()[1] >= highest
    with pytest.raises(ValueError):
        plots.panels_against_density(DENSITY, panels, ylabel=["one"], columns=3)


@pytest.mark.parametrize("lowest", [None, 5.0])
def test_panels_that_share_an_axis_show_what_lies_highest_and_lowest(lowest):
    # The first panel alone would end at 60.
    far = {"a": np.full((2, 3), 60.0), "b": np.array([[90.0, 50, 10]] * 2)}
    panels = {name: plots.Panel({"ticket": y}) for name, y in far.items()}
    figure = plots.panels_against_density(
        DENSITY, panels, ylabel="y", shared=True, lowest=lowest
    )
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low <= 10 and high >= 90
        assert lowest in (None, low)


def test_what_lies_below_the_axes_of_panels_is_written_at_their_foot():
    panels = {"a": plots.Panel({"ticket": np.array([[90.0, 80, 10], [92, 84, 20]])})}
    (axes,) = plots.panels_against_density(
        DENSITY, panels, ylabel="y", lowest=50.0
    ).axes
    assert axes.get_ylim()[0] == 50
    assert [text.get_text() for text in axes.texts] == ["15.0 \N{DOWNWARDS ARROW}"]


def test_answers_are_words_in_cells_of_their_colour():
    grid = {"first": ["yes", "no"], "second": ["undecided", "secondary prize"]}
    figure = plots.answers({"a": grid, "b": grid}, ["41", "17"], xlabel="density (%)")
    for axes in figure.axes:
        cells = {t.get_text(): t.get_position() for t in axes.texts}
        assert cells == {
            "yes": (0, 0),
            "no": (1, 0),
            "undecided": (0, 1),
            "secondary\nprize": (1, 1),
        }
        for answer, bar in zip(sum(grid.values(), []), axes.patches):
            assert matplotlib_hex(bar.get_facecolor()) == plots.ANSWERS[answer]
        assert [t.get_text() for t in axes.get_xticklabels()] == ["41", "17"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first claim is at the top
    with pytest.raises(
        ValueError, match=r"grids\['a'\]\['x'\]=.*; it must be 2 answers"
    ):
        plots.answers({"a": {"x": ["yes"]}}, ["41", "17"], xlabel="")


def matplotlib_hex(color):
    from matplotlib.colors import to_hex

    return to_hex(color)


def test_panels_over_any_quantity_mark_their_own_places():
    x, y = np.array([1.0, 2.0, 8.0]), np.array([[90.0, 80, 70], [92, 84, 70]])
    panels = {
        "a": plots.Panel({"inherited": y}, {"dense": 91.0}),
        "b": plots.Panel({"inherited": y}),
    }
    figure = plots.panels_against(
        x,
        panels,
        xlabel="epoch",
        ylabel="accuracy (%)",
        logarithmic=True,
        marked={"b": [2.0, 3.0]},
        marked_label="here",
    )
    first, second = figure.axes
    drawn = second.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(drawn, [[1, 91], [2, 82], [8, 70]])
    at = [line.get_xdata()[0] for line in second.lines if line.get_linestyle() == ":"]
    assert at == [2.0, 3.0]
    assert not [line for line in first.lines if line.get_linestyle() == ":"]
    assert second.get_xscale() == "log" and second.get_xlabel() == "epoch"
    assert [t.get_text() for t in second.get_xticklabels()] == ["1", "2", "8"]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["dense", "inherited", "here"]


def test_heat_maps_share_one_scale_and_mark_places_on_their_axes():
    at = np.array([2.0, 4.0, 6.0])
    low, high = np.full((3, 3), 0.1), np.full((3, 3), 0.4)
    figure = plots.heat_maps(
        at, {"a": low, "b": high}, label="distance", axis="epoch", marked={"b": [4.0]}
    )
    first, second, bar = figure.axes
    assert [axes.images[0].get_clim() for axes in (first, second)] == [(0, 0.4)] * 2
    # Cells lie around their places, the first in the upper left corner.
    assert second.images[0].get_extent() == [1.0, 7.0, 7.0, 1.0]
    np.testing.assert_allclose(np.asarray(first.images[0].get_array()), low)
    assert not first.lines and len(second.lines) == 2
    assert second.lines[0].get_xdata()[0] == 4.0
    assert bar.get_ylabel() == "distance" and second.get_xlabel() == "epoch"


IOU = {"a": np.array([[1.0, 0.5], [0.5, 1.0]]), "all": np.array([[1.0, 0.2], [0.2, 1]])}
CHANCE = {name: np.array([[1.0, 0.1], [0.1, 1.0]]) for name in IOU}


def test_overlaps_are_coloured_by_how_far_they_lie_above_chance():
    figure = plots.overlaps(IOU, CHANCE, names=["x", "y"], title="whose")
    for axes, (layer, found) in zip(figure.axes, IOU.items()):
        assert axes.get_title() == layer
        picture = image_of(axes)
        np.testing.assert_allclose(picture[0, 1], 100 * found[0, 1] - 10)
        assert np.isnan(picture.diagonal()).all()
        texts = [text.get_text() for text in axes.texts]
        assert texts == [f"{100 * found[0, 1]:.0f}", "(10)"] * 2
        assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y"]
    scales = {axes.images[0].get_clim() for axes in figure.axes[:2]}
    assert len(scales) == 1


def test_many_masks_have_colours_alone():
    many = {"a": np.eye(9)}
    figure = plots.overlaps(many, many, names=list("abcdefghi"))
    assert not figure.axes[0].texts


def test_overlaps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"chance=\['a'\]; it must be matrices of"):
        plots.overlaps(IOU, {"a": CHANCE["a"]}, names=["x", "y"])
    with pytest.raises(
        ValueError, match=r"iou\['a'\].shape=\(2, 2\); it must be \(3, 3\)"
    ):
        plots.overlaps(IOU, CHANCE, names=["x", "y", "z"])


@pytest.mark.parametrize(
    "backend", ["agg", "module://matplotlib_inline.backend_inline"]
)
def test_a_notebook_keeps_its_own_way_of_showing_figures(backend, monkeypatch):
    import matplotlib

    pytest.importorskip("matplotlib_inline")
    monkeypatch.setenv("MPLBACKEND", backend)
    matplotlib.use(backend)
    plots.masks({"a": np.ones((2, 2), bool)})
    assert matplotlib.get_backend().lower() in (backend, "inline")
    matplotlib.use("agg")
