"""API pages of the site, written from docstrings: one for each public module.

Each is a page of MyST: directives of Sphinx's Python domain (what the sources define, by
`source`) around what their docstrings say (`docstrings`).

    pages = written()                     # {"lottery_jax.masks": "# ...", ...}
    write(folder)                         # these, and an index by groups of the face
"""

import ast
import functools
import pathlib
import re
from typing import NamedTuple

from docstrings import first_sentence, markdown
from source import PACKAGE, Defined, defined, exported, modules, parsed

BENEATH = "Beneath the face"


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
def groups() -> list[Group]:
    """The groups of the face, and what of the package is in none of them."""
    found: list[Group] = []
    for line in modules()[PACKAGE].read_text().splitlines():
        if match := re.fullmatch(r"# (?!isort)(.*)\.", line):
            slug = re.split(r"[:,]", match[1])[0].lower().replace(" ", "-")
            found.append(Group(slug, match[1], []))
        elif match := re.fullmatch(r"from ([\w.]+) import (\w+) as \w+", line):
            name = f"{match[1]}.{match[2]}"
            if name in modules():
                found[-1].modules.append(name)
    faced = {name for group in found for name in group.modules}
    top = [name for name in modules() if name.count(".") == 1 and name not in faced]
    return [*found, Group("beneath", BENEATH, top)]


def below(package: str) -> list[str]:
    """The modules right beneath a package that are in no group."""
    own = {name for group in groups() for name in group.modules}
    inner = [name for name in modules() if name.rpartition(".")[0] == package]
    return [name for name in inner if name not in own]


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
        role = "mod" if name in modules() else "obj"
        title = name.rpartition(".")[2] if short else name
        rows.append(f"- {{py:{role}}}`{title} <{name}>`: {said[name]}")
    return "\n".join(rows)


def _toctree(names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])


def documented() -> dict[str, str]:
    """The first sentence of every public name and module, by its full name."""
    said = {}
    for module, path in modules().items():
        said[module] = first_sentence(ast.get_docstring(parsed(path)) or "")
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
    path, package = modules()[module], module.rpartition(".")[0]
    faced = any(module in group.modules for group in groups())
    doc = ast.get_docstring(parsed(path)) or ""
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
    pages = {name: page(name, said) for name in modules() if name != PACKAGE}
    for group in own:
        listed = _listed(group.modules, said)
        parts = (f"# {group.title}", listed, _toctree(group.modules))
        pages[group.slug] = "\n\n".join(parts) + "\n"
    doc = ast.get_docstring(parsed(modules()[PACKAGE])) or ""
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
