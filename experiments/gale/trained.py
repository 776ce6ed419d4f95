"""What is trained: every method at every density, all replicas of one side by side.

All of them have the keys of a pruning study (`lottery_jax.keys`): the initialisation and
the noise of a replica are those that `imp.run` trains its tickets with. So *lottery* begins
from the very weights that gradual pruning began from, and sees the same batches in the same
order. *Scratch* has the draw and the noise of the arm "reinit".
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments import cost, display, recipes
from experiments.experiment import dataset
from experiments.gale.config import (
    RATE,
    Config,
    at_length,
    densities,
    gradual,
    rules,
    shared,
)
from experiments.recipes import Setup, make_optimizer
from lottery_jax import imp, keys, masks, tickets, training, trees
from lottery_jax.dynamic import MaskUpdate
from lottery_jax.execution import Where as Place
from lottery_jax.optimizers.settings import Optimizer
from lottery_jax.types import Mask, Network

if TYPE_CHECKING:
    import xarray as xr

Found = dict[str, np.ndarray]
"""What networks have come to: test metrics, `diverged` and `alive`, `[..., replica]`."""

AGAIN = {"lottery": "ticket", "scratch": "reinit"}
"""What masks are trained again from, and the arm of a retraining that each is."""


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Trains a group of replicas by all methods."""
    cfg, task, _, plan = setup
    with display.watched(where, metric=recipes.metric(cfg)) as place:
        dense = train_dense(setup, ids, named(place, "dense"))
        tx = optimizer(setup, plan.steps)
        found, last = by_rules(setup, tx, ids, place)
        whole = initial(setup, tx, ids, place)
        steps = {method: [plan.steps] * len(cfg.levels) for method in found}
        longest = cfg.longer * plan.steps
        long_tx = optimizer(setup, longest)
        found["gradual_longer"] = prune_longer(setup, long_tx, longest, ids, place)
        steps["gradual_longer"] = [longest] * len(cfg.levels)
    for own, length, word in ((tx, plan.steps, ""), (long_tx, longest, "_longer")):
        below, given = where.below(f"again{word}"), imp.tickets_from(last, whole)
        again = train_again(setup, own, length, given, ids, below)
        for method, values in again.items():
            # A mask of weights that are no numbers is none.
            values["diverged"] = values["diverged"] | found["gradual"]["diverged"]
            found[method + word] = values
            steps[method + word] = [plan.steps + length] * len(cfg.levels)
    study = iterate(setup, tx, max(cfg.levels), plan.steps, ids, where.below("imp"))
    found["imp"] = stacked([_of_level(study, level) for level in cfg.levels])
    steps["imp"] = [plan.steps * (level + 1) for level in cfg.levels]
    each = []
    for level in cfg.levels:
        length = shared(plan.steps, level)
        below = where.below(f"imp-shared-{level}")
        own = optimizer(setup, length)
        each.append(_of_level(iterate(setup, own, level, length, ids, below), level))
    found["imp_same_steps"] = stacked(each)
    steps["imp_same_steps"] = [shared(plan.steps, n) * (n + 1) for n in cfg.levels]
    return _results(setup, ids, found, steps, dense)


def work(setup: Setup) -> cost.Work:
    """What all methods cost."""
    cfg, task, _, plan = setup
    of, replicas, longest = cost.of_setup(setup), cfg.replicas, cfg.longer * plan.steps

    def by(name: str, steps: int, sets: int = 1) -> cost.Work:
        how: dict[str, int] = dict(every=cfg.validate_every, tests=1, orders=replicas)
        return cost.trained(name, of, sets * replicas, steps, **how)

    chains = tuple(imp.Chain(f"level {level}") for level in cfg.levels)

    def again(name: str, steps: int) -> cost.Work:
        arms = tuple(AGAIN.values())
        own = dataclasses.replace(plan, steps=steps, chains=chains, arms=arms)
        return cost.again(of, own, replicas, name)

    def iterated(name: str, levels: int, steps: int) -> cost.Work:
        own = dataclasses.replace(plan, steps=steps)
        return cost.named(name, cost.study(of, own, levels, replicas))

    methods = [
        by(f"{method}-{level}", plan.steps)
        for level, density in zip(cfg.levels, densities(cfg, task))
        for method in rules(cfg, task, density)
    ]
    return cost.together(
        by("dense", plan.steps, len(cfg.sweep_learning_rate)),
        *methods,
        *(by(f"gradual_longer-{level}", longest) for level in cfg.levels),
        again("again", plan.steps),
        again("again_longer", longest),
        iterated("imp", max(cfg.levels), plan.steps),
        *(
            iterated(f"imp-shared-{level}", level, shared(plan.steps, level))
            for level in cfg.levels
        ),
    )


