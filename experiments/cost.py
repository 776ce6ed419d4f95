"""What a run computes, in replica-steps, and how many minutes a GPU needs for it.

A *replica-step* is one training step of one network. A step goes forward and, at twice
that cost, backward; so an evaluation of as many examples as there are in a batch is a
third of a step. Counted is what an accelerator computes: there all networks advance
together, and one that joins late is computed, and thrown away, from the first step on.

Every experiment says what it trains, as `Work`, in a function of its set-up: `--plan` shows
it (`experiments.plans`), and presets of known speed say what it costs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.kinds import images
from experiments.presets import Preset
from experiments.recipes import Recipe, Setup
from lottery_jax import connectivity, imp
from lottery_jax.types import Task

C = TypeVar("C", bound=Recipe)


class Of(NamedTuple):
    """What is trained, as far as it is counted.

    Attributes:
      batch_size: examples of a step.
      train: examples that are trained on.
      validation: that are held out.
      test: of the test split.
      setup: of these; None where there is but a configuration.
    """

    batch_size: int
    train: int
    validation: int
    test: int
    setup: Setup | None = None

    @property
    def steps_per_epoch(self) -> int:
        """After how many steps every example was seen once."""
        return math.ceil(self.train / self.batch_size)


def of_setup(setup: Setup) -> Of:
    """What a set-up trains, by the shapes of its task's data."""
    train, validation, test = (
        examples(setup.task, split) for split in ("train", "validation", "test")
    )
    return Of(setup.cfg.batch_size, train, validation, test, setup)


def examples(task: Task, split: str) -> int:
    """How many examples a split has; 0 for a task that has none."""
    held = task.data.get(split) if isinstance(task.data, Mapping) else None
    leaves = jax.tree.leaves(held)
    return int(leaves[0].shape[0]) if leaves and np.ndim(leaves[0]) else 0


class Training(NamedTuple):
    """Networks that train side by side, from the first step of one to their last.

    Attributes:
      name: what they are.
      of: what they are trained on.
      networks: how many.
      first: the step at which the first of them begins.
      last: at which all end.
      times: how often this is done, one time after another.
      evaluated: examples on which each is measured, each time.
      orders: data orders among them: what of the examples is read several times.
      kept: training states of each that are kept on the host.
      best: whether the best network so far is held beside each.
      held: further networks that are held on the host meanwhile.
      tickets: that are stored, in all.
    """

    name: str
    of: Of
    networks: int
    first: int
    last: int
    times: int = 1
    evaluated: int = 0
    orders: int = 1
    kept: int = 0
    best: bool = False
    held: int = 0
    tickets: int = 0

    @property
    def steps(self) -> int:
        """Of all times."""
        return self.times * (self.last - self.first)

    @property
    def replica_steps(self) -> int:
        """Of all networks."""
        return self.networks * self.steps

    @property
    def read(self) -> int:
        """Examples of all steps, each order by itself."""
        return self.orders * self.steps * self.of.batch_size


class Measured(NamedTuple):
    """Networks, or points between them, that are measured.

    Attributes:
      name: what they are.
      of: what they are measured on.
      points: how many.
      examples: of each.
      path: whether they lie between networks.
    """

    name: str
    of: Of
    points: int
    examples: int
    path: bool = False

    @property
    def replica_steps(self) -> float:
        """What they amount to."""
        return self.points * self.examples / (3 * self.of.batch_size)


class Work(NamedTuple):
    """What a run computes.

    Attributes:
      trainings: of networks, in the order in which they are done.
      measured: of networks and points, beside what is measured as they train.
      bound: why it may be less; empty if it may not.
    """

    trainings: tuple[Training, ...]
    measured: tuple[Measured, ...] = ()
    bound: str = ""

    @property
    def training(self) -> int:
        """Replica-steps of all networks, levels, trunks and branches."""
        return sum(one.replica_steps for one in self.trainings)

    @property
    def evaluation(self) -> float:
        """Of networks: validations, tests, predictions; in replica-steps."""
        within = sum(
            one.networks * one.times * one.evaluated / (3 * one.of.batch_size)
            for one in self.trainings
        )
        return within + sum(x.replica_steps for x in self.measured if not x.path)

    @property
    def paths(self) -> float:
        """Of points between networks, in replica-steps."""
        return sum(x.replica_steps for x in self.measured if x.path)

    @property
    def total(self) -> float:
        """All of it, in replica-steps."""
        return self.training + self.evaluation + self.paths


def together(*parts: Work) -> Work:
    """Several works, one after another."""
    return Work(
        tuple(one for part in parts for one in part.trainings),
        tuple(one for part in parts for one in part.measured),
        "; ".join(dict.fromkeys(part.bound for part in parts if part.bound)),
    )


