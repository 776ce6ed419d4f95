"""Who imports whom: the order of the modules, and what a bare import costs."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lottery_jax"

# module: what it may import; also whatever those may import. A folder is one module.
ARROWS = {
    "errors": (),
    "types": ("errors",),
    "trees": ("types",),
    "keys": ("types", "errors"),
    "naming": (),
    # Splits that lie on no device, and means over what is seen of them part by part.
    "streams": ("types", "errors"),
    "means": ("types",),
    # The core: any pytree, any loop.
    "permutations": ("types",),
    "masks": ("trees", "naming", "permutations"),
    "scores": ("masks", "keys"),
    "selection": ("types",),
    "granularity": ("trees", "naming"),
    "prune": ("masks", "selection", "granularity"),
    "schedules": ("masks",),
    "optimizers": ("trees",),
    "transforms": ("prune", "scores", "schedules", "optimizers"),
    "dynamic": ("transforms", "units"),
    "at_init": ("prune", "scores", "schedules", "streams"),
    # The mask is what is trained.
    "supermask": ("prune", "scores"),
    # Where things run, and what lies in files.
    "convolution": ("types",),
    "activations": ("types",),
    "execution": ("convolution", "activations", "trees"),
    "disk": (),
    "storage": ("trees", "disk"),
    # How many runs are carried through time.
    "training": ("keys", "dynamic", "execution", "storage", "streams", "means"),
    # What is trained; independent of how, and of the methods.
    "data": ("keys", "permutations", "streams", "disk"),
    "units": ("trees",),
    "models": ("convolution", "activations", "data", "units"),
    "environments": ("keys", "trees"),
    "tasks": ("models", "masks", "environments", "means"),
    # Methods.
    "imp": ("training", "at_init"),
    "connectivity": ("training", "tasks", "units"),
    "strong": ("masks", "keys"),
    "transfer": ("imp",),
    "probes": ("training", "models"),
    "pretrained": ("training", "models", "storage"),
    # What is said of results, and networks put to use.
    "verdicts": ("types",),
    "ma": ("verdicts",),
    "sparse": ("models", "masks"),
    "compact": ("units", "sparse"),
    "pytorch": ("models", "masks", "storage"),
    # Arrays, and masks as they show themselves.
    "plots": ("masks",),
}

CORE = {"jax", "flax", "optax", "numpy", "scipy"}

# What `import lottery_jax` must not load, unless flax does anyway.
HEAVY = {
    "PIL",
    "array_record",
    "h5netcdf",
    "h5py",
    "huggingface_hub",
    "matplotlib",
    "mnist1d",
    "orbax",
    "pandas",
    "rich",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "torch",
    "tyro",
    "xarray",
}


def module_of(path):
    """The module that a file belongs to; a folder is one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files():
    found = sorted(PACKAGE.rglob("*.py"))
    assert found
    return found


def imported(tree, package="lottery_jax"):
    """(line, dotted name) of every import; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import by the full name"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def edges(source, own):
    """The other modules of this package that a source imports, anywhere in it."""
    for node, name in imported(ast.parse(source)):
        first, *rest = name.split(".")
        if first == "lottery_jax":
            assert rest, f"line {node.lineno}: import the module, not the package"
            if rest[0] != own:
                yield node.lineno, rest[0]


def reachable(module):
    found, left = set(), [module]
    while left:
        new = set(ARROWS[left.pop()]) - found
        found |= new
        left += new
    return found


def for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def heavy_at_the_top(source):
    """Packages outside the core that are imported when the module is."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef) or for_types_only(outer)
        for node in ast.walk(outer)
    }
    known = CORE | {"lottery_jax"} | set(sys.stdlib_module_names)
    return [
        (node.lineno, name)
        for node, name in imported(tree)
        if id(node) not in inside and name.split(".")[0] not in known
    ]


def test_the_table_has_no_cycle():
    for module in ARROWS:
        assert module not in reachable(module)


def test_every_module_is_in_the_table():
    there = {module_of(path) for path in files()} - {"__init__"}
    assert there <= set(ARROWS), f"say where in the order: {there - set(ARROWS)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_order(path):
    own, source = module_of(path), path.read_text()
    allowed = set(ARROWS) if own == "__init__" else reachable(own)
    wrong = [
        f"line {line}: {own} imports {other}"
        for line, other in edges(source, own)
        if other not in allowed and not other.startswith("__")
    ]
    assert not wrong, "\n".join(wrong)
    heavy = heavy_at_the_top(source)
    assert not heavy, f"import inside the function that needs it: {heavy}"
    names = [name.split(".")[0] for _, name in imported(ast.parse(source))]
    assert "experiments" not in names and "tests" not in names


def test_the_checks_can_fail():
    assert list(edges("from lottery_jax import imp", "masks")) == [(1, "imp")]
    inside = "def f():\n    from lottery_jax.imp import Plan"
    assert list(edges(inside, "masks")) == [(2, "imp")]
    assert "imp" not in reachable("masks") and "masks" in reachable("imp")
    assert heavy_at_the_top("if True:\n    import xarray as xr") == [(2, "xarray")]
    fine = "import os\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import xarray"
    assert heavy_at_the_top(fine) == []


_LOADED = """
import json, sys
import jax, flax, flax.linen, flax.nnx, optax
before = set(sys.modules)
import lottery_jax
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
print(json.dumps(len(jax._src.xla_bridge._backends)))
"""


def test_a_bare_import_loads_nothing_heavy_and_starts_no_backend():
    """Only what jax, flax and optax load themselves; devices can be set later."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    added, all_loaded, backends = map(json.loads, done.stdout.splitlines())
    assert "lottery_jax" in added
    assert not HEAVY & set(added)
    never = HEAVY - {"orbax", "rich", "safetensors"}  # flax may bring these
    assert not never & set(all_loaded)
    assert backends == 0
