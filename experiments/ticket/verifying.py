"""Whether a stored ticket still wins: it is trained again beside what it must beat.

The ticket trains under several noises that it was not found with, beside the dense network
that it is a part of, the same mask on fresh draws and a random mask: `imp.retrain`. What
belongs to its file alone decides what is trained; the dense network is drawn again from
its seed, and must hold the ticket's weights to the bit.
"""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import (
    display,
    groups,
    identity,
    imp,
    launch,
    logs,
    metrics,
    recipes,
)
from experiments.display import Judged, Rows
from experiments.experiment import claim
from experiments.identity import FREE, Where
from experiments.recipes import Recipe, Setup
from experiments.report import leave
from experiments.ticket.inspecting import contents, digest
from lottery_jax import errors, keys, plots, records, tickets, trees, verdicts
from lottery_jax import imp as studies
from lottery_jax.connectivity import branches
from lottery_jax.execution import Deadline
from lottery_jax.execution import Where as Place
from lottery_jax.training import identity as origin
from lottery_jax.types import Network

if TYPE_CHECKING:
    import xarray as xr

ARMS = ("ticket", "reinit", "random_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Where):
    """Trains a ticket again, beside dense, reinit and a random mask: does it still win?"""

    file: tyro.conf.Positional[str]
    """The ticket."""
    replicas: int = 3
    """Noises (data order, augmentation) that it is trained under."""
    tolerance: float = 0.002
    """How far above the dense error a matching ticket may be."""
    steps: str | None = None
    """Another length of training than its own: 500it, 2ep ..."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """The recipe of a ticket, and how it is trained again."""

    replicas: int = 3
    """Noises that it is trained under, beside its own."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above the dense error a matching ticket may be."""
    ticket: str = ""
    """The SHA-256 of its file."""


class Case(NamedTuple):
    """A ticket, and all that it is trained again with.

    Attributes:
      path: of its file.
      ticket: itself.
      setup: configuration, task, optimizer and plan, of its recipe.
      ids: of the replicas whose noises are used; its own comes first.
    """

    path: pathlib.Path
    ticket: tickets.Ticket
    setup: Setup
    ids: list[int]


def verify(command: Verify, deadline: Deadline | None = None) -> None:
    """Trains a ticket again and says whether it still wins.

    Args:
      command: the ticket, and how it is trained.
      deadline: when this call must have ended; None for no limit.

    Raises:
      FileNotFoundError: there is no such file, or its data are not prepared.
      ValueError: it is no ticket, its file does not say enough, or the dense network that
        it is a part of cannot be made again; says what is missing.
    """
    case = read(command)
    cfg = case.setup.cfg
    usual = f"{case.path.stem}-verified-{identity.digits(cfg)}"
    folder = errors.on_disk("out", cfg.out or pathlib.Path("results", "ticket", usual))
    records.claim_folder(folder, identity.as_config(cfg), identity.free(Config))
    where = launch.where(cfg, folder, deadline=deadline)
    claim(folder, case.setup, where)
    results = groups.once(folder / "results.nc", lambda: train(case, where))
    words = ["python", "-m", "experiments.ticket", "verify", command.file]
    words += launch.changed(command, Verify(file=command.file))
    report(results, case, folder, shlex.join(words))


# --- what is trained ------------------------------------------------------------------

NEEDED = ("recipe", "plan", "init", "chain", "level", "rewind_step", "start")


def read(command: Verify) -> Case:
    """The ticket, and what its file says of how it is trained.

    Raises:
      FileNotFoundError: there is no such file, or its data are not prepared.
      ValueError: the file does not say enough, or what it says cannot be done.
    """
    errors.at_least("replicas", command.replicas, 2)
    errors.at_least("tolerance", command.tolerance, 0)
    logs.check(command.log)
    path = errors.on_disk("file", command.file)
    found = contents(path)
    meta = found.metadata
    if missing := [name for name in NEEDED if name not in meta]:
        raise ValueError(
            f"{path}: its metadata lack {', '.join(missing)}, so it does not say how it is "
            "trained. With the task and optimizer at hand train it with lj.imp.retrain("
            "task, tx, plan, [[lj.tickets.load(FILE)]], level=1, replicas=1, "
            "dense=[[...]])"
        )
    check_kind(path, found)
    cfg = _config(path, meta, command)
    task = recipes.make_task(cfg)
    tx = recipes.make_optimizer(cfg, task.steps_per_epoch)
    plan = studies.check(
        studies.Plan(
            steps=recipes.parse_step(cfg, "steps", task.steps_per_epoch),
            rewind_step=meta["rewind_step"],
            chains=(studies.Chain(meta["chain"]["name"]),),
            arms=ARMS,
            validate_every=meta["plan"]["validate_every"],
            random_scope=meta["plan"]["random_scope"],
            seed=meta["init"]["seed"],
        )
    )
    try:
        ticket = tickets.load(path, task.shapes[:2])
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit model={cfg.model!r} on data={cfg.data!r}, as this "
            f"version makes them: {error}"
        ) from None
    own = meta["init"]["replica"]
    others = [i for i in range(command.replicas + 1) if i != own]
    ids = [own, *others[: command.replicas]]
    return Case(path, ticket, Setup(cfg, task, tx, plan), ids)


