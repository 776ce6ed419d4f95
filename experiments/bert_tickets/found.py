"""Where the networks of the study come from: the repaired encoder, tickets, transfer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from experiments import cost, display, recipes
from experiments.bert_tickets.config import Config
from experiments.experiment import dataset
from experiments.kinds import encoders
from experiments.recipes import Setup
from lottery_jax import (
    imp,
    keys,
    masks,
    pretrained,
    prune,
    scores,
    tickets,
    training,
    transfer,
    trees,
)
from lottery_jax.execution import Where
from lottery_jax.pretrained import Pretrained
from lottery_jax.types import Mask, Network

if TYPE_CHECKING:
    import xarray as xr

_REPAIR = 2**20
"""The replica whose keys the repair draws by: none of a study's."""

MAGNITUDE = "pre-trained"
"""The source that needs no training: the magnitude of the pre-trained weights."""


def repaired(setups: Mapping[str, Setup], cfg: Config, where: Where) -> Pretrained:
    """The encoder that all tasks start from; stored as a folder that `load` reads.

    Args:
      setups: from `prepare`.
      cfg: of the study.
      where: its folder gets `encoder/`.
    """
    found = encoders.weights(cfg)
    if "repair" not in setups:
        return found
    recipe, task, tx, _ = setups["repair"]
    assert where.store is not None
    folder = where.store / "encoder"
    if (folder / "model.safetensors").is_file():
        return pretrained.load(folder)
    steps = recipes.parse_step(recipe, "steps", task.steps_per_epoch)
    own = keys.of_replicas(recipe.seed, [_REPAIR])
    first = pretrained.start(found, task, seed=recipe.seed, replicas=[_REPAIR])
    with display.watched(where.below("repair"), "repair: ") as place:
        runs = training.fresh(task, tx, own.init, own.noise, start=first, where=place)
        done = training.train(
            task, tx, runs, steps, every=recipe.every, stage="dense", where=place
        )
    params = trees.rows(trees.host(done.networks), 0).params
    # Masked tokens are guessed without the pooler: that of the weights stays.
    pooler = {k: v for k, v in found.params.items() if k == "pooler"}
    pretrained.save(folder, found.shape, pooler | params, tokenizer=found.folder)
    return pretrained.load(folder)


class Found(NamedTuple):
    """The tickets of a task.

    Attributes:
      setup: of the task.
      start: what its networks start from.
      study: the records of the pruning study.
      masks: by level, of all replicas, bool leaves `[R, ...]`.
    """

    setup: Setup
    start: Network
    study: imp.Study
    masks: dict[int, Mask]


def found(
    name: str, setup: Setup, encoder: Pretrained, ids: Sequence[int], where: Where
) -> Found:
    """Finds the tickets of a task, or what is missing of them.

    Args:
      name: of the task.
      setup: of it.
      encoder: what it starts from.
      ids: of the replicas.
      where: its folder gets the tickets.
    """
    cfg, task, tx, protocol = setup
    first = pretrained.start(encoder, task, seed=protocol.seed, replicas=ids)
    called, metric = display.names(protocol, ids), recipes.metric(cfg)
    watched = display.watched(
        where, f"{name}: ", names=called, last=cfg.levels, metric=metric
    )
    with watched as place:
        study = imp.run(
            task,
            tx,
            protocol,
            levels=cfg.levels,
            replicas=ids,
            start=first,
            metadata=recipes.ticket_metadata(cfg, "bert_tickets"),
            weights="digest",
            where=place,
        )
    assert where.store is not None

    def mask(level: int) -> Mask:
        chain = protocol.chains[0].name
        paths = [imp.ticket_path(where.store, chain, level, i) for i in ids]  # type: ignore[arg-type]
        return trees.stack([tickets.contents(path).mask for path in paths])

    wanted = sorted({*cfg.controls, cfg.transfer_level})
    return Found(setup, first, study, {level: mask(level) for level in wanted})