def named(name: str, work: Work) -> Work:
    """The same, with a name before those of its parts."""
    return Work(
        tuple(one._replace(name=f"{name}: {one.name}") for one in work.trainings),
        tuple(one._replace(name=f"{name}: {one.name}") for one in work.measured),
        work.bound,
    )


class Rate(NamedTuple):
    """How fast a model trains on one GPU.

    Attributes:
      steps: replica-steps/s of several replicas at once.
      batch_size: examples of each step.
      measured: where the number is from.
    """

    steps: float
    batch_size: int
    measured: str


_H200 = "nine replicas by tiles on one H200, tf32: docs/results/gpu.json"
RATES: Mapping[tuple[str, str], Rate] = {
    ("resnet-20", "float32"): Rate(937.0, 128, _H200),
    ("resnet-20", "bfloat16"): Rate(1717.0, 128, _H200),
}
"""By the names of models and what their layers store; the others are not known."""

CALL = 9.0
"""Minutes of a call on a machine that is lent for ten."""
START = 1.5
"""Of these, minutes until a process trains: its start, the data, compilation."""


def of_recipe(cfg: Recipe) -> Of:
    """What a recipe trains, of a data set of known size; no data are loaded for it."""
    known = images.SIZES[cfg.data]
    held_out = known.validation if cfg.validation is None else cfg.validation
    train = cfg.subset or known.train - held_out
    return Of(cfg.batch_size, train, held_out, known.test)


# --- what is done with networks -------------------------------------------------------


def columns(first: int, last: int, every: int) -> int:
    """At how many steps something is recorded of a training."""
    return math.ceil(last / every) - first // every


def trained(
    name: str,
    of: Of,
    networks: int,
    last: int,
    *,
    first: int = 0,
    every: int = 0,
    tests: int = 0,
    orders: int | None = None,
    kept: int = 0,
) -> Work:
    """Networks that are trained once.

    Args:
      name: what they are.
      of: what they are trained on.
      networks: how many.
      last: the step at which they end.
      first: at which the first of them begins.
      every: steps between validations, if there are any.
      tests: how often each is tested.
      orders: data orders among them; None for one each.
      kept: states of each that are kept.
    """
    if not networks or last <= first:
        return Work(())
    evaluated = tests * of.test
    if every:
        evaluated += columns(first, last, every) * of.validation
    best = bool(every and of.validation)
    orders = networks if orders is None else orders
    one = Training(
        name,
        of,
        networks,
        first,
        last,
        evaluated=evaluated,
        orders=orders,
        kept=kept,
        best=best,
    )
    return Work((one,))


def study(of: Of, plan: imp.Plan, levels: int, replicas: int) -> Work:
    """A pruning study, as `imp.run` does it.

    Args:
      of: what is trained.
      plan: the protocol, with a chain for each setting of a sweep.
      levels: prunings after level 0.
      replicas: how many.
    """
    dense = _level(of, plan, replicas, 0)._replace(name="level 0, dense")
    pairs = len(plan.chains) * replicas
    rows = pairs * len(plan.arms)
    rewound = any(plan.rewind_steps)
    # The first networks and those of the rewind step, the tickets' last ones, and what of
    # them some chains go on from.
    held = rows * (1 + rewound) + pairs
    held += pairs * any(chain.one_shot for chain in plan.chains)
    held += pairs * any(chain.keeps_weights for chain in plan.chains)
    dense = dense._replace(kept=int(rewound), held=held, tickets=pairs)
    if not levels:
        return Work((dense,))
    name = "level 1" if levels == 1 else f"levels 1 to {levels}"
    pruned = _level(of, plan, replicas, 1)._replace(
        name=name, times=levels, held=held, tickets=levels * pairs
    )
    return Work((dense, pruned))


def again(of: Of, plan: imp.Plan, replicas: int, name: str = "masks again") -> Work:
    """Tickets that are trained once more, as `imp.retrain` does it.

    Args:
      of: what is trained.
      plan: the protocol.
      replicas: how many.
      name: of it.
    """
    late = [k for k in plan.rewind_steps if k > 0]
    drawn = [a for a in _arms(plan) if a.fresh and not (a.untrained or a.from_step_0)]
    fresh = trained(
        f"{name}, fresh draws",
        of,
        len(late) * replicas * len(drawn),
        max(late, default=0),
        orders=replicas,
        kept=1,
    )
    rows = len(plan.chains) * replicas * len(plan.arms)
    one = _level(of, plan, replicas, 1)._replace(name=name, held=2 * rows)
    return together(fresh, Work((one,)))


def _arms(plan: imp.Plan) -> list[Any]:
    return [arm for arm in imp.ARMS if arm.name in plan.arms]


