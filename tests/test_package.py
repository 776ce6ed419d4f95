"""What is installed is the package alone, and it needs only what it says it needs."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.version import Version

import lottery_jax

ROOT = pathlib.Path(__file__).parent.parent

OPTIONAL = (
    "xarray h5netcdf h5py safetensors tyro rich matplotlib mnist1d sklearn "
    "tensorflow_datasets array_record PIL importlib_resources tensorflow torch "
    "tokenizers"
)
"""What the extras bring; flax brings some of it too, and then it may be imported."""

PROBE = """
import importlib, json, pathlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import jax, flax, flax.linen, optax
blocked = set(sys.argv[2].split()) - {name.partition(".")[0] for name in sys.modules}
sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[1])
import lottery_jax
names = ["lottery_jax"]
names += [m.name for m in pkgutil.walk_packages(lottery_jax.__path__, "lottery_jax.")]
for name in names:
    importlib.import_module(name)

def error(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except ImportError as found:
        return str(found)

import numpy
from lottery_jax import checkpoints, data, plots, pytorch, records, tickets
ticket = tickets.Ticket({"w": numpy.ones(2, bool)}, {"w": numpy.ones(2)}, {}, {})
folder = pathlib.Path(sys.argv[1]) / "never"
vocabulary = pathlib.Path(sys.argv[1]) / "vocab.txt"
vocabulary.write_text("[UNK]\\n")
print(json.dumps({
    "blocked": sorted(blocked),
    "file": lottery_jax.__file__,
    "names": names,
    "errors": {
        "xarray": error(records.dataset, {}, {}, {}),
        "safetensors": error(tickets.save, folder / "ticket", ticket),
        "matplotlib": error(plots.against_density, numpy.ones(1), {}, ylabel="y"),
        "mnist1d": error(data.load, "mnist1d"),
        "sklearn": error(data.load, "digits"),
        "tokenizers": error(data.text.tokenizer, vocabulary),
        "torch": error(pytorch.write, folder / "w.pth", {}),
    },
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    ):
        shutil.copy(ROOT / name, copy)
    for name in ("lottery_jax", "experiments", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    command = [sys.executable, "-m", "build", "--sdist", "--wheel", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(folder / "dist"), str(copy)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What a process says that sees the wheel's files and none of the checkout's."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROBE, str(target), OPTIONAL],
        cwd=target,
        capture_output=True,
        text=True,
        env={"LOTTERY_JAX_CACHE": str(target / "cache"), "HOME": str(target)},
    )
    assert done.returncode == 0, done.stderr
    return target, json.loads(done.stdout)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lottery_jax"}
    own = {n for n in names if n.startswith("lottery_jax/")}
    sources = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "lottery_jax").rglob("*.py")
    }
    assert own == sources | {"lottery_jax/py.typed"}
    assert any(name.endswith("LICENSE") for name in names)


def test_the_source_distribution_holds_what_builds_the_wheel(wheel):
    (path,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names
    assert "lottery_jax/py.typed" in names and "lottery_jax/training/loop.py" in names
    kept = {name.split("/")[0] for name in names if name}
    assert not kept & {"tests", "experiments", "docs", "notebooks", "benchmarks"}


def test_the_version_is_the_same_wherever_it_stands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert lottery_jax.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+) ", changes, re.M)[0] == version


def test_the_oldest_versions_are_those_that_are_admitted():
    """What is tested as the oldest is what pyproject.toml asks for, package by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    admitted = dict(one.split(">=") for one in project["dependencies"])
    lines = (ROOT / "requirements.oldest").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert tested.pop("jaxlib") == tested["jax"]
    assert {name: Version(pin) for name, pin in tested.items()} == {
        name: Version(least) for name, least in admitted.items()
    }


def test_every_module_imports_without_the_extras(installed):
    target, found = installed
    assert pathlib.Path(found["file"]).parent.parent == target
    expected = sum(
        1
        for path in (target / "lottery_jax").rglob("*.py")
        if path.name != "__init__.py" or path.parent != target / "lottery_jax"
    )
    assert len(found["names"]) == expected + 1


def test_what_an_extra_brings_is_named_where_it_is_missed(installed):
    _, found = installed
    extra = {
        "xarray": "lottery-jax[results]",
        "safetensors": "lottery-jax[results]",
        "matplotlib": "lottery-jax[experiments]",
        "mnist1d": "lottery-jax[generated]",
        "sklearn": "lottery-jax[generated]",
        "tokenizers": "lottery-jax[text]",
        "torch": "lottery-jax[pytorch]",
    }
    assert set(extra) <= set(found["blocked"])
    for name, words in extra.items():
        assert found["errors"][name] and words in found["errors"][name], name