def optimizer(setup: Setup, steps: int) -> Optimizer:
    """That of all but the dense network, for a training of so many steps."""
    epoch = setup.task.steps_per_epoch
    return make_optimizer(at_length(setup.cfg, epoch, steps), epoch)


def named(where: Place, name: str) -> Place:
    """A folder of a stage's own, and its name for who watches."""
    return where.below(name).renamed(stage=name)


def stacked(found: Sequence[Found]) -> Found:
    """What was found at several densities, with an axis of these before all others."""
    return {name: np.stack([one_[name] for one_ in found]) for name in found[0]}


# --- dense, and sparse while it trains ------------------------------------------------


def train_dense(setup: Setup, ids: list[int], where: Place) -> Found:
    """Dense networks at all rates, `[learning_rate, replica]`, validated at the end."""
    cfg, _, make_tx, plan = setup
    done = training.train_replicas(
        setup.task,
        make_tx,
        plan.steps,
        ids,
        seed=cfg.seed,
        validate_every=cfg.validate_every,
        sweep={RATE: cfg.sweep_learning_rate},
        where=where,
    )
    name = f"validation_{recipes.metric(cfg).name}"
    found = reached(setup, done, where) | {name: done.curves.values[name][:, -1]}
    return {name: x.reshape(-1, len(ids)) for name, x in found.items()}


def by_rules(
    setup: Setup, tx: Optimizer, ids: list[int], where: Place
) -> tuple[dict[str, Found], list[Mask]]:
    """All methods that are sparse while they train, and gradual pruning's last masks.

    Args:
      setup: of the run.
      tx: the optimizer.
      ids: of the replicas.
      where: it runs.

    Returns:
      What was found by method, `[level, replica]`; a mask for each level, `[R, ...]`.
    """
    cfg, task, _, _ = setup
    found: dict[str, list[Found]] = {}
    last: list[Mask] = []
    for level, density in zip(cfg.levels, densities(cfg, task)):
        for method, rule in rules(cfg, task, density).items():
            place = named(where, f"{method}-{level}")
            done = train_by(setup, tx, rule, setup.plan.steps, ids, place)
            found.setdefault(method, []).append(reached(setup, done, place))
            if method == "gradual":
                last.append(done.state.mask)
    return {method: stacked(each) for method, each in found.items()}, last


def prune_longer(
    setup: Setup, tx: Optimizer, steps: int, ids: list[int], where: Place
) -> Found:
    """Gradual pruning over more steps, `[level, replica]`: at the price of a lottery.

    Args:
      setup: of the run.
      tx: the optimizer, with its schedule over so many steps.
      steps: how long networks are trained.
      ids: of the replicas.
      where: it runs.
    """
    cfg, task, _, _ = setup
    found = []
    for level, density in zip(cfg.levels, densities(cfg, task)):
        rule = gradual(cfg, task, density, cfg.longer)
        place = named(where, f"gradual_longer-{level}")
        done = train_by(setup, tx, rule, steps, ids, place)
        found.append(reached(setup, done, place))
    return stacked(found)


def train_by(
    setup: Setup,
    tx: Optimizer,
    rule: MaskUpdate,
    steps: int,
    ids: list[int],
    where: Place,
) -> training.Trained:
    """Trains networks whose masks change by a rule, for so many steps."""
    cfg, task, _, _ = setup
    return training.train_replicas(
        task,
        tx,
        steps,
        ids,
        seed=cfg.seed,
        validate_every=cfg.validate_every,
        rule=rule,
        where=where,
    )


def reached(setup: Setup, done: training.Trained, where: Place) -> Found:
    """What trained networks have come to, `[runs]`, in the order of the runs."""
    task, state = setup.task, done.state
    tested = training.evaluate(task, state.network, "test", where=where.aside())
    found = {f"test_{name}": value for name, value in tested.items()}
    nan = np.isfinite(done.curves.first_nan) | ~np.isfinite(found["test_loss"])
    alive = jax.vmap(lambda mask: masks.count(mask, masks.of_task(task)))(state.mask)
    return found | {"diverged": nan, "alive": np.asarray(alive)}


