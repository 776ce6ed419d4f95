"""Every source on every target: the engine that all studies of transfer share.

A study says, by a `Design`, which networks there are and which of them give tickets to
which. Iterative pruning finds the tickets of each, late rewinding included. On each target
then train, as one batch, the tickets of all sources at all densities, and as another the
target's own beside random ones. All start at the rewind step, under the noise that their
replica has on that target: differences between sources are paired.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from experiments import cost, display, identity, recipes
from experiments.recipes import Recipe, Setup
from experiments.transfer.config import Config
from lottery_jax import errors, imp, keys, masks, records, tickets, training, trees
from lottery_jax import transfer as grafts
from lottery_jax.execution import Where
from lottery_jax.types import Mask, Network, Params, Prunable, Task

if TYPE_CHECKING:
    import xarray as xr

CHAIN = "imp"
"""The chain of a pruning study, in the names of its tickets."""


class Design(NamedTuple):
    """What travels from where to where.

    Attributes:
      recipes: what is trained, by the name of a source or target.
      sources: whose tickets travel.
      targets: where they go; each finds native tickets of its own.
      same_head: keep the head of a ticket, for targets that differ from their sources in
        no class: in their optimizer, say.
    """

    recipes: Mapping[str, Config]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    same_head: bool = False


def plan(recipe: Config, steps_per_epoch: int) -> imp.Plan:
    """How the tickets of a network are found.

    Args:
      recipe: what is trained.
      steps_per_epoch: of its task.

    Raises:
      ValueError: a field that makes no sense; names it.
    """
    return imp.check(
        imp.Plan(
            steps=recipes.parse_step(recipe, "steps", steps_per_epoch),
            rewind_step=recipes.parse_step(recipe, "rewind_step", steps_per_epoch),
            chains=(imp.Chain(CHAIN, imp.Geometric(recipe.fraction)),),
            arms=("ticket",),
            validate_every=recipe.every,
            random_scope="global",
            seed=recipe.seed,
        )
    )


def prepare(design: Callable[[Config], Design], cfg: Config) -> dict[str, Setup]:
    """Task, optimizer and plan of every network, by its name.

    Args:
      design: of the study.
      cfg: its configuration.

    Raises:
      ValueError: a field that makes no sense, or a source and a target that differ in
        more than their heads; names them.
    """
    levels = check_levels(cfg.levels)
    errors.some_different("carried", cfg.carried)
    if "ticket" not in cfg.carried:
        raise ValueError(f"carried={cfg.carried}; 'ticket' must be among them")
    own = design(cfg)
    setups = {}
    for name, recipe in own.recipes.items():
        task = body(recipes.make_task(recipe))
        protocol = plan(recipe, task.steps_per_epoch)
        imp.check_task(task, protocol, max(levels))
        tx = recipes.make_optimizer(recipe, task.steps_per_epoch)
        setups[name] = Setup(cfg, task, tx, protocol)
    _check_grafts(own, setups)
    return setups


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Levels whose tickets travel; refuses them unless they rise from 1 or later."""
    found = errors.wholes("levels", levels, 1)
    if not found or sorted(set(found)) != list(found):
        raise ValueError(f"levels={found}; there must be some, and they must rise")
    return found