def spread(network: Network, like: Network, number: int) -> Network:
    """Weights of which some are shared as those of every replica, `[R, ...]`.

    Args:
      network: leaf by leaf with an axis of the replicas, or without.
      like: shapes of one.
      number: of replicas.
    """
    return jax.tree.map(
        lambda x, one: np.broadcast_to(np.asarray(x), (number, *one.shape)),
        network,
        like,
    )


def controls(own: Found, level: int, ids: Sequence[int], where: Where) -> np.ndarray:
    """The controls of a task's tickets at a level, in its metric, `[arm, replica]`.

    Args:
      own: the tickets.
      level: of them.
      ids: of the replicas.
      where: they are trained.
    """
    arms = own.setup.cfg.arms
    return _again(own, {"imp": own.masks[level]}, arms, level, ids, where)[0]


def transferred(
    target: Found,
    sources: Mapping[str, Mask],
    level: int,
    ids: Sequence[int],
    where: Where,
) -> np.ndarray:
    """Masks of many sources on one target, in its metric, `[source, replica]`.

    Each is put on the weights that the target's own networks start from, head and all.

    Args:
      target: the task, and its own tickets.
      sources: masks by name, `[R, ...]`.
      level: they are of.
      ids: of the replicas.
      where: they are trained.
    """
    task = target.setup.task

    def landed(mask: Mask) -> Mask:
        each = [transfer.mask_onto(trees.rows(mask, i), task) for i in range(len(ids))]
        return trees.stack(each)

    there = {name: landed(mask) for name, mask in sources.items()}
    return _again(target, there, ("ticket",), level, ids, where)[:, 0]


def _again(
    own: Found,
    chains: Mapping[str, Mask],
    arms: tuple[str, ...],
    level: int,
    ids: Sequence[int],
    where: Where,
) -> np.ndarray:
    """Masks of any origin trained from a task's start: its metric, `[chain, arm, replica]`.

    What diverged is nan.
    """
    cfg, task, tx, protocol = own.setup
    whole = spread(own.start, Network(*task.shapes[:2]), len(ids))
    (chain,) = protocol.chains
    named = tuple(dataclasses.replace(chain, name=name) for name in chains)
    protocol = dataclasses.replace(protocol, chains=named, arms=arms)
    called = display.names(protocol, ids)
    with display.watched(where, names=called) as place:
        study = imp.retrain(
            task,
            tx,
            protocol,
            imp.tickets_from(list(chains.values()), whole),
            level=level,
            replicas=ids,
            dense=whole,
            where=place.renamed(level=None),
        )
    return measured(study, recipes.metric(cfg).name)[..., 0]


def measured(study: imp.Study, name: str) -> np.ndarray:
    """A metric at the end of training, `[chain, arm, replica, level]`; nan if diverged."""
    value, diverged = (study.records[key][1] for key in (f"test_{name}", "diverged"))
    return np.where(diverged, np.nan, value)


# --- all of it ------------------------------------------------------------------------


