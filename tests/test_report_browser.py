"""Reports in a real browser: they are drawn, fit a telephone, and change when asked to."""

import pathlib

import numpy as np
import pytest
import xarray as xr
from test_report import put, said, study

from experiments import pictures, report
from experiments.report import page

pytestmark = pytest.mark.slow

STORED = pathlib.Path(__file__).parent.parent / "docs" / "results"
TEXTS = "return [...document.querySelectorAll('#explorer {}')].map((x) => x.{})"
LOADED = "return performance.getEntriesByType('resource').map((one) => one.name)"


def curves(name):
    """An error over steps at levels 0 to 10; or 0 to 5, of two chains. It is the level."""
    levels = np.arange(11 if name == "ten" else 6)
    own = {"step": [100, 117190, 117191], "level": levels, "replica": np.arange(2)}
    own |= {} if name == "ten" else {"chain": ["imp", "one_shot"]}
    values = xr.DataArray(levels / 100.0, {"level": levels}, ["level"])
    values = values.expand_dims({dim: x for dim, x in own.items() if dim != "level"})
    return xr.Dataset({"train_error": values}, attrs=said())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports by name: of a study with pictures, of stored runs, of two side by side."""
    folder = tmp_path_factory.mktemp("reports")
    masks, random = [], np.random.default_rng(0).random((60, 20))
    for density in (1.0, 0.5, 0.1):
        masks.append(
            {name: random < density for name in ("dense_0/kernel", "head/kernel")}
        )
    results = study(**said()).assign(
        {name: (axes, x) for name, (axes, x) in pictures.of_masks([masks]).items()}
    )
    folders = {
        "study": [put(folder / "study", results)],
        "instability": [str(STORED / "instability-mnist1d")],
        "unlike": [str(STORED / "lenet-fashion"), str(STORED / "ticket-lenet-fashion")],
        "levels": [put(folder / name, curves(name)) for name in ("ten", "five")],
        "two": [str(STORED / "mnist1d"), str(STORED / "lenet-fashion")],
    }
    return {
        name: report.write(own, str(folder / f"{name}.html"))
        for name, own in folders.items()
    }


def show(browser, path, width):
    """Opens a page in a window of a width, and waits until its figures are drawn."""
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    wait(browser, figures)


def wait(browser, until):
    """Waits until something is so, which is asked again and again."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(until)


def figures(browser):
    """The figures as they are drawn, or nothing while one is not yet."""
    script = """
        const boxes = [...document.querySelectorAll("#explorer .chart")];
        const drawn = boxes.map((box) => box.querySelector("svg"));
        return drawn.every((svg) => svg) ? drawn.map((svg) => svg.outerHTML) : [];
    """
    return browser.execute_script(script)


def choose(browser, label, value):
    """Chooses in the first list of a name, and waits for the figure to change."""
    from selenium.webdriver.support.ui import Select

    before = figures(browser)
    (box, *_) = browser.find_elements(
        "css selector", f'label[data-of="{label}"] select'
    )
    Select(box).select_by_value(value)
    wait(browser, lambda b: figures(b) not in ([], before))
    return figures(browser)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["study", "instability", "two", "unlike", "levels"])
def test_pages_are_drawn_without_an_error_and_fit(name, width, browser, pages):
    show(browser, pages[name], width)
    assert browser.get_log("browser") == []
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, there = browser.execute_script(widths)
    assert needed <= there
    assert browser.execute_script(LOADED) == []
    several = name in ("two", "unlike", "levels")
    assert len(figures(browser)) == (2 if several else 1)
    inside = """return [...document.querySelectorAll("svg.marks")].every(
        (svg) => svg.getBoundingClientRect().right
            <= svg.closest(".chart").getBoundingClientRect().right)"""
    assert browser.execute_script(inside)


def test_what_is_drawn_is_what_is_chosen(browser, pages):
    show(browser, pages["instability"], 1280)
    assert "lii (points)" in choose(browser, "quantity", "lii")[0]
    assert "rewind step" in figures(browser)[0]
    focused = "return document.activeElement.closest('label').dataset.of"
    assert browser.execute_script(focused) == "quantity"  # whoever uses the keyboard
    choose(browser, "quantity", "error")
    choose(browser, "schedule", "restarted")
    before = figures(browser)
    browser.find_element("css selector", "#explorer fieldset input").click()
    wait(browser, lambda b: figures(b) not in ([], before))
    values = browser.find_elements("css selector", "#explorer tbody tr")
    assert len(values) == 4 * 30  # one of five lines is not shown
    assert browser.get_log("browser") == []


def table(browser):
    """The cells of the table of values, row by row."""
    script = """return [...document.querySelectorAll("#explorer tbody tr")].map(
        (row) => [...row.cells].map((cell) => cell.textContent))"""
    return browser.execute_script(script)


def choose_alone(browser, label, value):
    """Chooses where one of two figures has nothing to draw; what is written there then."""
    from selenium.webdriver.support.ui import Select

    box = browser.find_element("css selector", f'label[data-of="{label}"] select')
    Select(box).select_by_value(value)
    said = TEXTS.format(".missing", "textContent")
    wait(browser, lambda b: b.execute_script(said))
    return browser.execute_script(said)


def test_a_run_that_lacks_a_place_says_so_and_draws_no_other(browser, pages):
    show(browser, pages["levels"], 1280)
    choose(browser, "lines", "")
    controls = TEXTS.format("label", "dataset.of")
    assert "chain" in browser.execute_script(controls)  # the second run's alone
    levels = TEXTS.format("label[data-of=level] option", "value")
    assert browser.execute_script(levels) == [str(level) for level in range(11)]
    # At first a level that both have is shown.
    rows = table(browser)
    assert {row[-4] for row in rows} == {"5"} and len(rows) == 3 + 3
    assert {row[-5] for row in rows} == {"100", "117190", "117191"}
    assert choose_alone(browser, "level", "10") == ["No level 10 in these results."]
    rows = table(browser)
    assert {row[-4] for row in rows} == {"10"} and len(rows) == 3
    choose(browser, "level", "3")
    assert choose_alone(browser, "across", "chain") == ["These results have no chain."]
    assert browser.get_log("browser") == []


def test_the_slider_shows_the_mask_of_a_level(browser, pages):
    show(browser, pages["study"], 390)
    dark = """
        const canvas = document.querySelector("#mask-pictures canvas");
        const own = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let sum = 0;
        for (let i = 0; i < own.data.length; i += 4) sum += 255 - own.data[i];
        return sum / 244 / (own.data.length / 4);
    """
    slide = """
        const slider = document.querySelector("#mask-pictures input");
        slider.value = arguments[0];
        slider.dispatchEvent(new Event("input"));
        return document.querySelector("#mask-pictures canvas").getAttribute("aria-label");
    """
    for at, density in enumerate((1.0, 0.5, 0.1)):
        label = browser.execute_script(slide, at)
        assert f"dense_0/kernel at level {at}" in label
        assert abs(browser.execute_script(dark) - density) < 0.05


def test_figures_are_valid_vega_lite():
    altair = pytest.importorskip("altair")
    chart = altair.LayerChart.from_dict(dict(page.SPEC))  # raises if it is none
    assert len(chart.layer) == 3
    with pytest.raises(pytest.importorskip("jsonschema").ValidationError):
        altair.LayerChart.from_dict(page.SPEC | {"layer": [{"mark": "no such mark"}]})
