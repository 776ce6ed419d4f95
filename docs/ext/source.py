"""What the modules of the package define.

Sources are parsed, never imported, so signatures read as they were written (`mask: Mask`,
not `mask: Any`).
"""

import ast
import copy
import functools
import inspect
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = "lottery_jax"


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """The file of each public module, by its full name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return found


class Defined(NamedTuple):
    """A public name, as its source has it.

    Attributes:
      kind: of Sphinx's Python domain: function, class, method, property, data ...
      name: without its module; a method's without its class.
      signature: name, parameters and result, or the name alone.
      doc: the docstring, "" without one.
      options: of the directive, one a line.
      types: those of the fields, as they are written.
      inner: methods of a class.
    """

    kind: str
    name: str
    signature: str
    doc: str
    options: tuple[str, ...] = ()
    types: dict[str, str] = {}
    inner: tuple["Defined", ...] = ()


def _public(name: str) -> bool:
    return not name.startswith("_")


def _decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {
        ast.unparse(own).split("(")[0].split(".")[-1] for own in node.decorator_list
    }


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


@functools.cache
def _imports(path: pathlib.Path) -> dict[str, str]:
    """What a module imports of this package: the full names, by those it has there."""
    return {
        own.asname or own.name: f"{node.module}.{own.name}"
        for node in parsed(path).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
        for own in node.names
    }


@functools.cache
def _names(path: pathlib.Path) -> frozenset[str]:
    """The public names that a module defines itself, explained or not."""
    found: list[str] = []
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found += [own.id for own in targets if isinstance(own, ast.Name)]
    return frozenset(name for name in found if _public(name))


@functools.cache
def origin(full: str) -> str | None:
    """Where a public name is defined that may have come through imports."""
    module, _, name = full.rpartition(".")
    path = modules().get(module)
    if path is None:
        return None
    if name in _names(path):
        return full
    there = _imports(path).get(name, full)
    return origin(there) if there != full else None


class _Full(ast.NodeTransformer):
    """Annotations name what a module imports of this package by where it is defined."""

    def __init__(self, path: pathlib.Path):
        self.imports = _imports(path)

    def _renamed(self, node: ast.expr) -> ast.expr:
        first, _, rest = ast.unparse(node).partition(".")
        if first not in self.imports:
            return node
        full = origin(".".join(part for part in (self.imports[first], rest) if part))
        return ast.parse(full, mode="eval").body if full else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._renamed(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._renamed(node)

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        for own in (*node.posonlyargs, *node.args, *node.kwonlyargs):
            own.annotation = own.annotation and self.visit(own.annotation)
        return node  # defaults stay as they are written


def _function(node: ast.FunctionDef, kind: str, full: _Full) -> Defined:
    marks = _decorators(node)
    arguments = full.visit(copy.deepcopy(node.args))
    returns = node.returns and ast.unparse(full.visit(copy.deepcopy(node.returns)))
    if kind == "method" and "staticmethod" not in marks:
        (arguments.posonlyargs or arguments.args).pop(0)
    result = f" -> {returns}" if returns else ""
    doc = ast.get_docstring(node) or ""
    if marks & {"property", "cached_property"}:
        options = (f":type: {returns}",) if returns else ()
        return Defined("property", node.name, node.name, doc, options)
    known = ("classmethod", "staticmethod")
    options = tuple(f":{mark}:" for mark in known if mark in marks)
    written = f"{node.name}({ast.unparse(arguments)}){result}"
    return Defined(kind, node.name, written, doc, options)


def _data(node: ast.stmt, after: ast.stmt | None) -> Iterator[Defined]:
    """An assignment that a string explains."""
    if isinstance(node, ast.AnnAssign):
        target, kind = node.target, (f":type: {ast.unparse(node.annotation)}",)
    elif isinstance(node, ast.Assign):
        target, kind = node.targets[0], ()
    else:
        return
    explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    if isinstance(target, ast.Name) and _public(target.id) and explained:
        doc = inspect.cleandoc(str(after.value.value))
        yield Defined("data", target.id, target.id, doc, kind)


def _class(node: ast.ClassDef, full: _Full) -> Defined:
    bases = {ast.unparse(own).split("[")[0].split(".")[-1] for own in node.bases}
    fields = [own for own in node.body if isinstance(own, ast.AnnAssign)]
    types = {
        own.target.id: ast.unparse(own.annotation)
        + (f" = {ast.unparse(own.value)}" if own.value else "")
        for own in fields
        if isinstance(own.target, ast.Name) and _public(own.target.id)
    }
    inner: list[Defined] = []
    for own, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(own, ast.FunctionDef):
            called = own.name == "__call__" and "Protocol" in bases
            if (_public(own.name) or called) and "overload" not in _decorators(own):
                inner.append(_function(own, "method", full))
        else:
            described = (d._replace(kind="attribute") for d in _data(own, after))
            inner.extend(described)
    kind = "exception" if node.name.endswith(("Error", "Warning")) else "class"
    doc = ast.get_docstring(node) or ""
    return Defined(kind, node.name, node.name, doc, (), types, tuple(inner))


def defined(path: pathlib.Path) -> list[Defined]:
    """What the source of a module defines in public, in its order."""
    body, full = parsed(path).body, _Full(path)
    found: list[Defined] = []
    for node, after in zip(body, [*body[1:], None]):
        if isinstance(node, ast.FunctionDef) and _public(node.name):
            if "overload" not in _decorators(node):
                found.append(_function(node, "function", full))
        elif isinstance(node, ast.ClassDef) and _public(node.name):
            found.append(_class(node, full))
        else:
            found.extend(_data(node, after))
    return found


def exported(path: pathlib.Path) -> list[str]:
    """Where the names are defined that a package's `__init__` offers as its own."""
    if path.name != "__init__.py":
        return []
    own = _imports(path).values()
    found = [full if full in modules() else origin(full) for full in own]
    return [name for name in found if name]