def check_kind(path: pathlib.Path, found: tickets.Contents) -> None:
    """Raises a ValueError if the dense network of a ticket cannot be made again.

    Args:
      path: of its file, for messages.
      found: what it says.
    """
    meta = found.metadata
    if found.weights == "digest":
        raise ValueError(
            f"{path} holds digests of its weights alone; with the weights that they were "
            "masked from, lj.tickets.load(FILE, start=...) and lj.imp.retrain train it"
        )
    if meta["level"] == 0:
        raise errors.wrong(
            f"{path}: level", 0, "1 or more: this is the dense network itself"
        )
    if (retrain := meta["chain"]["retrain"]) != "rewind":
        must = "'rewind': the weights of others are trained ones, and no part of a draw"
        raise errors.wrong(f"{path}: retrain", repr(retrain), must)
    if meta["start"] != "drawn":
        must = (
            "'drawn': weights that were given cannot be drawn again, nor can controls"
        )
        raise errors.wrong(f"{path}: start", repr(meta["start"]), must)


def _config(path: pathlib.Path, meta: Mapping[str, Any], command: Verify) -> Config:
    """The recipe in a file, and what the command says."""
    recipe = identity.from_stored(Recipe, meta["recipe"], f"the recipe of {path}")
    recipe = recipes.at_setting(recipe, meta["chain"].get("hyper", {}))
    asked = dataclasses.asdict(command)
    how = {field.name: asked[field.name] for field in dataclasses.fields(Where)}
    if command.steps is not None:
        recipe = dataclasses.replace(recipe, steps=command.steps)
    return Config(
        **how,
        **dataclasses.asdict(recipe),
        replicas=command.replicas,
        tolerance=command.tolerance,
        ticket=digest(path),
    )


# --- training -------------------------------------------------------------------------

APART = 0.5
"""Relative distance of weights from those of the dense network trained again, beyond which
they are others. Rounding stays far below; independent draws lie sqrt(2) apart."""


