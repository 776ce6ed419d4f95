"""All stored results on a page, a card each: figure, claim, verdicts, command, device.

    python -m experiments.gallery            # writes docs/gallery.md
    python -m experiments.gallery --check    # exit status 1 if it is not what results say

Everything is read from the attributes of docs/results/NAME/results.nc, which the command
that made them has left there (`experiments.provenance`).
"""

import dataclasses
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import tyro

from experiments import launch, provenance, ticket
from experiments.all import EXPERIMENTS
from experiments.provenance import Provenance
from lottery_jax import errors, records

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"

PARTS: Mapping[str, str] = {
    one.name: one.about.splitlines()[0] for one in EXPERIMENTS
} | {"ticket": (ticket.__doc__ or "").splitlines()[0]}
"""The parts of the page, in its order: what an experiment is about, by its name."""

ABREAST = 2
"""Cards in a row: more would make figures too small to read."""

CLAIMS = 3
"""Claims on a card; the others are in the table of the run."""

_ABOUT = """\
# Gallery

Every stored result of the survey. A card says what its study claims (not what came out), \
what was found at how many places, by paired 95% intervals of single comparisons, and the \
command that makes it again. Minutes are those of the last call, on a machine that often \
did other things, too. What holds for all comparisons of a claim together is in the table \
behind each card, what it means in [results](results/README.md).

This page is written by `python -m experiments.gallery` from the attributes of each \
`results.nc`.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the gallery of all stored results, or checks that it is up to date."""

    docs: str = str(DOCS)
    """Folder with results/NAME/results.nc; gallery.md goes there."""
    check: bool = False
    """Writes nothing: exit status 1 if the page is not what the results say."""


class Card(NamedTuple):
    """A stored result.

    Attributes:
      name: of its folder in results/.
      said: what it says of itself.
      section: the anchor of what is written about it in results/README.md; "" for none.
    """

    name: str
    said: Provenance
    section: str


# --- what is there --------------------------------------------------------------------


def cards(docs: pathlib.Path) -> list[Card]:
    """All stored results, in the order of the survey.

    Args:
      docs: the folder that holds results/.

    Raises:
      ValueError: there are no results, or some that are damaged, do not say what made
        them, or have no figure; names the folder.
    """
    results = docs / "results"
    folders = sorted(path for path in results.glob("*") if path.is_dir())
    if not folders:
        must = "a folder with results/NAME/results.nc"
        raise errors.wrong("docs", repr(str(docs)), must)
    readme = results / "README.md"
    about = sections(readme.read_text()) if readme.is_file() else {}
    found = [Card(path.name, said(path), about.get(path.name, "")) for path in folders]
    parts, order = list(PARTS), {one.name: list(one.presets) for one in EXPERIMENTS}

    def place(card: Card) -> tuple[int, int]:
        presets, own = order.get(card.said.experiment, []), card.said.preset
        last = presets.index(own) if own in presets else len(presets)
        return parts.index(card.said.experiment), last

    return sorted(found, key=place)


def said(folder: pathlib.Path) -> Provenance:
    """What the results in a folder say of themselves; that it suffices for a card.

    Raises:
      ValueError: it does not; names the folder, and what is missing.
    """
    import h5netcdf
    import xarray as xr

    path = folder / "results.nc"
    if not path.is_file():
        raise ValueError(f"{folder} holds no results.nc")
    try:
        # Attributes alone: to look at every variable of every result takes its time.
        with h5netcdf.File(path, "r") as stored:
            found = provenance.read(xr.Dataset(attrs=dict(stored.attrs)))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if found.experiment not in PARTS or not (found.command and found.shows):
        raise ValueError(
            f"{path} does not say what made it: it has no attributes of a finished command"
        )
    lead = found.figures[0] if found.figures else ""
    if not (lead and (folder / f"{lead}.png").is_file()):
        raise ValueError(
            f"{folder} has no figure{f' {lead}.png' if lead else ''}: put there what the "
            "run has in figures/"
        )
    return found


