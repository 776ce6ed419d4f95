"""What a study of cures trains: tickets at every setting, and their masks on fresh weights.

One pruning study for each batch size and rewind step, in which all rates and warm-ups train
side by side; its level 0 are the dense networks. Then the masks of all its levels on fresh
weights, at the settings where they were found.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments import cost, display, recipes
from experiments.experiment import dataset
from experiments.imp import stored_tickets
from experiments.liu.config import ARMS, Config, Cure, check, cures, scaled
from experiments.recipes import Setup, make_optimizer, make_task, parse_step
from lottery_jax import errors, imp, masks
from lottery_jax.execution import Where
from lottery_jax.types import Task

if TYPE_CHECKING:
    import xarray as xr


class Tried(NamedTuple):
    """The study of one batch size and rewind step.

    Attributes:
      plan: of its tickets.
      names: of its cures, one for each warm-up of its configuration.
    """

    plan: imp.Plan
    names: tuple[str, ...]


def prepare(cfg: Config) -> dict[str, Setup]:
    """What the study of each batch size and rewind step needs, by its name.

    Its configuration has the warm-ups that are tried in it, and all steps in iterations; its
    plan is a `Tried`.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    check(cfg)
    task = make_task(cfg)
    tasks, together = {cfg.batch_size: task}, dict[tuple[int, str], list[Cure]]()
    if 0 in recipes.parse_steps(cfg, "rewind_steps", task.steps_per_epoch):
        must = "above 0, all of them: levels from step 0 are always tried"
        raise errors.wrong("rewind_steps", cfg.rewind_steps, must)
    for cure in cures(cfg):
        together.setdefault((cure.batch_size, cure.rewind_step), []).append(cure)
    found = {}
    for (batch_size, step), own in together.items():
        warmups = tuple(cure.warmup for cure in own)
        here = dataclasses.replace(cfg, sweep_warmup=warmups, rewind_steps=(step,))
        here = scaled(here, batch_size, task.steps_per_epoch)
        if batch_size not in tasks:
            tasks[batch_size] = make_task(here)
        tried = Tried(_plan(here), tuple(cure.name(cfg) for cure in own))
        found[f"batch-{batch_size:05d}-k-{step}"] = _set_up(
            here, tasks[batch_size], tried
        )
    return found


def _plan(cfg: Config) -> imp.Plan:
    """How tickets are found; all steps of the configuration are in iterations."""
    return imp.check(
        imp.Plan(
            steps=parse_step(cfg, "steps", 1),
            rewind_step=parse_step(cfg, "rewind_steps", 1),
            chains=(imp.Chain(densities=imp.Geometric(cfg.fraction)),),
            arms=("ticket",),
            validate_every=cfg.validate_every,
            seed=cfg.seed,
        )
    )


def _set_up(cfg: Config, task: Task, tried: Tried) -> Setup:
    """Task, optimizer and plan of one study, once it is sure that they fit."""
    flags = masks.of_task(task)
    chain = tried.plan.chains[0]
    imp.keep_counts(chain, task.shapes[0], cfg.levels, flags)  # or it raises
    make_tx = make_optimizer(cfg, task.steps_per_epoch, sweeps=True)
    return Setup(cfg, task, make_tx, tried)


AXES = ("cure", "learning_rate", "arm", "replica", "level")
"""Of what is measured of networks. Arm 0 is the ticket, at level 0 the dense network; arm 1
is the ticket's mask on fresh weights, nan at level 0."""