def train(case: Case, where: Place) -> "xr.Dataset":
    """Trains dense (level 0), ticket, reinit and random mask under all noises.

    Raises:
      ValueError: the dense network is not the one that the ticket is a part of.
    """
    import xarray as xr

    task, tx, plan = case.setup.task, case.setup.tx, case.setup.plan
    network, said = dense_network(case, where.below("trunk"))
    whole = jax.tree.map(lambda p: np.ones(p.shape, np.bool_), network.params)
    dense = tickets.Ticket(whole, network.params, network.model_state, {})
    level, number = case.ticket.metadata["level"], len(case.ids)
    alone = dataclasses.replace(plan, arms=("ticket",))
    parts = []
    for name, protocol, found, at in (
        ("dense", alone, dense, 0),
        ("ticket", plan, case.ticket, level),
    ):
        place = where.below(name)
        names = [
            f"{name if arm == 'ticket' else arm} under noise {i}"
            for i in case.ids
            for arm in protocol.arms
        ]
        metric = recipes.metric(case.setup.cfg)
        with display.watched(place, names=names, last=level, metric=metric) as place:
            study = studies.retrain(
                task,
                tx,
                protocol,
                [[found] * number],
                level=at,
                replicas=case.ids,
                dense=[[dense] * number],
                where=place,
            )
        parts.append(study.dataset().reindex(arm=list(ARMS)))
    results = xr.concat(parts, "level", data_vars="minimal", combine_attrs="override")
    data = origin.of_data(task, where)["data"]
    if (then := case.ticket.metadata.get("data_digest")) and then != data:
        said.append("The data are not those of then: other numbers are to be expected.")
    results.attrs["said"] = json.dumps(said)
    results.attrs["config"] = json.dumps(identity.as_config(case.setup.cfg))
    return results


def dense_network(case: Case, where: Place) -> tuple[Network, list[str]]:
    """The dense network at the rewind step, made again; and how sure it is that it is.

    Raises:
      ValueError: the ticket is no part of it.
    """
    task, tx, plan = case.setup.task, case.setup.tx, case.setup.plan
    own = keys.of_replicas(plan.seed, case.ids[:1])
    k = plan.rewind_step
    with display.watched(where) as place:
        trunk = branches.train_trunk(task, tx, own.init, own.noise, (k,), where=place)
    network = trees.rows(trees.host(trunk.at(k).network), 0)
    began = network._replace(
        params=jax.tree.map(
            lambda m, p: np.where(m, p, np.zeros_like(p)),
            case.ticket.mask,
            network.params,
        )
    )
    stored = Network(case.ticket.params, case.ticket.model_state)
    which = f"the draw of seed {plan.seed}, replica {case.ids[0]}"
    which += f", trained to step {k}" if k else ""
    pairs = list(zip(jax.tree.leaves(stored), jax.tree.leaves(began)))
    if all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs):
        return network, [f"Its weights are those of {which}, to the bit."]
    apart = _distance(stored.params, began.params)
    if k == 0 or not apart < APART:
        raise ValueError(
            f"{case.path}: its weights are not those of {which}, but a relative distance of "
            f"{apart:.2g} away: the initialisation cannot be reproduced here, and so there "
            "is no dense network to compare it with. It may have been found by another "
            "version of a law; lj.imp.retrain trains the ticket alone"
        )
    return network, [
        f"Its weights are those of {which}, up to rounding: a relative distance of "
        f"{apart:.1g}."
    ]


