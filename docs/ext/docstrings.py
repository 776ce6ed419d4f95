"""What a docstring says, as Markdown.

Docstrings of this package are Markdown in Google's sections, so they become fragments of
MyST as they stand.
"""

import inspect
import re
from collections.abc import Iterator

SECTIONS = (
    "Args",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Example",
    "References",
)
_HEADING = re.compile(rf"({'|'.join(SECTIONS)}):")
_ENTRY = re.compile(r"(\*{0,2}\w[\w., *]*): ?(.*)", re.DOTALL)
_END = re.compile(r"([.;)]|://\S+)$")
_CODE = re.compile(r"(`[^`]*`)")


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
