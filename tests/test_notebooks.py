"""Notebooks: what is stored of them can be read as it is, and each runs from top to bottom."""

import ast
import json
import pathlib
import re
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
BESIDE = {"lottery_jax", "jax", "numpy", "optax", "xarray", "matplotlib"}
"""What notebooks import beside Python's own modules."""

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook, kind):
    cells = notebook["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def modules(code):
    """The modules that code imports, by their full names; lines of the shell left out."""
    for node in ast.walk(ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", code, flags=re.M))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def private(code):
    """Names that are no part of the public face."""
    tree = ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", code, flags=re.M))
    names = (n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute))
    return [n for n in names if n.startswith("_") and n not in ("_replace", "_asdict")]


def test_there_are_notebooks_for_the_whole_survey():
    asked = {"lottery_ticket", "linear_mode_connectivity", "supermasks", "transfer"}
    asked |= {"strong_ticket", "bert_tickets", "reinforcement", "explore_a_run"}
    assert asked <= {path.stem for path in PATHS}


@every
def test_what_is_stored_can_be_read_without_running(path):
    notebook = read(path)
    assert path.stat().st_size < 600_000
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds and {"stream", "display_data"} & kinds
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(o.get("name") == "stderr" for o in outputs), "a warning is stored"


@every
def test_what_is_stored_says_nothing_of_the_machine(path):
    notebook = read(path)
    assert set(notebook["metadata"]) == {"kernelspec"}
    assert not any(cell["metadata"] for cell in notebook["cells"])  # no times either
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?:/home/|/Users/|/tmp/|C:\\\\)[\w./-]*", text)
    assert not found and str(FOLDER.parent) not in text


@every
def test_a_notebook_begins_with_a_heading_and_is_ready_for_colab(path):
    notebook = read(path)
    first, second = notebook["cells"][:2]
    assert first["cell_type"] == "markdown"
    assert "".join(first["source"]).startswith("# ")
    code = "".join(second["source"])
    assert '"google.colab" in sys.modules' in code
    assert '%pip install --quiet "lottery-jax[experiments]"' in code


@every
def test_the_public_face_is_enough(path):
    for code in sources(read(path), "code"):
        for name in modules(code):
            package, *below = name.split(".")
            own = package not in sys.stdlib_module_names
            assert not own or package in BESIDE, name
            assert package != "lottery_jax" or not below, f"{name}: use lj"
        assert not private(code)


def test_links_lead_to_pages_that_are_there():
    for path in PATHS:
        for text in sources(read(path), "markdown"):
            for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
                assert (FOLDER / link).exists(), f"{path.name}: {link}"


def test_each_notebook_is_in_the_list_and_each_line_of_it_is_one():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.ipynb\)", text)) == {p.stem for p in PATHS}
    for path in PATHS:
        title = sources(read(path), "markdown")[0].splitlines()[0].removeprefix("# ")
        assert f"[{title}]({path.name})" in text


@pytest.mark.slow
@every
def test_notebook_runs(path):
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=folder).execute()
    printed = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert printed and not any(o.output_type == "error" for o in printed)


@every
def test_without_stored_results_a_notebook_says_what_to_do(path, tmp_path, capsys):
    """As on Colab; whatever reads what `stored` returns asks first whether it is there."""
    found = [c for c in sources(read(path), "code") if "def stored(" in c]
    read_there = [c for c in sources(read(path), "code") if "docs/results" in c]
    assert read_there == found and len(found) <= 1
    for code in found:
        function = code[code.index("def stored(") :].split("\n\n")[0]
        names = {"pathlib": pathlib}
        exec(function.replace("../docs", f"{tmp_path}/docs"), names)
        assert names["stored"]("mnist1d") is None
        said = capsys.readouterr().out
        assert "docs/results/mnist1d" in said and "mnist1d.nc" in said