def _check_grafts(design: Design, setups: Mapping[str, Setup]) -> None:
    """Raises a ValueError if an unpruned network of a source does not fit a target."""
    seen = set()

    def leaves(name: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        named = trees.by_path(setups[name].task.shapes[:2])
        return tuple((path, x.shape, str(x.dtype)) for path, x in named.items())

    for source, target in itertools.product(design.sources, design.targets):
        kind = leaves(source), leaves(target)
        if kind in seen:  # networks of these shapes fit
            continue
        seen.add(kind)
        landing = _landing(design, setups[target].task)
        check_graft(f"from {source} to {target}", setups[source].task, landing)


def check_graft(name: str, source: Task, target: Task) -> None:
    """Raises a ValueError, by this name, if a network of one task does not fit another."""
    key = keys.of_seed(0)
    params, state, _ = source.init(key)
    ticket = tickets.Ticket(masks.ones_like(params), params, state, {})
    try:
        grafts.graft(ticket, target, key)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Body:
    """The prunable leaves of a task that travel; equal for equal patterns."""

    without: tuple[str, ...]

    def __call__(self, params: Params) -> Prunable:
        return masks.prunable(params, exclude=self.without)


def body(task: Task, without: tuple[str, ...] = ()) -> Task:
    """The task with nothing of its head among the weights that count.

    So that networks are equally dense where it counts, whatever their numbers of classes.

    Args:
      task: the task.
      without: patterns of other leaves that do not count, and are never cut.
    """
    return task._replace(prunable=_Body((*task.head, *without)))


def _landing(design: Design, task: Task) -> Task:
    """A target, as tickets see it."""
    return task._replace(head=()) if design.same_head else task


# --- running --------------------------------------------------------------------------


class Found(NamedTuple):
    """The pruning study of a network.

    Attributes:
      study: its records.
      tickets: by level, of each replica.
    """

    study: imp.Study
    tickets: dict[int, list[tickets.Ticket]]


def find(
    name: str,
    recipe: Recipe,
    setup: Setup,
    ids: Sequence[int],
    where: Where,
    start: Network | None = None,
) -> Found:
    """Runs iterative pruning of a network, or what is missing of it.

    Args:
      name: of the network.
      recipe: of it.
      setup: likewise.
      ids: of the replicas.
      where: its folder gets the tickets.
      start: what it begins with, `[R, ...]`; None for draws of the initialisation.
    """
    _, task, tx, protocol = setup
    levels: tuple[int, ...] = setup.cfg.levels
    fields = {field.name for field in dataclasses.fields(Recipe)}
    config = {k: v for k, v in identity.as_config(recipe).items() if k in fields}
    called = display.names(protocol, ids)
    watched = display.watched(where, f"{name}: ", names=called, last=max(levels))
    with watched as place:
        study = imp.run(
            task,
            tx,
            protocol,
            levels=max(levels),
            replicas=ids,
            start=start,
            metadata={"model": recipe.model, "task": name, "config": config},
            where=place,
        )
    assert where.store is not None

    def ticket(level: int, i: int) -> tickets.Ticket:
        path = imp.ticket_path(where.store, CHAIN, level, i)  # type: ignore[arg-type]
        return tickets.load(path, task.shapes[:2])

    return Found(study, {level: [ticket(level, i) for i in ids] for level in levels})


def trained_dense(
    name: str, setup: Setup, ids: Sequence[int], where: Where
) -> list[tickets.Ticket]:
    """Trained dense networks as tickets without a pruned weight, of each replica.

    They are the ends of level 0 of the pruning study.
    """
    _, task, tx, protocol = setup
    with display.watched(where, f"{name}, dense: ") as place:
        done = training.train_replicas(
            task,
            tx,
            protocol.steps,
            ids,
            seed=protocol.seed,
            validate_every=protocol.validate_every,
            where=place,
        )
    networks = done.networks
    (found,) = imp.tickets_from([masks.ones_like(networks.params)], networks)
    return found


def again(
    setup: Setup,
    chains: Mapping[str, Sequence[tickets.Ticket]],
    arms: tuple[str, ...],
    ids: Sequence[int],
    where: Where,
    what: str = "",
) -> dict[str, np.ndarray]:
    """Trains tickets of any origin on a target, from its rewind step: one batch.

    Args:
      setup: of the target.
      chains: tickets of each replica, by a name.
      arms: what of them is trained.
      ids: of the replicas.
      where: it runs.
      what: before the names of stages.

    Returns:
      Records by name, `[chains, arms, replicas]`.
    """
    _, task, tx, protocol = setup
    (chain,) = protocol.chains
    named = tuple(dataclasses.replace(chain, name=name) for name in chains)
    protocol = dataclasses.replace(protocol, chains=named, arms=arms)
    called = display.names(protocol, ids)
    with display.watched(where, what, names=called) as place:
        study = imp.retrain(
            task,
            tx,
            protocol,
            list(chains.values()),
            level=1,  # whichever: all start alike
            replicas=ids,
            where=place.renamed(level=None),
        )
    return {
        name: value[:, :, :, 0]
        for name, (axes, value) in study.records.items()
        if axes[-1] == "level"
    }


Arrays = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Arrays by name, each with the names of its axes."""


class Sources(NamedTuple):
    """All that is ready to travel.

    Attributes:
      design: what travels where.
      found: the pruning study of every network, by its name.
      dense: trained dense networks by source, of each replica; {} if none travels.
      ids: of the replicas.
    """

    design: Design
    found: Mapping[str, Found]
    dense: Mapping[str, Sequence[tickets.Ticket]]
    ids: list[int]


def on_target(target: str, setup: Setup, ready: Sources, where: Where) -> Arrays:
    """Trains all that comes to a target, and the target's own.

    Args:
      target: its name.
      setup: of it.
      ready: what comes.
      where: it runs; each batch has a folder of its own.

    Returns:
      The records that `one` returns, without the axis of the targets.
    """
    cfg, ids = setup.cfg, ready.ids
    design, found, levels = ready.design, ready.found, cfg.levels
    landing = _landing(design, setup.task)
    kept = f"test_{recipes.metric(cfg).name}", "diverged"

    def there(given: Sequence[Sequence[tickets.Ticket]]) -> Any:
        return grafts.grafted(given, landing, seed=setup.plan.seed, replicas=ids)

    pairs = list(itertools.product(design.sources, levels))
    grafted = there([found[source].tickets[level] for source, level in pairs])
    rows = {f"{s}, level {n}": row for (s, n), row in zip(pairs, grafted)}
    arms = tuple(grafts.CARRIED[one] for one in travelling(cfg))
    at = again(setup, rows, arms, ids, where.below("sources"), f"to {target}: ")

    def square(values: np.ndarray) -> np.ndarray:
        """From `[source * level, arm, replica]` to `[arm, source, level, replica]`."""
        shape = (len(design.sources), len(levels), *values.shape[1:])
        return np.moveaxis(values.reshape(shape), 2, 0)

    axes = ("carried", "source", "level", "replica")
    out: Arrays = {name: (axes, square(at[name])) for name in kept}
    out["density"] = (axes[1:], square(at["density"])[0])
    gone = [broken(found[source], levels) for source in design.sources]
    out["diverged"] = (axes, out["diverged"][1] | np.stack(gone))

    native = {f"level {level}": found[target].tickets[level] for level in levels}
    both = ("ticket", grafts.CARRIED["random ticket"])
    at = again(setup, native, both, ids, where.below("own"), f"{target}: ")
    at["diverged"] |= broken(found[target], levels)[:, None]
    for i, prefix in enumerate(("native", "random")):
        out |= {f"{prefix}_{name}": (axes[2:], at[name][:, i]) for name in kept}
    level_0 = found[target].study.records
    out |= {f"dense_{name}": (axes[3:], level_0[name][1][0, 0, :, 0]) for name in kept}
    if not ready.dense:
        return out
    rows = dict(zip(ready.dense, there(list(ready.dense.values()))))
    place = where.below("dense")
    at = again(setup, rows, ("ticket",), ids, place, f"dense to {target}: ")
    gone = [found[one].study.records["diverged"][1][0, 0, :, 0] for one in rows]
    at["diverged"] |= np.stack(gone)[:, None]
    ends = ("source", "replica")
    return out | {f"fine_tuned_{name}": (ends, at[name][:, 0]) for name in kept}


def travelling(cfg: Config) -> list[str]:
    """What is carried at every level: all but the dense weights."""
    return [one for one in cfg.carried if one != "dense"]


def one(
    design: Callable[[Config], Design],
    setups: Mapping[str, Setup],
    ids: list[int],
    where: Where,
) -> "xr.Dataset":
    """Some replicas of all sources on all targets, or what is missing of them.

    Args:
      design: of the study.
      setups: from `prepare`.
      ids: of the replicas.
      where: it runs; every network has a folder of its own.

    Returns:
      What networks are compared by, `test_METRIC [target, carried, source, level,
      replica]`, and `diverged` likewise; the same of a target's own tickets (`native_`) and
      of random ones (`random_`), `[target, level, replica]`, of its dense network
      (`dense_`), `[target, replica]`, and of a source's dense network that was fine-tuned
      (`fine_tuned_`), `[target, source, replica]`; `density [target, source, level,
      replica]`; `overlap` and `overlap_by_chance [source, other, level, replica]`.
    """
    cfg = next(iter(setups.values())).cfg
    own = design(cfg)
    natives, trained = where.below("native"), where.below("dense")
    found = {
        name: find(name, recipe, setups[name], ids, natives.below(name))
        for name, recipe in own.recipes.items()
    }
    dense = {
        name: trained_dense(name, setups[name], ids, trained.below(name))
        for name in own.sources
        if "dense" in cfg.carried
    }
    ready = Sources(own, found, dense, ids)
    parts, seconds = [], {}
    for target in own.targets:
        begin, place = time.monotonic(), where.below("targets").below(target)
        parts.append(on_target(target, setups[target], ready, place))
        seconds[target] = round(time.monotonic() - begin, 1)
    out: Arrays = {
        name: (("target", *axes), np.stack([part[name][1] for part in parts]))
        for name, (axes, _) in parts[0].items()
    }
    shared, chance = overlaps({s: found[s] for s in own.sources}, setups)
    among = ("source", "other", "level", "replica")
    out |= {"overlap": (among, shared), "overlap_by_chance": (among, chance)}
    coordinates = {
        "carried": travelling(cfg),
        "source": list(own.sources),
        "target": list(own.targets),
        "other": list(own.sources),
        "level": list(cfg.levels),
        "replica": ids,
    }
    notes = dict.fromkeys(recipes.note(recipe) for recipe in own.recipes.values())
    note = " ".join(filter(None, notes))
    first = own.targets[0]
    attributes = {
        **records.environment(),
        "execution": found[first].study.execution._asdict(),
        "head": "kept" if own.same_head else "replaced",
        "steps": setups[first].plan.steps,
        "rewind_step": setups[first].plan.rewind_step,
        "seconds_of_targets": seconds,
        **({"note": note} if note else {}),
    }
    return records.dataset(out, coordinates, attributes)


def work(design: Callable[[Config], Design], setups: Mapping[str, Setup]) -> cost.Work:
    """What all sources, and all that comes to each target, cost.

    Args:
      design: of the study.
      setups: from `prepare`.
    """
    cfg = next(iter(setups.values())).cfg
    own, levels, parts = design(cfg), len(cfg.levels), list[cost.Work]()
    for name in own.recipes:
        of = cost.of_setup(setups[name])
        study = cost.study(of, setups[name].plan, max(cfg.levels), cfg.replicas)
        parts.append(cost.named(name, study))
    dense = [name for name in own.sources if "dense" in cfg.carried]
    parts += [work_of_dense(name, setups[name]) for name in dense]
    random = grafts.CARRIED["random ticket"]
    for target in own.targets:
        setup = setups[target]
        carried = tuple(grafts.CARRIED[one] for one in travelling(cfg))
        comes = {
            f"to {target}": (len(own.sources) * levels, carried),
            f"{target}, its own": (levels, ("ticket", random)),
            f"dense to {target}": (len(dense), ("ticket",)),
        }
        parts += [
            work_of_again(setup, number, arms, name)
            for name, (number, arms) in comes.items()
            if number
        ]
    return cost.together(*parts)


def work_of_dense(name: str, setup: Setup) -> cost.Work:
    """What `trained_dense` costs.

    Args:
      name: of the networks.
      setup: of them.
    """
    cfg, of, plan = setup.cfg, cost.of_setup(setup), setup.plan
    every = plan.validate_every
    return cost.trained(f"{name}, dense", of, cfg.replicas, plan.steps, every=every)


def work_of_again(
    setup: Setup, number: int, arms: tuple[str, ...], name: str
) -> cost.Work:
    """What `again` costs.

    Args:
      setup: of the target.
      number: of chains.
      arms: of them.
      name: of it.
    """
    (chain,) = setup.plan.chains
    chains = tuple(dataclasses.replace(chain, name=f"{i}") for i in range(number))
    plan = dataclasses.replace(setup.plan, chains=chains, arms=arms)
    return cost.again(cost.of_setup(setup), plan, setup.cfg.replicas, name)


def broken(found: Found, levels: Sequence[int]) -> np.ndarray:
    """Whether a ticket's mask was made from weights that diverged, `[level, replica]`."""
    diverged = found.study.records["diverged"][1][0, 0]
    return diverged[:, np.array(levels) - 1].T


# --- masks ----------------------------------------------------------------------------


class Common(NamedTuple):
    """How many weights of masks survive in others, too.

    Attributes:
      alive: surviving weights of a mask, `[source, layer, level, replica]`.
      both: those that survive in another, too, `[source, other, layer, level, replica]`.
      chance: as many as would by chance: where weights survive in each layer at random,
        as many of them as do in each of the two.
      layers: the names of the leaves.
    """

    alive: np.ndarray
    both: np.ndarray
    chance: np.ndarray
    layers: list[str]


def common(found: Mapping[str, Found], setups: Mapping[str, Setup]) -> Common:
    """What masks of several sources have in common, layer by layer.

    Masks that were made from weights that diverged have nothing: nan.

    Args:
      found: the pruning studies of the sources.
      setups: of the sources; the layers that count are those of each.
    """
    tasks = {name: setups[name].task for name in found}
    flat = [_bodies(found[name].tickets, task) for name, task in tasks.items()]
    first = next(iter(tasks.values()))
    flags = masks.resolve(first.shapes[0], masks.of_task(first))
    layers = [path for path, on in zip(trees.paths(first.shapes[0]), flags) if on]

    def counted(count: Callable[..., float], *sets: Any) -> np.ndarray:
        """A count of each layer, `[layer, level, replica]`."""
        each = [
            [[count(*leaves) for leaves in zip(*masks_)] for masks_ in zip(*rows)]
            for rows in zip(*sets)
        ]
        return np.moveaxis(np.array(each, np.float64), 2, 0)

    def pairs(count: Callable[..., float]) -> np.ndarray:
        return np.array([[counted(count, a, b) for b in flat] for a in flat])

    gone = np.array([broken(one, list(one.tickets)) > 0 for one in found.values()])
    alive = np.array([counted(np.sum, a) for a in flat])
    either = (gone[:, None] | gone)[:, :, None]
    both = pairs(lambda x, y: np.sum(x & y))
    chance = pairs(lambda x, y: x.sum() * y.mean())
    return Common(
        np.where(gone[:, None], np.nan, alive),
        np.where(either, np.nan, both),
        np.where(either, np.nan, chance),
        layers,
    )


def overlaps(
    found: Mapping[str, Found], setups: Mapping[str, Setup]
) -> tuple[np.ndarray, np.ndarray]:
    """How much masks of two sources have in common, and what they would have by chance.

    Args:
      found: the pruning studies of the sources.
      setups: of the sources.

    Returns:
      Two arrays `[source, source, level, replica]`: the share of the surviving weights of
      the first that survive in the second, too; and by chance, see `Common`.
    """
    alive, both, chance, _ = common(found, setups)
    whole = alive.sum(1)[:, None]
    return both.sum(2) / whole, chance.sum(2) / whole


def _bodies(
    found: Mapping[int, Sequence[tickets.Ticket]], task: Task
) -> list[list[list[np.ndarray]]]:
    """The masks of what counts, by level and replica."""
    flags = masks.resolve(task.shapes[0], masks.of_task(task))

    def body(mask: Mask) -> list[np.ndarray]:
        leaves = jax.tree.leaves(trees.host(mask))
        return [leaf for leaf, take in zip(leaves, flags) if take]

    return [[body(one.mask) for one in row] for row in found.values()]