# --- masks again, and level after level -----------------------------------------------


def train_again(
    setup: Setup,
    tx: Optimizer,
    steps: int,
    found: Sequence[Sequence[tickets.Ticket]],
    ids: list[int],
    where: Place,
) -> dict[str, Found]:
    """Masks from their initialisation and from a fresh one, by name, `[level, replica]`.

    Args:
      setup: of the run.
      tx: the optimizer, with its schedule over so many steps.
      steps: how long they are trained.
      found: the masks with the weights that they grew from, by level and replica.
      ids: of the replicas.
      where: it runs.
    """
    cfg, task, _, plan = setup
    plan = dataclasses.replace(
        plan,
        steps=steps,
        chains=tuple(imp.Chain(f"level {level}") for level in cfg.levels),
        arms=tuple(AGAIN.values()),
    )
    with _watched(setup, plan, ids, 1, where) as place:
        study = imp.retrain(task, tx, plan, found, level=1, replicas=ids, where=place)
    return {
        method: _records(study, operator.itemgetter((slice(None), i, slice(None), 0)))
        for i, method in enumerate(AGAIN)
    }


def initial(setup: Setup, tx: Optimizer, ids: list[int], where: Place) -> Network:
    """The networks that all methods start from, `[R, ...]`, on the host."""
    own = keys.of_replicas(setup.cfg.seed, ids)
    runs = training.fresh(setup.task, tx, own.init, own.noise, where=where.aside())
    # Rows beyond the replicas fill up the devices.
    return trees.rows(trees.host(runs.state.network), slice(len(ids)))


def iterate(
    setup: Setup, tx: Optimizer, levels: int, steps: int, ids: list[int], where: Place
) -> imp.Study:
    """Iterative magnitude pruning from step 0, so many steps for each level."""
    plan = dataclasses.replace(setup.plan, steps=steps)
    with _watched(setup, plan, ids, levels, where) as place:
        return imp.run(
            setup.task,
            tx,
            plan,
            levels=levels,
            replicas=ids,
            metadata=recipes.ticket_metadata(setup.cfg, "gale"),
            where=place,
        )


def _watched(
    setup: Setup, plan: imp.Plan, ids: list[int], last: int, where: Place
) -> Any:
    """The place of levels, with a display that knows what their networks are called."""
    names, metric = display.names(plan, ids), recipes.metric(setup.cfg)
    what = f"{where.store.name}, " if where.store is not None else ""
    return display.watched(where, what, names=names, last=last, metric=metric)


def _records(study: imp.Study, pick: Callable[[np.ndarray], np.ndarray]) -> Found:
    """What the networks of a study have come to; picks from `[chain, arm, R, level]`."""
    axes = ("chain", "arm", "replica", "level")
    return {
        name: pick(value)
        for name, (own, value) in study.records.items()
        if own == axes and (name in ("diverged", "alive") or _at_the_end(name))
    }


def _at_the_end(name: str) -> bool:
    return name.startswith("test_") and not name.endswith("_early")


def _of_level(study: imp.Study, level: int) -> Found:
    return _records(study, lambda x: x[0, 0, :, level])


# --- put together ---------------------------------------------------------------------


def _results(
    setup: Setup,
    ids: list[int],
    found: Mapping[str, Found],
    steps: Mapping[str, Sequence[int]],
    dense: Found,
) -> "xr.Dataset":
    """Everything by method, density and replica, and the dense networks by their rates.

    Args:
      setup: of the run.
      ids: of the replicas.
      found: by method, `[level, replica]`.
      steps: training steps that each method takes in all, by level.
      dense: `[learning_rate, replica]`.
    """
    cfg: Config = setup.cfg
    axes = ("method", "level", "replica")
    out: dict[str, Any] = {
        name: (axes, np.stack([values[name] for values in found.values()]))
        for name in found["gradual"]
    }
    out["steps"] = (axes[:2], np.array([steps[method] for method in found], np.int32))
    out["density"] = (("level",), np.array(densities(cfg, setup.task)))
    for name, value in dense.items():
        out[f"dense_{name}"] = ((RATE, "replica"), value)
    for name in ("diverged", "dense_diverged"):
        out[name] = (out[name][0], out[name][1].astype(np.int8))
    coordinates = {
        "method": list(found),
        "level": list(cfg.levels),
        "replica": ids,
        RATE: list(cfg.sweep_learning_rate),
    }
    return dataset(cfg, out, coordinates)