def _level(of: Of, plan: imp.Plan, replicas: int, level: int) -> Training:
    """The networks of one level."""
    arms = _arms(plan)
    # Where one trains from step 0 the others, on an accelerator, do so with it.
    whole = level == 0 or any(arm.from_step_0 for arm in arms)
    first = 0 if whole else min(plan.rewind_steps)
    # With a validation split the best network is tested beside the last one.
    evaluated = (2 if of.validation else 1) * of.test
    evaluated += columns(first, plan.steps, plan.validate_every) * of.validation
    # Fresh draws have a noise of their own, all others that of their replica.
    orders = replicas * len({arm.fresh for arm in arms})
    return Training(
        "",
        of,
        len(plan.chains) * replicas * len(plan.arms),
        first,
        plan.steps,
        evaluated=evaluated,
        orders=orders,
        best=bool(of.validation),
    )


def analysis(of: Of, plan: connectivity.Plan, cfg: Any) -> Work:
    """An instability analysis, as `connectivity.run` does it.

    Args:
      of: what is trained.
      plan: the protocol.
      cfg: the configuration, a `PathRecipe`.
    """
    starts = set(plan.rewind_steps)
    trunk = trained(
        "trunks", of, cfg.replicas, max(starts), kept=len(starts), orders=cfg.replicas
    )
    first = 0 if "restarted" in plan.schedules else min(starts)
    states = len(plan.schedules) * len(starts) * cfg.replicas
    branches = states * plan.branches
    # Those of all states share their noises.
    done = trained(
        "branches",
        of,
        branches,
        plan.steps,
        first=first,
        orders=cfg.replicas * plan.branches,
    )
    number = path_examples(of, cfg)
    predicted = Measured("classes of branches", of, branches, number)
    paths = states * math.comb(plan.branches, 2)
    measured = [
        lines(of, cfg, paths, policy, number) for policy in plan.batch_norm or (None,)
    ]
    return together(trunk, done, Work((), (predicted,)), *measured)


def path_examples(of: Of, cfg: Any) -> int:
    """Examples that each point of a path is measured on."""
    return (cfg.path_train or of.train) + (cfg.path_test or of.test)


def lines(
    of: Of, cfg: Any, paths: int, policy: str | None, number: int | None = None
) -> Work:
    """Paths between networks, point by point.

    Args:
      of: what is measured.
      cfg: the configuration, a `PathRecipe`.
      paths: how many.
      policy: for BatchNorm.
      number: of examples; None for those of the configuration.
    """
    number = path_examples(of, cfg) if number is None else number
    points = paths * cfg.alphas
    name = "paths" if policy is None else f"paths, BatchNorm by {policy}"
    found = [Measured(name, of, points, number, path=True)]
    if policy == "recompute":
        batches = cfg.statistics_batches * of.batch_size
        found.append(Measured("BatchNorm statistics", of, points, batches, path=True))
    return Work((), tuple(found))


# --- what it costs --------------------------------------------------------------------


def minutes(cfg: Recipe, work: Work) -> float | None:
    """Minutes of one GPU, the starts of calls left out; None for a model of no known rate.

    Args:
      cfg: whose model and batch it is.
      work: what it computes.
    """
    rate = RATES.get((cfg.model, cfg.activations))
    if rate is None:
        return None
    # A step of a larger batch takes longer by as much.
    return work.total * cfg.batch_size / rate.batch_size / rate.steps / 60


def calls(needed: float) -> int:
    """How many calls of `CALL` minutes a run needs, each of which starts anew.

    Args:
      needed: from `minutes`.
    """
    return math.ceil(needed / (CALL - START))


def in_words(cfg: Recipe, work: Work) -> str:
    """What a run costs, in a sentence for `--help`; empty for a model of no known rate.

    Args:
      cfg: its configuration.
      work: what it computes.
    """
    needed = minutes(cfg, work)
    if needed is None:
        return ""
    times = calls(needed)
    return (
        f"{work.total / 1e6:.2f} million replica-steps: {needed:.0f} min of a GPU at "
        f"{work.total / needed / 60:,.0f}/s, {times} call{'s' * (times > 1)} of "
        f"{CALL:g} min."
    )


def told(
    presets: Mapping[str, Preset[C]], of: Callable[[C], Work]
) -> Mapping[str, Preset[C]]:
    """The same presets, whose lines say what they cost, where that is known.

    Args:
      presets: of an experiment.
      of: what one computes.
    """

    def said(preset: Preset[C]) -> Preset[C]:
        cfg = preset.config
        known = (cfg.model, cfg.activations) in RATES
        if not known or cfg.data not in images.SIZES:
            return preset
        return preset._replace(help=f"{preset.help} {in_words(cfg, of(cfg))}")

    return {name: said(preset) for name, preset in presets.items()}
