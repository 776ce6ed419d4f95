"""The documentation site: `make docs` builds it from this folder, without a network.

What is written elsewhere comes in here: API pages from docstrings (`ext/pages.py`), and
notebooks as they are stored. Nothing is executed.
"""

import pathlib
import shutil
import sys
from importlib.metadata import version as version_of

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "ext"))

import pages  # noqa: E402
from sphinx.util import logging  # noqa: E402

project = "lottery_jax"
author = copyright = "the authors of lottery_jax"
release = version = version_of("lottery-jax")

extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "repository"]
exclude_patterns = ["_build", "ext"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # from a network, and no page shows a widget
myst_enable_extensions = ["colon_fence", "fieldlist", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
python_maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "lottery_jax"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "collapse_navigation": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": False,
    "use_repository_button": False,
}


def _notebooks(folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    for path in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        shutil.copy2(path, folder / path.name)


def _generate(app) -> None:
    for name in pages.bare():
        logging.getLogger(__name__).warning("%s has no docstring", name)
    source = pathlib.Path(app.srcdir)
    pages.write(source / "api")
    _notebooks(source / "notebooks")


def setup(app) -> None:
    """Pages that are written elsewhere are there before Sphinx looks for any."""
    app.connect("builder-inited", _generate)
