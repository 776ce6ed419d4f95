"""What a stored ticket is, printed and drawn; nothing is trained."""

import dataclasses
import hashlib
import json
import math
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from experiments import display
from experiments.display import Rows
from lottery_jax import errors, masks, plots, tickets, trees
from lottery_jax.types import Params

ABSENT = "not in the file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a ticket is: model, source, densities, verdicts; and its masks as pictures."""

    file: tyro.conf.Positional[str]
    """The ticket."""
    out: str | None = None
    """Folder of the pictures; by default results/ticket/NAME-HASH."""


def inspect(command: Inspect) -> None:
    """Prints what a ticket is and draws its masks.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no ticket, or not the one that was written.
    """
    path = errors.on_disk("file", command.file)
    found = contents(path)
    usual = pathlib.Path("results", "ticket", f"{path.stem}-{digest(path)[:8]}")
    folder = errors.on_disk("out", command.out or usual)
    display.show([], lines(path, found))
    display.show([layers(found)], [rest(found), ""])
    params = tickets.load(path).params if found.weights == "stored" else None
    names = []
    for name, figure in figures(found, params):
        plots.save(figure, folder / name, ("png",))
        names.append(name)
    said = [f"Figure: {folder / name}.png" for name in names]
    if "receptive_fields" not in names:
        said.append("No receptive fields: no layer is known to be the first.")
    display.show([], said)