def sections(text: str) -> dict[str, str]:
    """Where results are written about: anchors of headings, by the names of folders.

    Args:
      text: Markdown with a section for each, which links to files of its folder.
    """
    found: dict[str, str] = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        heading = part.partition("\n")[0]
        for name in re.findall(r"\]\(([\w.-]+)/", part):
            found.setdefault(name, anchor(heading))
    return found


def anchor(heading: str) -> str:
    """The anchor that GitHub, and MyST after it, gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# --- the page -------------------------------------------------------------------------


def page(found: Sequence[Card]) -> str:
    """The page as Markdown, for GitHub and for Sphinx.

    Args:
      found: in the order of the survey.
    """
    parts = [_ABOUT]
    for name, own in itertools.groupby(found, lambda card: card.said.experiment):
        parts.append(f"## {heading(PARTS[name])}\n")
        row = list(own)
        parts += [
            table(row[i : i + ABREAST]) + "\n" for i in range(0, len(row), ABREAST)
        ]
    return "\n".join(parts)


def heading(about: str) -> str:
    """What an experiment is about as a heading: without a full stop, but for "et al."."""
    return re.sub(r"(?<!\bal)\.$", "", about)


def table(row: Sequence[Card]) -> str:
    """Cards side by side, the columns of a table; of a single one figure and text."""
    head, *lines = zip(*map(cells, row))
    if len(row) < ABREAST:
        (figure,), *text = lines
        head, lines = (*head, ""), [(figure, "<br><br>".join(line for (line,) in text))]
    rule = ("---",) * ABREAST
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def cells(card: Card) -> Iterator[str]:
    """A card, line by line."""
    said, folder = card.said, f"results/{card.name}"
    lead = said.figures[0]
    links = [f"[table]({folder}/table.md)", f"[numbers]({folder}/results.nc)"]
    if card.section:
        links.insert(0, f"[what it means](results/README.md#{card.section})")
    took = "" if said.minutes is None else f", {minutes(said.minutes)}"
    yield said.title
    yield f"![{lead.replace('_', ' ')} of {said.title}]({folder}/{lead}.png)"
    yield _plain(claim(said.shows))
    yield "<br>".join(map(_plain, verdicts(said.claims)))
    yield f"`{said.command}`"
    yield _plain(re.sub(r"(\w+) \(\1\)", r"\1", said.device)) + took
    yield " · ".join(links)


def claim(shows: str) -> str:
    """The first sentence of what a preset shows: what its study claims."""
    return re.split(r"(?<=[^.]{3}\.) (?=[A-Z0-9])", shows, maxsplit=1)[0]


def verdicts(claims: Sequence[str]) -> list[str]:
    """The first claims and how often each holds, a line each, without corrections."""
    # The last line says what all rest on, in a sentence.
    made = [
        re.sub(r" \([^)]*\)$", "", line) for line in claims if not line.endswith(".")
    ]
    if not made:
        return ["no verdict recorded"]
    left = len(made) - CLAIMS
    more = [f"and {left} more claim{'s' * (left > 1)}"] if left > 0 else []
    return made[:CLAIMS] + more


def minutes(time: float) -> str:
    """Minutes, to as many digits as are worth it."""
    return f"{time:.1f} minutes" if time < 9.95 else f"{time:.0f} minutes"


def _plain(text: str) -> str:
    """Text for a cell of a table, which a bar would end."""
    return text.replace("|", "\\|")


# --- the command ----------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status.

    Args:
      arguments: None for those of the command line.

    Raises:
      SystemExit: help was asked for, or the arguments are wrong; says how.
    """
    program = "python -m experiments.gallery"
    options = tyro.cli(Options, args=arguments, prog=program, description=__doc__)
    docs = pathlib.Path(options.docs)
    path, stale = docs / "gallery.md", False

    def work() -> None:
        nonlocal stale
        text = page(cards(docs))
        if not options.check:
            records.write_text(path, text)
        elif not path.is_file() or path.read_text() != text:
            stale = True
            print(f"{path} is not what the results say; {program} writes it anew")

    return launch.guarded(work) or int(stale)


if __name__ == "__main__":
    sys.exit(main())