def _distance(a: Any, b: Any) -> float:
    """The L2 distance of two trees, relative to the length of the first."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    difference = sum(
        float(np.sum(np.subtract(x, y, dtype=float) ** 2)) for x, y in pairs
    )
    length = sum(float(np.sum(np.square(x, dtype=float))) for x, _ in pairs)
    return float(np.sqrt(difference / max(length, 1e-300)))


# --- what came out --------------------------------------------------------------------


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """The verdicts of a pruning study on the noises that are new, and all of them at once."""
    new = results.isel(replica=slice(1, None))
    recipe = {
        field.name: getattr(cfg, field.name) for field in dataclasses.fields(Recipe)
    }
    judged = imp.judge(new, imp.Config(**recipe, tolerance=cfg.tolerance))
    from_init = any(one.claim == "winning" for one in judged)
    # Winning is matching, and more.
    said = [one for one in judged if not (from_init and one.claim == "matching")]
    parts = [one.verdict for one in said]
    name = "still wins" if from_init else "still matches, and beats its controls"
    return [
        *judged,
        Judged(judged[0].where, name, verdicts.combine(*parts, claim=name)),
    ]


def table(results: "xr.Dataset", case: Case) -> Rows:
    """What each network reached under the new noises, its own one, and when it was found."""
    metric = recipes.metric(case.setup.cfg)
    shown, meta = metrics.quality(metric), case.ticket.metadata
    rows = []
    for name, values in reached(results, metric).items():
        field = {"ticket": "test_", "dense": "dense_test_"}.get(name)
        then = meta.get(f"{field}{metric.name}") if field else None
        rows.append(
            [
                name.replace("_", " "),
                display.mean_range(shown.of(values[1:])),
                f"{float(shown.of(values[0])):.2f}",
                "" if then is None else f"{float(shown.of(then)):.2f}",
            ]
        )
    number = len(case.ids) - 1
    title = (
        f"Test {shown.name} in {shown.unit}: mean [min, max] of {number} noises that "
    )
    title += "it was not found with, that of its own, and that of then"
    return Rows(title, ["network", "new noises", "its own", "then"], rows)


def reached(results: "xr.Dataset", metric: verdicts.Metric) -> dict[str, np.ndarray]:
    """By network what it is compared by, `[noises]`; nan where it diverged."""
    values = imp.tested(results, metric).isel(chain=0)
    dense, level = values.isel(level=0), values.isel(level=1)
    found = {"dense": dense.sel(arm="ticket").values}
    return found | {arm: level.sel(arm=arm).values for arm in ARMS}


def conclusions(judged: list[Judged], results: "xr.Dataset", case: Case) -> list[str]:
    """The verdicts, how the numbers were reproduced, and what must be said of them."""
    cfg, meta = case.setup.cfg, case.ticket.metadata
    lines = [one.verdict.describe() for one in judged]
    lines.append(
        f"n = {len(case.ids) - 1} noises of one initialisation: this is about this ticket, "
        "and not about how it was found."
    )
    lines += json.loads(results.attrs["said"])
    metric = recipes.metric(cfg)
    then = meta.get(f"test_{metric.name}")
    now = float(reached(results, metric)["ticket"][0])
    if then is not None and cfg.steps == meta["recipe"].get("steps"):
        shown = metrics.level(metric)
        unit = "%" if shown.unit == "%" else f" {shown.unit}".rstrip()
        text, before = (f"{shown.of(x):.4g}{unit}" for x in (now, then))
        same = "as then, to the bit" if now == np.float32(then) else f"{before} then"
        lines.append(f"Under its own noise its {metric.name} is {text}, {same}.")
    if (k := meta["rewind_step"]) > 0:
        line = f"Dense goes on from step {k} as the ticket does, with a fresh optimizer"
        if meta["plan"]["level_optimizer"] == "rewind":
            line += ", where levels of its study began with that of this step"
        lines.append(f"{line}.")
    return lines


def report(
    results: "xr.Dataset", case: Case, folder: pathlib.Path, command: str
) -> None:
    """The figure, the table and the verdicts, on the disk and on the screen.

    Args:
      results: as `train` makes them, stored in the folder.
      case: the ticket.
      folder: of the run.
      command: that made them, as one would write it again.
    """
    cfg = case.setup.cfg
    judged = judge(results, cfg)
    rows, lines = table(results, case), conclusions(judged, results, case)
    metric = recipes.metric(cfg)
    shown = metrics.quality(metric)
    values = {
        name: shown.of(found[1:]) for name, found in reached(results, metric).items()
    }
    density = 100 * case.ticket.metadata["density"]
    figure = plots.by_name(
        values,
        label=f"test {shown.label}",
        title=f"{cfg.model} on {cfg.data}: a ticket at density {density:.3g}%\n"
        f"trained again under {len(case.ids) - 1} noises, and what it is compared with",
        reference=float(np.nanmean(values["dense"])),
        reference_label="dense",
    )
    plots.save(figure, folder / "figures" / "verified")
    display.leave(folder, judged, [rows], lines)
    said = display.note(
        folder,
        judged,
        experiment="ticket",
        preset="",
        shows=f"A stored ticket of {cfg.model} on {cfg.data} still wins when it is trained "
        "under noises that it was not found with.",
        command=command,
        figures=["verified"],
    )
    results = results.assign_attrs(said)
    left = [leave(folder, results), f"Figure: {folder / 'figures' / 'verified'}.png"]
    display.show([rows], [*lines, "", *left])
