"""The code of README and docs runs as printed, and what they name exists."""

import doctest
import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments import identity
from experiments.all import EXPERIMENTS
from lottery_jax import granularity, prune, transforms
from lottery_jax.dynamic import loops, pruning, regrowth, rules

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


BLOCKS = blocks(README)
# Those of the API are written by every build of the site, from docstrings.
PAGES = [p for p in sorted(ROOT.glob("docs/**/*.md")) if p.parent.name != "api"]
DOCS = [
    # What the pages show trains more than what the README shows.
    pytest.param(
        block,
        id=f"{path.relative_to(ROOT)}-{i}",
        marks=[pytest.mark.slow] * (path.parent != ROOT),
    )
    for path in [ROOT / "README.md", *PAGES]
    for i, block in enumerate(blocks(path.read_text()))
]


@pytest.mark.parametrize("block", DOCS)
def test_code_runs_as_printed(block, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),  # for `experiments`, which is no part of the package
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what runs once is compiled quickly
    }
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readme_has_its_three_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize(
    "document",
    [*sorted(ROOT.glob("*.md")), *PAGES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    "module",
    [granularity, prune, transforms, loops, pruning, regrowth, rules],
    ids=lambda module: module.__name__,
)
def test_the_examples_of_docstrings_run_as_printed(module):
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_every_experiment_and_preset_is_listed(experiment):
    page = (ROOT / "docs" / "presets.md").read_text()
    assert f"`{experiment.name}`" in README
    assert f"python -m experiments.{experiment.name}" in page
    for name in experiment.presets:
        assert f"`{name}`" in page, name


def test_every_notebook_is_in_the_readme():
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        assert f"notebooks/{path.name})" in README, path.name


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_the_docs_name_what_is_outside_of_the_identity(experiment):
    text = (ROOT / "docs" / "experiments.md").read_text()
    for name in identity.free(experiment.config):
        assert f"`{name}`" in text, name