def one(setups: dict[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """All studies of some replicas, cure after cure."""
    parts = [_studied(setup, ids, where.below(name)) for name, setup in setups.items()]
    cfg = next(iter(setups.values())).cfg
    names = [name for setup in setups.values() for name in setup.plan.names]
    joined = {
        name: (axes, np.concatenate([part[name][1] for part in parts]))
        for name, (axes, _) in parts[0].items()
    }
    coordinates = {
        "cure": names,
        "learning_rate": list(cfg.sweep_learning_rate),
        "arm": list(ARMS),
        "replica": ids,
        "level": list(range(cfg.levels + 1)),
    }
    return dataset(cfg, joined, coordinates)


def _studied(setup: Setup, ids: list[int], where: Where) -> imp.Records:
    """What is recorded of one study, with an axis of its warm-ups first, a cure each."""
    cfg, task, make_tx, (plan, _) = setup
    sweep = recipes.sweep(cfg, task.steps_per_epoch)
    metric, levels = recipes.metric(cfg), range(1, cfg.levels + 1)
    finding, there = imp.swept(plan, sweep), where.below("study")
    if (folder := there.store) is None:
        raise errors.wrong("where.folder", None, "a folder: tickets are kept there")
    names = display.names(finding, ids)
    with display.watched(there, names=names, last=cfg.levels, metric=metric) as place:
        study = imp.run(
            task,
            make_tx,
            plan,
            levels=cfg.levels,
            replicas=ids,
            sweep=sweep,
            metadata=recipes.ticket_metadata(cfg, "liu"),
            where=place,
        )
    # Level after level, and the settings within each, as the chains below.
    of = dict.fromkeys(ids, folder)
    found = [row for n in levels for row in stored_tickets(of, finding, ids, n)]
    again = dataclasses.replace(
        plan, chains=tuple(imp.Chain(f"level {n}") for n in levels), arms=("reinit",)
    )
    again, there = imp.swept(again, sweep, tickets=False), where.below("masks")
    names = display.names(again, ids)
    with display.watched(there, names=names, last=1, metric=metric) as place:
        trained = imp.retrain(
            task, make_tx, again, found, level=1, replicas=ids, where=place
        )
    return _joined(cfg, study.dataset(), trained.dataset())


def work(setups: dict[str, Setup]) -> cost.Work:
    """What the studies of all cures cost."""
    parts = []
    for name, setup in setups.items():
        cfg, task, _, (plan, _) = setup
        of, sweep = cost.of_setup(setup), recipes.sweep(cfg, task.steps_per_epoch)
        chains = tuple(imp.Chain(f"level {n}") for n in range(1, cfg.levels + 1))
        again = dataclasses.replace(plan, chains=chains, arms=("reinit",))
        again = imp.swept(again, sweep, tickets=False)
        own = (
            cost.study(of, imp.swept(plan, sweep), cfg.levels, cfg.replicas),
            cost.again(of, again, cfg.replicas),
        )
        parts.append(cost.named(name, cost.together(*own)))
    return cost.together(*parts)


def _joined(cfg: Config, study: "xr.Dataset", trained: "xr.Dataset") -> imp.Records:
    """Tickets and their masks on fresh weights beside each other.

    Args:
      cfg: of the study, its steps in iterations.
      study: `[1, learning_rate, warmup, 1, replica, level]`.
      trained: `[chain, learning_rate, warmup, 1, replica, 1]`, a chain for each level
        after 0.
    """
    axes = ("warmup", "learning_rate", "replica", "level")
    tickets = study.isel(chain=0, arm=0)
    fresh = trained.isel(arm=0, level=0, drop=True).rename(chain="level")
    names = [str(name) for name in study]
    measured = [n for n in names if n.startswith("test_") and "_early" not in n]
    found: imp.Records = {}
    for name in (*measured, "diverged"):
        ticket, reinit = (x[name].transpose(*axes).values for x in (tickets, fresh))
        # Level 0 has no mask: nothing is trained there but the dense network.
        nothing = np.zeros_like if name == "diverged" else _nan
        reinit = np.concatenate([nothing(ticket[..., :1]), reinit], axis=-1)
        found[name] = (AXES, np.stack([ticket, reinit], axis=2))
    own = tickets["density"].transpose(*axes).values
    found["density"] = (("cure", "learning_rate", "replica", "level"), own)
    settled = {
        "batch_size": cfg.batch_size,
        "rewind_step": parse_step(cfg, "rewind_steps", 1),
        "steps": parse_step(cfg, "steps", 1),
    }
    warmups = np.array(recipes.parse_steps(cfg, "sweep_warmup", 1))
    found["warmup"] = (("cure",), warmups)
    for name, value in settled.items():
        found[name] = (("cure",), np.full_like(warmups, value))
    return found


def _nan(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, np.nan)
