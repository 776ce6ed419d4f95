"""Where networks come from: pre-training, tickets on it, tickets and controls downstream."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments import cost, recipes
from experiments.experiment import dataset
from experiments.kinds import images
from experiments.pretraining.config import (
    RANDOM,
    Config,
    dense,
    origins,
    pretraining,
    target,
)
from experiments.recipes import Setup
from experiments.transfer import pairs
from experiments.transfer.pairs import Arrays, Found
from lottery_jax import keys, probes, tickets, trees
from lottery_jax import transfer as grafts
from lottery_jax.execution import Where
from lottery_jax.types import Network, Task

if TYPE_CHECKING:
    import xarray as xr

CARRIED = ("ticket", "reinit")
"""A pre-training's ticket downstream: on the pre-trained weights, and on random ones."""

Points = Mapping[str, Sequence[tickets.Ticket]]
"""Pre-trained networks by name, of each replica, without a pruned weight."""


def begun(given: Sequence[tickets.Ticket]) -> Network:
    """Networks of each replica as what runs start from, `[R, ...]`."""
    return trees.stack([Network(one.params, one.model_state) for one in given])


def landed(
    given: Sequence[tickets.Ticket], task: Task, seed: int, ids: Sequence[int]
) -> list[tickets.Ticket]:
    """Networks or tickets of each replica on another task, with its head."""
    return grafts.grafted([given], task, seed=seed, replicas=ids)[0]


def points(setups: Mapping[str, Setup], ids: list[int], where: Where) -> Points:
    """The pre-trained networks, or what is missing of them."""
    cfg: Config = next(iter(setups.values())).cfg
    return {
        name: pairs.trained_dense(name, setups[dense(name)], ids, where.below(name))
        for name in cfg.pretrainings
    }


def on_pretraining(
    name: str,
    setup: Setup,
    point: Sequence[tickets.Ticket],
    ids: list[int],
    where: Where,
) -> Found:
    """The tickets of a pre-training task, from the pre-trained weights."""
    recipe = pretraining(setup.cfg, name, level=True)
    return pairs.find(name, recipe, setup, ids, where, begun(point))


def on_target(
    name: str,
    setup: Setup,
    ready: Points,
    found: Mapping[str, Found],
    ids: list[int],
    where: Where,
) -> tuple[Arrays, dict[str, Found]]:
    """Everything that is trained on a target.

    Args:
      name: of the target.
      setup: of it.
      ready: the pre-trained networks.
      found: the tickets of pre-training tasks.
      ids: of the replicas.
      where: it runs; every study has a folder of its own.

    Returns:
      `native_... [origin, arm, replica, level]`, of the target's own tickets and their
      controls from every start, the dense networks first; `carried_... [source, carried,
      travelling, replica]`, of the tickets of pre-training tasks; and the target's own
      tickets.
    """
    cfg, task, _, protocol = setup
    recipe, own = target(cfg, name), {}
    for origin in origins(cfg):
        start = None
        if origin != RANDOM:
            start = begun(landed(ready[origin], task, protocol.seed, ids))
        called, place = f"{name} from {origin}", where.below(f"from-{origin}")
        own[origin] = pairs.find(called, recipe, setup, ids, place, start)
    records = [one.study.records for one in own.values()]
    out: Arrays = {
        f"native_{kept}": (
            ("origin", "arm", "replica", "level"),
            np.stack([record[kept][1][0] for record in records]),
        )
        for kept in ("test_error", "diverged", "density")
    }
    rows = {
        f"{source}, level {level}": landed(each, task, protocol.seed, ids)
        for source, one in found.items()
        for level, each in one.tickets.items()
    }
    place = where.below("carried")
    at = pairs.again(setup, rows, CARRIED, ids, place, f"to {name}: ")
    shape = (len(found), len(cfg.levels), len(CARRIED), len(ids))
    axes = ("source", "carried", "travelling", "replica")
    for kept in ("test_error", "diverged", "density"):
        value = np.moveaxis(at[kept].reshape(shape), 2, 1)
        out[f"carried_{kept}"] = (axes, value)
    # A mask that was made of weights that diverged is none.
    broken = [pairs.broken(one, cfg.levels) for one in found.values()]
    own_axes, value = out["carried_diverged"]
    out["carried_diverged"] = (own_axes, value | np.stack(broken)[:, None])
    return out, own


PROBES = ("nearest neighbours", "linear")
"""What is read from dense starts, of which nothing is trained."""