def contents(path: pathlib.Path) -> tickets.Contents:
    """What a file says; errors name it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no ticket, or not the one that was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no ticket at {path}")
    found = tickets.contents(path)
    if not trees.paths(found.mask):
        raise ValueError(f"{path} holds no weights")
    return found


def digest(path: pathlib.Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- in words -------------------------------------------------------------------------


def lines(path: pathlib.Path, found: tickets.Contents) -> list[str]:
    """What a ticket is, a fact each, within 80 columns."""
    meta = found.metadata
    leaves = counted(found).values()
    alive, total = (
        sum(int(n) for n in x) for x in zip(*((m.sum(), m.size) for m in leaves))
    )
    held = "weights stored"
    if found.weights == "digest":
        held = "digests of its weights alone: tickets.load(start=) needs where they are"
    facts = {
        "ticket": f"{path.name}, {held}",
        "model": meta.get("model") or ABSENT,
        "data": _data(meta),
        "density": f"{100 * alive / total:.3g}% ({alive:,} of {total:,} weights)",
        "found by": _found(meta),
        "starts from": _start(meta),
        "training": _training(meta),
        "head": ", ".join(meta["head"]) or "none" if "head" in meta else ABSENT,
        "never cut": ", ".join(meta["exclude"]) or "none"
        if "exclude" in meta
        else ABSENT,
        "test": _test(meta),
        "verdicts": "; ".join(stored_verdicts(path, meta)),
        "written by": _versions(meta),
    }
    width = max(map(len, facts))
    return [
        textwrap.fill(
            f"{name:<{width}}  {text}", 79, subsequent_indent=" " * (width + 2)
        )
        for name, text in facts.items()
    ] + [""]


def _data(meta: Mapping[str, Any]) -> str:
    name = meta.get("task") or ABSENT
    if not (about := meta.get("dataset")):
        return f"{name}; its shape and statistics: {ABSENT}"
    shape = "x".join(map(str, about["shape"]))
    mean, std = (", ".join(f"{x:.4g}" for x in about[of]) for of in ("mean", "std"))
    parts = ", ".join(f"{number:,} {of}" for of, number in about["examples"].items())
    text = f"{name}: {shape}, {about['num_classes']} classes, mean {mean}, std {std}; "
    return text + parts + (f"; {about['note']}" if about["note"] else "")


def _training(meta: Mapping[str, Any]) -> str:
    text = meta.get("training", ABSENT)
    own = meta.get("chain", {}).get("hyper", {})
    return text + "".join(f"; here {name}={value:g}" for name, value in own.items())


def _found(meta: Mapping[str, Any]) -> str:
    text = meta.get("found", ABSENT)
    if "chain" in meta:
        text += f"; chain {meta['chain']['name']}"
    if "level" in meta:
        text += f", level {meta['level']}"
    experiment = meta.get("experiment")
    return f"{text}, of experiments.{experiment}" if experiment else text


def _start(meta: Mapping[str, Any]) -> str:
    if "rewind_step" not in meta:
        return ABSENT
    text = f"step {meta['rewind_step']}"
    init, start = meta.get("init"), meta.get("start")
    if start == "given":
        return f"{text} of weights that were given"
    if isinstance(init, Mapping) and {"seed", "replica"} <= init.keys():
        text += f" of the draw of seed {init['seed']}, replica {init['replica']}"
    if recipe := meta.get("recipe"):
        text += f" ({recipe['initializer']}, biases {recipe['bias']})"
    return text


def _test(meta: Mapping[str, Any]) -> str:
    names = [name for name in meta if name.startswith("test_")]
    if not names:
        return f"of the ticket and of the dense network: {ABSENT}"
    parts = []
    for name in names:
        own, dense = (_number(name, meta.get(of)) for of in (name, f"dense_{name}"))
        of = name.removeprefix("test_")
        parts.append(f"{of} {own}, of its dense network {dense}")
    return "; ".join(parts) + ("; it DIVERGED" if meta.get("diverged") else "")


def _number(name: str, value: float | None) -> str:
    """A stored number: errors in percent."""
    if value is None:
        return "unknown"
    return f"{100 * value:.2f}%" if name == "test_error" else f"{value:.4g}"


def _versions(meta: Mapping[str, Any]) -> str:
    if not (versions := meta.get("versions")):
        return ABSENT
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{text}; commit {meta.get('git_commit', ABSENT)}"


def stored_verdicts(path: pathlib.Path, meta: Mapping[str, Any]) -> list[str]:
    """The verdicts on a ticket's level, of the run folder that it still lies in.

    Verdicts are of all replicas of a run, and so belong to it and not to one ticket.
    """
    chain, level = meta.get("chain", {}).get("name"), meta.get("level")
    if (
        chain is None
        or level is None
        or path.resolve().parent.parts[-2:] != ("tickets", chain)
    ):
        return [f"{ABSENT}: they are of a run, and it lies in none; verify makes some"]
    for folder in path.resolve().parents:
        if (folder / "config.json").is_file() and (folder / "verdicts.json").is_file():
            every = json.loads((folder / "verdicts.json").read_text())
            mine = [one for one in every if _is_of(one, chain, level)]
            return [_answer(one) for one in mine] or ["none of this level in its run"]
    return [f"{ABSENT}: they are of its run, which has none yet"]


def _is_of(one: Mapping[str, Any], chain: str, level: int) -> bool:
    return one.get("level") == level and one.get("chain", chain) == chain


def _answer(one: Mapping[str, Any]) -> str:
    verdict = one["verdict"]
    return f"{one['claim']}: {verdict['answer']} (n = {verdict['n']})"


def layers(found: tickets.Contents) -> Rows:
    """The densities of the leaves that count."""
    rows = []
    for name, mask in counted(found).items():
        share = f"{100 * mask.mean():.3g}" if mask.size else "-"
        numbers = [f"{mask.size:,}", f"{int(mask.sum()):,}", share]
        rows.append([name, "x".join(map(str, mask.shape)), *numbers])
    header = ["layer", "shape", "weights", "survive", "density %"]
    return Rows("Leaves that count in the density", header, rows)


def rest(found: tickets.Contents) -> str:
    """What there is beside the leaves that count, and how it is known which these are."""
    own, every = counted(found), trees.by_path(found.mask)
    number = sum(mask.size for name, mask in every.items() if name not in own)
    text = f"{len(every) - len(own)} more that do not count, {number:,} numbers."
    if "prunable" not in found.metadata:
        text += f"\nWhich ones count is {ABSENT}: told by their names."
    return text


def counted(found: tickets.Contents) -> dict[str, np.ndarray]:
    """The masks of the leaves that count, by key path."""
    leaves = trees.by_path(found.mask)
    known = found.metadata.get("prunable")
    if known is not None:
        return {name: leaves[name] for name in known if name in leaves}
    try:
        flags = masks.resolve(found.mask)
    except ValueError:  # names that do not settle it
        flags = [not leaf.all() for leaf in leaves.values()]
    own = {name: leaf for take, (name, leaf) in zip(flags, leaves.items()) if take}
    return own or leaves


# --- in pictures ----------------------------------------------------------------------


def title(found: tickets.Contents) -> str:
    """For figures: which ticket it is."""
    meta = found.metadata
    names = [f"{meta.get('model') or 'a network'} on {meta.get('task') or 'data'}"]
    if "level" in meta:
        names.append(f"level {meta['level']}")
    leaves = counted(found).values()
    share = sum(mask.sum() for mask in leaves) / sum(mask.size for mask in leaves)
    names.append(f"density {100 * share:.3g}%")
    return ", ".join(names)


def figures(
    found: tickets.Contents, params: Params | None
) -> Iterator[tuple[str, Any]]:
    """The masks of all layers, and what the units of the first one look at.

    Args:
      found: the ticket but for its weights.
      params: these, or None where the file does not hold them.
    """
    leaves, caption = counted(found), title(found)
    columns = 3 if len(leaves) <= 9 else 5
    yield "masks", plots.masks(leaves, title=caption, columns=columns)
    shape = found.metadata.get("dataset", {}).get("shape")
    if shape is None or (first := first_layer(leaves, shape)) is None:
        return
    mask = leaves[first]
    weights = None if params is None else trees.by_path(params)[first]
    if mask.ndim == 4:
        shape = mask.shape[:-1]
    units = mask.shape[-1]
    yield (
        "receptive_fields",
        plots.receptive_fields(
            mask.reshape(-1, units),
            tuple(shape),
            weights=None if weights is None else weights.reshape(-1, units),
            title=f"{caption}: {first}",
        ),
    )


def first_layer(leaves: Mapping[str, np.ndarray], shape: Sequence[int]) -> str | None:
    """The leaf that an input meets: a matrix of its size, or kernels of its channels."""
    for name, mask in leaves.items():
        dense = mask.ndim == 2 and mask.shape[0] == math.prod(shape)
        if dense or (mask.ndim == 4 and mask.shape[2] == shape[-1]):
            return name
    return None
