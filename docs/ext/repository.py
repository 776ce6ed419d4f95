"""Pages that are read on GitHub too: their links to files of the repository, on the site.

A page of `docs/` links as GitHub wants it, by relative paths. Where such a path leaves the
folder, the site has something else in its place: the API page of a module, a notebook of
its own. Tables of results get the title that a page needs, and nothing is loaded from
another host: a badge is a link.
"""

import posixpath
import re

import source

_LINK = re.compile(r"\]\(((?:\.\./)+[^)\s#\\]+)((?:#[^)\s]*)?)\)")
_REMOTE_IMAGE = re.compile(r"!\[([^]]*)\]\(https?://[^)\s]+\)")
_TABLE = re.compile(r"results/([^/]+)/table")


def on_site(target: str, docname: str) -> str:
    """Where a relative link of a page leads on the site.

    Args:
      target: a path relative to the page, as GitHub has it.
      docname: the page, by its path in `docs/` without suffix.

    Returns:
      A path from the root of the site (`/api/lottery_jax.masks.md`), or the target where
      it needs no change.
    """
    here = posixpath.dirname(f"docs/{docname}")
    path = posixpath.normpath(posixpath.join(here, target))
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if path.endswith(".py") and module in source.modules():
        return f"/api/{module}.md"
    if path.startswith("notebooks/"):
        return f"/{path}"
    if docname.startswith("notebooks/"):  # they lie beside docs/, and here within it
        path = posixpath.normpath(posixpath.join("notebooks", target))
        return path.removeprefix("docs") if path.startswith("docs/") else target
    return target


def rewritten(text: str, docname: str) -> str:
    """The source of a page, as the site reads it."""
    text = _REMOTE_IMAGE.sub(r"\1", text)
    text = _LINK.sub(lambda m: f"]({on_site(m[1], docname)}{m[2]})", text)
    if match := _TABLE.fullmatch(docname):
        text = f"---\norphan: true\n---\n\n# {match[1]}: the table\n\n{text}"
    return text


def _read(app, docname: str, content: list[str]) -> None:
    content[0] = rewritten(content[0], docname)


def _foreign(app, env, node, contnode):
    """A name in an annotation that has no page here (`np.ndarray`) is plain text."""
    annotation = node.get("refdomain") == "py" and node.get("reftype") in (
        "class",
        "exc",
    )
    return contnode if annotation else None


def setup(app):
    """Connects both to Sphinx."""
    app.connect("source-read", _read)
    app.connect("missing-reference", _foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
