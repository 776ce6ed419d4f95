"""Every notebook runs from top to bottom."""

import pathlib

import pytest

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=folder).execute()
    printed = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert printed and not any(o.output_type == "error" for o in printed)


def test_there_are_notebooks():
    assert NOTEBOOKS