def probed(
    name: str, setup: Setup, ready: Points, ids: list[int], where: Where
) -> np.ndarray:
    """What a target's labels say of the representations of dense starts.

    Args:
      name: of the target.
      setup: of it.
      ready: the pre-trained networks.
      ids: of the replicas.
      where: it runs.

    Returns:
      Errors on the test split, `[origin, probe, replica]`; of what diverged nan.
    """
    cfg, recipe = setup.cfg, target(setup.cfg, name)
    found, model = images.load_data(recipe), images.make_model(recipe)
    init = keys.of_replicas(cfg.seed, ids).init
    drawn = [Network(*setup.task.init(init[i])[:2]) for i in range(len(ids))]
    starts = {one: begun(given) for one, given in ready.items()}
    starts[RANDOM] = trees.stack([trees.host(network) for network in drawn])
    train, test = found.arrays["train"], found.arrays["test"]
    errors = []
    for origin in origins(cfg):
        seen, unseen = (
            probes.features(model, starts[origin], x["image"], found, where=where)
            for x in (train, test)
        )
        both = (seen, train["label"], unseen, test["label"])
        number = min(cfg.neighbours, len(train["label"]))
        near = probes.nearest(*both, neighbours=number, where=where)
        errors.append([near, probes.linear(*both, where=where)])
    return np.array(errors)


def work(setups: Mapping[str, Setup]) -> cost.Work:
    """What pre-training, its tickets and all that is done downstream cost.

    What nothing is trained for, the probes, is left out.
    """
    cfg: Config = next(iter(setups.values())).cfg

    def studied(name: str, setup: Setup) -> cost.Work:
        levels, of = max(cfg.levels), cost.of_setup(setup)
        return cost.named(name, cost.study(of, setup.plan, levels, cfg.replicas))

    carried = len(cfg.pretrainings) * len(cfg.levels)
    parts = [pairs.work_of_dense(n, setups[dense(n)]) for n in cfg.pretrainings]
    parts += [studied(name, setups[name]) for name in cfg.pretrainings]
    for name in cfg.targets:
        own = setups[name]
        parts += [studied(f"{name} from {origin}", own) for origin in origins(cfg)]
        parts.append(pairs.work_of_again(own, carried, CARRIED, f"to {name}"))
    return cost.together(*parts)


def one(setups: Mapping[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """The whole study, or what is missing of it.

    Args:
      setups: from `prepare`.
      ids: of the replicas.
      where: it runs; every part has a folder of its own.

    Returns:
      What `on_target` returns with an axis of the targets; `pretraining_error`,
      `..._density` and `..._diverged [source, replica, level]`, of the tickets of a
      pre-training on the pre-training itself; `probe_error [target, origin, probe,
      replica]`; and what masks have in common in each layer, those of pre-trainings, and
      those of the first target from each start: `alive [mask, layer, travelling, replica]`,
      `both` and `chance [mask, other, layer, travelling, replica]`, where `travelling` are
      the levels whose tickets are taken downstream.
    """
    cfg: Config = next(iter(setups.values())).cfg
    ready = points(setups, ids, where.below("points"))
    found: dict[str, Found] = {
        name: on_pretraining(
            name, setups[name], ready[name], ids, where.below("found").below(name)
        )
        for name in cfg.pretrainings
    }
    parts, probes_, masks_of, tasks_of = [], [], dict(found), dict(setups)
    for name in cfg.targets:
        place = where.below("targets").below(name)
        part, own = on_target(name, setups[name], ready, found, ids, place)
        parts.append(part)
        probes_.append(probed(name, setups[name], ready, ids, where))
        if name == cfg.targets[0]:
            named = {f"{name} from {origin}": at for origin, at in own.items()}
            masks_of |= named
            tasks_of |= dict.fromkeys(named, setups[name])
    common = pairs.common(masks_of, tasks_of)
    out: Arrays = {
        name: (("target", *axes), np.stack([part[name][1] for part in parts]))
        for name, (axes, _) in parts[0].items()
    }
    own_axes = ("source", "replica", "level")
    for name in ("error", "diverged", "density"):
        kept = "test_error" if name == "error" else name
        each = [one.study.records[kept][1][0, 0] for one in found.values()]
        out[f"pretraining_{name}"] = (own_axes, np.stack(each))
    layers = ("layer", "travelling", "replica")
    out |= {
        "probe_error": (("target", "origin", "probe", "replica"), np.stack(probes_)),
        "alive": (("mask", *layers), common.alive),
        "both": (("mask", "other", *layers), common.both),
        "chance": (("mask", "other", *layers), common.chance),
    }
    coordinates = {
        "target": list(cfg.targets),
        "origin": list(origins(cfg)),
        "source": list(cfg.pretrainings),
        "probe": list(PROBES),
        "arm": ["ticket", *cfg.controls],
        "carried": list(CARRIED),
        "level": list(range(max(cfg.levels) + 1)),
        "travelling": list(cfg.levels),
        "mask": list(masks_of),
        "other": list(masks_of),
        "layer": common.layers,
        "replica": ids,
    }
    results = dataset(cfg, out, coordinates)
    notes = dict.fromkeys(recipes.note(target(cfg, name)) for name in cfg.targets)
    said = " ".join(filter(None, notes))
    return results.assign_attrs(note=said) if said else results
