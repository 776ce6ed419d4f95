"""API pages of the site, written from docstrings: one for each public module.

Docstrings of this package are Markdown in Google's sections, so they become MyST pages as
they stand: directives of Sphinx's Python domain around what they say. Sources are parsed,
never imported, so signatures read as they were written (`mask: Mask`, not `mask: Any`).

    pages = written()                     # {"lottery_jax.masks": "# ...", ...}
    write(folder)                         # these, and an index by groups of the face
"""

import ast
import copy
import functools
import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGE = "lottery_jax"
SECTIONS = (
    "Args",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Example",
    "References",
)
BENEATH = "Beneath the face"
_HEADING = re.compile(rf"({'|'.join(SECTIONS)}):")
_ENTRY = re.compile(r"(\*{0,2}\w[\w., *]*): ?(.*)", re.DOTALL)
_END = re.compile(r"([.;)]|://\S+)$")
_CODE = re.compile(r"(`[^`]*`)")


class Group(NamedTuple):
    """Modules that `lottery_jax/__init__.py` imports under one comment.

    Attributes:
      slug: the name of its page.
      title: what the comment says.
      modules: their full names, in order.
    """

    slug: str
    title: str
    modules: list[str]


@functools.cache
def sources() -> dict[str, pathlib.Path]:
    """The file of each public module, by its full name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = path
    return found


@functools.cache
def groups() -> list[Group]:
    """The groups of the face, and what of the package is in none of them."""
    found: list[Group] = []
    for line in sources()[PACKAGE].read_text().splitlines():
        if match := re.fullmatch(r"# (?!isort)(.*)\.", line):
            slug = re.split(r"[:,]", match[1])[0].lower().replace(" ", "-")
            found.append(Group(slug, match[1], []))
        elif match := re.fullmatch(r"from ([\w.]+) import (\w+) as \w+", line):
            name = f"{match[1]}.{match[2]}"
            if name in sources():
                found[-1].modules.append(name)
    faced = {name for group in found for name in group.modules}
    top = [name for name in sources() if name.count(".") == 1 and name not in faced]
    return [*found, Group("beneath", BENEATH, top)]


def below(package: str) -> list[str]:
    """The modules right beneath a package that are in no group."""
    own = {name for group in groups() for name in group.modules}
    inner = [name for name in sources() if name.rpartition(".")[0] == package]
    return [name for name in inner if name not in own]


# What a docstring says, as Markdown.


def prose(text: str) -> str:
    """Text of a docstring in Markdown: links are links, `a*b` and `<a>` are no markup."""
    parts = _CODE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<=\w)\*(?=\w)", r"\\*", parts[i])
        parts[i] = re.sub(r"<(?=[a-zA-Z/])", r"\\<", parts[i])
        parts[i] = re.sub(
            r"(?<![<(])(https?://[^\s,;)>]+[^\s,;)>.])", r"<\1>", parts[i]
        )
    return "".join(parts)


def _prose(lines: list[str]) -> str:
    """The same of many lines, all but the indented blocks of code."""
    return "\n".join(x if x.startswith("    ") else prose(x) for x in lines)


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The parts of a docstring: what stands first (under ""), then Google's sections."""
    title, lines = "", []
    for line in inspect.cleandoc(text).splitlines():
        if match := _HEADING.fullmatch(line):
            yield title, lines
            title, lines = match[1], []
        elif title and line and not line.startswith(" "):
            yield title, lines
            title, lines = "", [line]
        else:
            lines.append(line[2:] if title else line)
    yield title, lines


def entries(lines: list[str], named: bool = True) -> list[str]:
    """Paragraphs with hanging indents, one entry each.

    Without names a line goes on with the one before where that has no end.
    """
    found: list[list[str]] = []
    for line in lines:
        goes_on = found and not named and not _END.search(found[-1][-1])
        if line.startswith("  ") or (not line and found):
            found[-1].append(line[2:])
        elif goes_on:
            found[-1].append(line)
        elif line:
            found.append([line])
    return ["\n".join(own).rstrip() for own in found]


def _indented(text: str, by: str) -> str:
    return "\n".join(by + line if line else line for line in text.splitlines())


def _item(entry: str, named: bool, types: dict[str, str]) -> str:
    match = _ENTRY.fullmatch(entry) if named else None
    if match is None:
        return "- " + _indented(_prose(entry.splitlines()), "  ").lstrip()
    kind = f" ({_code(types[match[1]])})" if match[1] in types else ""
    name = re.sub(r"[\w.*]+", lambda m: _code(m[0]), match[1])
    body = _indented(_prose(match[2].splitlines()), "  ").lstrip()
    return f"- {name}{kind}: {body}"


def _code(text: str) -> str:
    return f"`{text}`"