def one(setups: Mapping[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """The whole study, or what is missing of it.

    Args:
      setups: from `prepare`.
      ids: of the replicas.
      where: it runs; every part has a folder of its own.

    Returns:
      In the metric of each task: `ticket [task, level, replica]`, `control [task, arm,
      control_level, replica]`, `transferred [source, target, replica]`; beside them
      `density [task, level]`, and `overlap [source, other, replica]`, how many of the
      weights that one mask keeps another keeps, too.
    """
    names = [name for name in setups if name != "repair"]
    cfg: Config = setups[names[0]].cfg
    encoder = repaired(setups, cfg, where)
    own = {
        name: found(name, setups[name], encoder, ids, where.below("found").below(name))
        for name in names
    }
    metric = {name: recipes.metric(setups[name].cfg).name for name in names}
    tickets_ = [measured(own[name].study, metric[name])[0, 0] for name in names]
    place = where.below("controls")
    control = [
        [
            controls(own[name], level, ids, place.below(f"{name}-{level}"))
            for level in cfg.controls
        ]
        for name in names
    ]
    sources = {name: own[name].masks[cfg.transfer_level] for name in names}
    sources[MAGNITUDE] = _of_magnitude(own[names[0]], cfg, len(ids))
    matrix = [
        transferred(
            own[name],
            sources,
            cfg.transfer_level,
            ids,
            where.below("transferred").below(name),
        )
        for name in names
    ]
    task = setups[names[0]].task
    flags = masks.resolve(task.shapes[0], masks.of_task(task))
    body = [path for path, counts in zip(trees.paths(task.shapes[0]), flags) if counts]
    density = [own[name].study.records["density"][1][0, 0].T for name in names]
    found_ = dataset(
        cfg,
        {
            "ticket": (("task", "replica", "level"), np.stack(tickets_)),
            "control": (("task", "control_level", "arm", "replica"), np.array(control)),
            "transferred": (("target", "source", "replica"), np.stack(matrix)),
            "density": (("task", "level", "replica"), np.stack(density)),
            "overlap": (
                ("source", "other", "replica"),
                overlaps(list(sources.values()), body),
            ),
        },
        {
            "task": names,
            "target": names,
            "source": list(sources),
            "other": list(sources),
            "level": list(range(cfg.levels + 1)),
            "control_level": list(cfg.controls),
            "arm": list(cfg.arms),
            "replica": ids,
        },
        metrics=metric,
    )
    notes = {name: recipes.note(setups[name].cfg) for name in names}
    said = "; ".join(f"{name}: {note}" for name, note in notes.items() if note)
    return found_.assign_attrs(note=said) if said else found_


def work(setups: Mapping[str, Setup]) -> cost.Work:
    """What the repair, the tickets of all tasks, their controls and transfer cost."""
    names = [name for name in setups if name != "repair"]
    cfg: Config = setups[names[0]].cfg
    parts = []
    if "repair" in setups:
        own = setups["repair"]
        steps = recipes.parse_step(own.cfg, "steps", own.task.steps_per_epoch)
        parts.append(cost.trained("repair", cost.of_setup(own), 1, steps))

    def again(name: str, number: int, arms: tuple[str, ...]) -> cost.Work:
        setup = setups[name]
        (chain,) = setup.plan.chains
        chains = tuple(dataclasses.replace(chain, name=f"{i}") for i in range(number))
        plan = dataclasses.replace(setup.plan, chains=chains, arms=arms)
        return cost.again(cost.of_setup(setup), plan, cfg.replicas, name)

    for name in names:
        of = cost.of_setup(setups[name])
        study = cost.study(of, setups[name].plan, cfg.levels, cfg.replicas)
        parts.append(cost.named(name, study))
    parts += [
        cost.named(f"controls, level {level}", again(name, 1, cfg.arms))
        for name in names
        for level in cfg.controls
    ]
    sources = len(names) + 1  # that of magnitude
    parts += [
        cost.named("transferred to", again(name, sources, ("ticket",)))
        for name in names
    ]
    return cost.together(*parts)


def _of_magnitude(own: Found, cfg: Config, number: int) -> Mask:
    """The mask of the largest pre-trained weights, one for all replicas, `[R, ...]`."""
    task = own.setup.task
    params = spread(own.start, Network(*task.shapes[:2]), number).params
    first, flags = trees.rows(params, 0), masks.of_task(task)
    (chain,) = own.setup.plan.chains
    keep = imp.keep_counts(chain, task.shapes[0], cfg.transfer_level, flags)[0]
    whole = masks.ones_like(first)
    mask = prune.global_topk(
        scores.magnitude(first), whole, keep=int(keep), prunable=flags
    )
    return trees.stack([trees.host(mask)] * number)


def overlaps(found: Sequence[Mask], paths: Sequence[str]) -> np.ndarray:
    """How much of one mask's weights another keeps, `[source, other, replica]`.

    Args:
      found: masks of one encoder, `[R, ...]`, whose heads may differ.
      paths: of the leaves that are compared.
    """

    def flat(mask: Mask) -> np.ndarray:
        own = trees.by_path(trees.host(mask))
        return np.concatenate([own[p].reshape(len(own[p]), -1) for p in paths], axis=1)

    flattened = [flat(mask) for mask in found]
    return np.array(
        [
            [np.sum(a & b, axis=1) / np.sum(a, axis=1) for b in flattened]
            for a in flattened
        ]
    )
