"""The documentation site: nothing public is missing, it builds, and a browser shows it.

What builds it lies in `docs/`: `conf.py`, and in `ext/` what writes API pages and turns
links for GitHub into links of the site.
"""

import importlib.util
import pathlib
import re
import subprocess
import sys
import time

import pytest
from test_public import modules, public

ROOT = pathlib.Path(__file__).parent.parent
WIDTHS = (1280, 390)
LOOKED_AT = (
    "index.html",
    "survey/connectivity.html",
    "howto/model.html",
    "performance.html",
    "api/lottery_jax.prune.html",
    "results/README.html",
)


def loaded(name):
    """A module of `docs/ext`, which is no package."""
    sys.path.insert(0, str(ROOT / "docs" / "ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


docstrings = loaded("docstrings")
pages = loaded("pages")
source = loaded("source")
repository = loaded("repository")


@pytest.fixture(scope="module")
def api():
    return pages.written()


# --- nothing public is missing, without a build ----------------------------------------


def test_every_module_has_a_page_and_every_name_is_on_it(api):
    missing = []
    for module in modules():
        text = api["index" if module.__name__ == "lottery_jax" else module.__name__]
        for name, _ in public(module):
            own = name.removeprefix(f"{module.__name__}.").rpartition(".")[2]
            if not re.search(rf"^:+{{py:\w+}} {own}\b", text, re.MULTILINE):
                missing.append(name)
    assert not missing, "on no page of the API: " + ", ".join(missing)


def test_no_public_name_is_without_a_docstring():
    """The build warns of each, and warnings are errors there."""
    assert not pages.bare()


def test_every_module_can_be_reached(api):
    """From the index by groups, from a group by the tree, from a package by its list."""
    for module in source.modules():
        inside = [text for name, text in api.items() if name != module]
        assert module == "lottery_jax" or any(
            f"<{module}>`" in text for text in inside
        ), module


def test_pages_say_what_docstrings_say(api):
    """Nothing of a docstring is lost: each word of it is on the page."""
    import lottery_jax as lj

    for thing in (lj.prune.global_topk, lj.imp.Plan, lj.tasks.classification):
        words = set(re.findall(r"\w{3,}", thing.__doc__))
        text = api[thing.__module__]
        assert words <= set(re.findall(r"\w+", text)), thing


def test_the_check_can_fail(api):
    text = api["lottery_jax.prune"]
    assert re.search(r"^:+{py:function} global_topk\b", text, re.MULTILINE)
    assert not re.search(r"^:+{py:function} global_top\b", text, re.MULTILINE)


def test_a_docstring_is_markdown_in_sections():
    text = docstrings.markdown(
        """Does a*b*c.

        Args:
          a: first, of
            two lines.
          *rest: others.

        References:
          A and B, A title of
          two lines, 2020; https://example.org/x
          C, Another, 2021.
        """
    )
    assert text.startswith(r"Does a\*b\*c.")
    assert (
        ":Args:\n    - `a`: first, of\n      two lines.\n    - `*rest`: others." in text
    )
    assert "<https://example.org/x>" in text
    assert text.count("\n    - ") == 4


# --- links ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "docname", "there"),
    [
        ("../lottery_jax/keys.py", "gale", "/api/lottery_jax.keys.md"),
        (
            "../../notebooks/transfer.ipynb",
            "survey/transfer",
            "/notebooks/transfer.ipynb",
        ),
        ("../docs/imp.md", "notebooks/transfer", "/imp.md"),
        ("../lottery_jax/tasks/_texts.py", "gale", "../lottery_jax/tasks/_texts.py"),
        ("../imp.md", "survey/hypothesis", "../imp.md"),
    ],
)
def test_links_of_github_are_links_of_the_site(target, docname, there):
    assert repository.on_site(target, docname) == there


def test_nothing_is_loaded_for_a_badge():
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/x)"
    kept = repository.rewritten(badge, "notebooks/transfer")
    assert kept == "[Open in Colab](https://example.org/x)"


# --- built, and looked at -------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("sphinx_book_theme") is None:
        pytest.skip("needs the extra `docs`: sphinx and its theme")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "-d", str(built / "doctrees"), "docs", str(built / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return built / "html"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    loads = re.compile(
        r"<(?:script|img|link|iframe|source|video)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]+\""
    )
    for path in site.rglob("*.html"):
        remote = [
            x for x in loads.findall(path.read_text()) if 'rel="canonical"' not in x
        ]
        assert not remote, (path.name, remote)
    for path in site.glob("_static/**/*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_notebooks_are_there(site):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{path.stem}.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen(site, browser, width):
    # A window cannot be as narrow as a phone; what it shows can.
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for page in LOOKED_AT:
        browser.get((site / page).as_uri())
        assert browser.execute_script("return window.innerWidth") == width
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, page
        errors = [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]
        assert not errors, (page, errors)


@pytest.mark.slow
def test_the_search_finds_pages(site, browser):
    browser.get((site / "search.html").as_uri() + "?q=rewind")
    for _ in range(100):
        found = browser.execute_script(
            "return [...document.querySelectorAll('#search-results li a')]"
            ".map(a => a.getAttribute('href'))"
        )
        if any("imp.html" in str(link) for link in found):
            return
        time.sleep(0.1)
    pytest.fail(f"no page of pruning among {found}")