def _section(title: str, lines: list[str], types: dict[str, str]) -> str:
    if title == "Example":
        code = "\n".join(lines).strip("\n")
        language = "pycon" if code.lstrip().startswith(">>>") else "python"
        if not re.match(r"(>>>|import|from|\w+ =|\w+\(|@|with|for|def)", code):
            body = _prose(lines).strip("\n")
        else:
            body = f"```{language}\n{code}\n```"
    elif title in ("Returns", "Yields"):
        body = _prose(lines).strip("\n")
    else:
        named = title != "References"
        body = "\n".join(_item(x, named, types) for x in entries(lines, named))
    return f":{title}:\n{_indented(body, '    ')}\n"


def markdown(text: str, types: dict[str, str] | None = None) -> str:
    """A docstring as a MyST fragment; `types` are those of the fields it lists."""
    parts = []
    for title, lines in sections(text):
        own = _section(title, lines, types or {}) if title else _prose(lines)
        parts.append(own.strip("\n"))
    return "\n\n".join(part for part in parts if part)


def first_sentence(text: str) -> str:
    """What a docstring says before its first blank line."""
    return prose(" ".join(inspect.cleandoc(text).split("\n\n")[0].split()))


# What a module defines.


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
def _parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _imports(path: pathlib.Path) -> dict[str, str]:
    """What a module imports of this package: the full names, by those it has there."""
    return {
        own.asname or own.name: f"{node.module}.{own.name}"
        for node in _parsed(path).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
        for own in node.names
    }


@functools.cache
def _names(path: pathlib.Path) -> frozenset[str]:
    """The public names that a module defines itself, explained or not."""
    found: list[str] = []
    for node in _parsed(path).body:
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
    path = sources().get(module)
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
    body, full = _parsed(path).body, _Full(path)
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
    found = [full if full in sources() else origin(full) for full in own]
    return [name for name in found if name]


# Pages.


def _directive(own: Defined, module: str, depth: int = 6) -> str:
    fence = ":" * depth
    where = (f":module: {module}",) if depth == 6 else ()
    head = [f"{fence}{{py:{own.kind}}} {own.signature}", *where, *own.options]
    body = [
        markdown(own.doc, own.types),
        *(_directive(i, module, 5) for i in own.inner),
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(b for b in body if b) + f"\n{fence}"


def _listed(names: list[str], said: dict[str, str], short: bool = False) -> str:
    """Links to pages and to places on them, with what each says first."""
    rows = []
    for name in names:
        role = "mod" if name in sources() else "obj"
        title = name.rpartition(".")[2] if short else name
        rows.append(f"- {{py:{role}}}`{title} <{name}>`: {said[name]}")
    return "\n".join(rows)


def _toctree(names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])


def documented() -> dict[str, str]:
    """The first sentence of every public name and module, by its full name."""
    said = {}
    for module, path in sources().items():
        said[module] = first_sentence(ast.get_docstring(_parsed(path)) or "")
        for own in defined(path):
            said[f"{module}.{own.name}"] = first_sentence(own.doc)
            for inner in own.inner:
                said[f"{module}.{own.name}.{inner.name}"] = first_sentence(inner.doc)
    return said


def bare() -> list[str]:
    """Public names that no docstring explains: the build fails of them."""
    said = documented()
    return [name for name in said if not said[name] and not name.endswith("__call__")]


def page(module: str, said: dict[str, str]) -> str:
    """The page of one module, in MyST.

    Only modules of the face are in the site's tree: a tree of all of them would be resolved
    anew for every page. The others are reached from their package.
    """
    path, package = sources()[module], module.rpartition(".")[0]
    faced = any(module in group.modules for group in groups())
    doc = ast.get_docstring(_parsed(path)) or ""
    parts = [] if faced else ["---\norphan: true\n---"]
    parts += [f"# {module}", f"```{{py:module}} {module}\n```"]
    parts += [] if faced else [f"Part of {{py:mod}}`{package}`."]
    parts += [markdown(doc)]
    if names := [name for name in exported(path) if name in said]:
        parts += ["## What it offers", _listed(names, said, short=True)]
    if inner := below(module) if path.name == "__init__.py" else []:
        parts += ["## Its modules", _listed(inner, said)]
    own = defined(path)
    parts += ["## Defined here"] * bool(own and (names or inner))
    parts += [_directive(one, module) for one in own]
    return "\n\n".join(part for part in parts if part) + "\n"


def written() -> dict[str, str]:
    """All pages by name: modules, groups, and the index."""
    said, own = documented(), groups()
    pages = {name: page(name, said) for name in sources() if name != PACKAGE}
    for group in own:
        listed = _listed(group.modules, said)
        parts = (f"# {group.title}", listed, _toctree(group.modules))
        pages[group.slug] = "\n\n".join(parts) + "\n"
    doc = ast.get_docstring(_parsed(sources()[PACKAGE])) or ""
    head = f"# {PACKAGE}\n\n```{{py:module}} {PACKAGE}\n```\n\n{markdown(doc)}"
    links = "\n".join(f"- [{group.title}]({group.slug}.md)" for group in own)
    short = f"`lj.X` is `{PACKAGE}.X` for all of these:"
    pages["index"] = "\n\n".join((head, short, links)) + "\n"
    return pages


def write(folder: pathlib.Path) -> None:
    """Writes the pages; leaves a file that is as it should be, and removes strangers."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = written()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
