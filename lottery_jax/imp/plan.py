"""What a pruning study does, as data: chains, and the plan that puts them together.

A *chain* is a procedure with its own sequence of masks. A *plan* puts chains, arms and
the training run together; it says everything but task, optimizer, levels and replicas.
"""

import bisect
import dataclasses
import functools
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from lottery_jax import errors, masks, prune, schedules, scores, trees
from lottery_jax.errors import one_of, some_different, whole
from lottery_jax.imp.arms import ARMS
from lottery_jax.keys import check_seed
from lottery_jax.optimizers import settings
from lottery_jax.types import Params, PyTree

ByLayer: TypeAlias = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Geometric:
    """Densities that fall by a share of the *remaining* weights at each level.

    Attributes:
      fraction: share of the surviving weights removed at each level, in (0, 1).
      by_layer: for the scope "layerwise", (pattern, fraction) pairs instead of one
        fraction; the first pattern that is found in a leaf's key path counts.
    """

    fraction: float = 0.2
    by_layer: ByLayer = ()

    @property
    def share(self) -> float:
        """What goes at each level."""
        return self.fraction

    def count(self, total: int, level: int, share: float) -> int:
        """How many of so many weights a level keeps."""
        return schedules.geometric(total, level, share)[level]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Densities that fall by a share of the *original* weights at each level.

    Attributes:
      of_original: share of the original weights removed at each level, in (0, 1).
      by_layer: as in `Geometric`, shares of each layer's original weights.
    """

    of_original: float = 0.1
    by_layer: ByLayer = ()

    @property
    def share(self) -> float:
        """What goes at each level."""
        return self.of_original

    def count(self, total: int, level: int, share: float) -> int:
        """How many of so many weights a level keeps."""
        return schedules.linear(total, level, share)[level]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A procedure with its own sequence of masks.

    Attributes:
      name: of the chain, in results and file names.
      densities: how many weights each level keeps.
      one_shot: prune the trained dense network to each level's density at once, instead of
        each level's trained weights.
      scope: "global" ranks over all layers, "layerwise" within each.
      rule: "exact" counts, or open_lth's (global and iterative with `Geometric` only).
      score: a name of `scores.SCORES`, or a function like those there.
      retrain: "rewind" restores the weights of the rewind step k and trains k to the end;
        "lr_rewind" keeps the trained weights and rewinds the schedule to k; "finetune"
        keeps both, going on for as many steps with the schedule past its end. The trained
        weights are the last level's; with `one_shot` the dense network's.
      rewind_step: this chain's own rewind step; None for the plan's.
      hyper: its setting in a sweep: names of hyperparameters with its values; see `swept`.
    """

    name: str = "imp"
    densities: Geometric | Linear = Geometric()
    one_shot: bool = False
    scope: Literal["global", "layerwise"] = "global"
    rule: prune.Rule = "exact"
    score: str | scores.Score = "magnitude"
    retrain: Literal["rewind", "lr_rewind", "finetune"] = "rewind"
    rewind_step: int | None = None
    hyper: tuple[tuple[str, float], ...] = ()

    @property
    def procedure(self) -> "Chain":
        """The chain without its setting."""
        return _procedure(self) if self.hyper else self

    @property
    def keeps_weights(self) -> bool:
        """Whether levels start from trained weights instead of rewound ones."""
        return self.retrain != "rewind"

    @property
    def ranking(self) -> scores.Score:
        """The score as a function."""
        return scores.by_name(self.score) if isinstance(self.score, str) else self.score

    @property
    def score_name(self) -> str:
        """The score in words."""
        if isinstance(self.score, str):
            return self.score
        return getattr(self.score, "__qualname__", type(self.score).__qualname__)

    def as_json(self) -> dict[str, Any]:
        """The chain in the words that tickets have always had."""
        geometric = isinstance(self.densities, Geometric)
        return {
            "name": self.name,
            "schedule": "one_shot"
            if self.one_shot
            else "geometric"
            if geometric
            else "linear",
            "fraction": self.densities.share,
            "scope": self.scope,
            "rates": self.densities.by_layer,
            "rule": self.rule,
            "score": self.score_name,
            "retrain": self.retrain,
            "rewind_step": self.rewind_step,
        } | ({"hyper": dict(self.hyper)} if self.hyper else {})


@functools.lru_cache(maxsize=128)
def _procedure(chain: Chain) -> Chain:
    # The same object each time: programs are found by it at once.
    name = chain.name.removesuffix(settings.words(dict(chain.hyper)))
    return dataclasses.replace(chain, name=name, hyper=())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a study does; determines its numbers together with task and optimizer.

    Attributes:
      steps: length T of a dense training run.
      rewind_step: the step k that levels start from, 0 <= k < steps, where a chain says
        nothing else.
      chains: procedures that run side by side.
      arms: names of `arms.ARMS`; in a study "ticket" must be among them.
      validate_every: steps between validations.
      level_optimizer: "reset" starts each level with fresh moments, "rewind" with those of
        the rewind step, masked.
      random_scope: how the random mask is permuted.
      seed: all keys follow from it and the replica's id; an integer in [0, 2**32).
    """

    steps: int
    rewind_step: int = 0
    chains: tuple[Chain, ...] = (Chain(),)
    arms: tuple[str, ...] = ("ticket", "reinit", "random_mask")
    validate_every: int = 100
    level_optimizer: Literal["reset", "rewind"] = "reset"
    random_scope: Literal["layerwise", "global"] = "layerwise"
    seed: int = 0

    @property
    def rewind_steps(self) -> tuple[int, ...]:
        """The rewind step of each chain."""
        return tuple(
            self.rewind_step if chain.rewind_step is None else chain.rewind_step
            for chain in self.chains
        )

    @property
    def sweep(self) -> dict[str, tuple[float, ...]]:
        """The values of each hyperparameter of a sweep, by name; none without one."""
        found: dict[str, dict[float, None]] = {}
        for chain in self.chains:
            for name, value in chain.hyper:
                found.setdefault(name, {})[value] = None
        return {name: tuple(values) for name, values in found.items()}

    @property
    def hyper(self) -> dict[str, np.ndarray]:
        """The values of each chain's setting by name, float32 `[chains]`."""
        own = [dict(chain.hyper) for chain in self.chains]
        return {
            name: np.array([one[name] for one in own], np.float32)
            for name in self.sweep
        }

    @property
    def settings(self) -> int:
        """How many settings each procedure has: one without a sweep."""
        return len({chain.hyper for chain in self.chains})

    @property
    def procedures(self) -> tuple[Chain, ...]:
        """The chains without their settings, each once."""
        return tuple(chain.procedure for chain in self.chains[:: self.settings])

    def as_json(self, ids: tuple[int, ...]) -> dict[str, Any]:
        """What a run in a folder must have in common with the one that began there."""
        chains = [
            chain.as_json()
            | {"rates": [list(pair) for pair in chain.densities.by_layer]}
            | {"one_shot_of": type(chain.densities).__name__}
            for chain in self.chains
        ]
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return own | {"arms": list(self.arms), "chains": chains, "replicas": list(ids)}


def check(plan: Plan, *, tickets: bool = True) -> Plan:
    """The plan with Python's own numbers and tuples.

    Args:
      plan: the protocol.
      tickets: whether "ticket" must be among its arms: a study prunes what these have
        trained, a retraining of controls alone does not.

    Raises:
      ValueError: names the first field of a plan that makes no sense.
    """
    errors.is_a("plan", plan, Plan, "an imp.Plan, such as imp.Plan(steps=1000)")
    steps = whole("steps", plan.steps, 1)
    validate_every = whole("validate_every", plan.validate_every, 1)
    must = "a tuple of imp.Chain, such as (imp.Chain(),)"
    chains = errors.several("chains", plan.chains, must)
    for chain in chains:
        errors.is_a("chains", chain, Chain, must)
    rewind_step = _rewind_step(plan.rewind_step, steps)
    chains = tuple(_checked_chain(chain, steps) for chain in chains)
    one_of("level_optimizer", plan.level_optimizer, ("reset", "rewind"))
    one_of("random_scope", plan.random_scope, ("layerwise", "global"))
    arms = errors.names("arms", plan.arms)
    for arm in arms:
        one_of("arms", arm, [known.name for known in ARMS])
    if not arms or len(set(arms)) < len(arms) or (tickets and "ticket" not in arms):
        must = (
            "'ticket' must be among them" if tickets else "there must be one at least"
        )
        raise ValueError(f"arms={arms}; {must}, and each arm once")
    some_different("chains", [chain.name for chain in chains])
    _check_settings(chains)
    return dataclasses.replace(
        plan,
        steps=steps,
        rewind_step=rewind_step,
        chains=chains,
        arms=arms,
        validate_every=validate_every,
        seed=check_seed(plan.seed),
    )


def swept(plan: Plan, sweep: settings.Sweep, *, tickets: bool = True) -> Plan:
    """A plan in which each chain is done at all settings of a sweep.

    Args:
      plan: without settings.
      sweep: values by the names of hyperparameters.
      tickets: see `check`.

    Returns:
      The plan with a chain for each chain and setting, the settings varying fastest; its
      name says both, as in `imp, learning_rate=0.01`.

    Raises:
      ValueError: a sweep or a plan that makes no sense, or a plan that has one already.

    Example:
      >>> plan = swept(Plan(steps=100), {"learning_rate": [0.01, 0.1]})
      >>> [chain.name for chain in plan.chains]
      ['imp, learning_rate=0.01', 'imp, learning_rate=0.1']
    """
    plan, grid = check(plan, tickets=tickets), settings.settings(sweep)
    if plan.sweep:
        raise errors.wrong("sweep", dict(sweep), f"None: the plan has {plan.sweep}")
    chains = tuple(
        dataclasses.replace(
            chain, name=chain.name + settings.words(one), hyper=tuple(one.items())
        )
        for chain in plan.chains
        for one in grid
    )
    return dataclasses.replace(plan, chains=chains)


def _check_settings(chains: tuple[Chain, ...]) -> None:
    """Raises a ValueError if chains with settings are not what `swept` makes."""
    if not any(chain.hyper for chain in chains):
        return
    number = len({chain.hyper for chain in chains})
    first = chains[:number]
    values = dict[str, list[float]]()
    for chain in first:
        for name, value in chain.hyper:
            own = values.setdefault(name, [])
            own += [] if value in own else [value]
    made = [
        (chain.procedure.name + settings.words(one), tuple(one.items()))
        for chain in chains[::number]
        for one in settings.settings(values)
    ]
    if made != [(chain.name, chain.hyper) for chain in chains]:
        must = "all chains at all settings in order, as imp.swept(plan, sweep) makes"
        raise errors.wrong("chains", [chain.name for chain in chains], must)


def _rewind_step(given: int, steps: int) -> int:
    # Text such as "2ep" is for `training.parse_step`, which knows the epochs of a task.
    step = whole("rewind_step", given)
    if not 0 <= step < steps:
        raise ValueError(
            f"rewind_step={step} lies beyond the run; it must be in "
            f"[0, {steps}), the steps of a training run"
        )
    return step


def _checked_chain(chain: Chain, steps: int) -> Chain:
    """The chain with Python's own numbers and tuples; names a field of no sense."""
    errors.is_a("name", chain.name, str, "text: it names files and results")
    errors.flag("one_shot", chain.one_shot)
    one_of("scope", chain.scope, ("global", "layerwise"))
    one_of("rule", chain.rule, ("exact", "open_lth"))
    one_of("retrain", chain.retrain, ("rewind", "lr_rewind", "finetune"))
    if isinstance(chain.score, str) or not callable(chain.score):
        one_of("score", chain.score, sorted(scores.SCORES))
    if not isinstance(chain.densities, Geometric | Linear):
        raise ValueError(
            f"densities={chain.densities!r}; it must be a Geometric or a Linear"
        )
    field = "fraction" if isinstance(chain.densities, Geometric) else "of_original"
    errors.share(field, chain.densities.share)
    must = "pairs of a pattern and a share, such as (('head/kernel', 0.1),)"
    by_layer = tuple(
        errors.several("by_layer", pair, must)
        for pair in errors.several("by_layer", chain.densities.by_layer, must)
    )
    for pair in by_layer:
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise errors.wrong("by_layer", errors.shown(pair), must)
        errors.share("by_layer", pair[1])
    if by_layer and chain.scope != "layerwise":
        raise ValueError(
            f"by_layer={by_layer}; shares of layers need scope='layerwise'"
        )
    plain = chain.scope == "global" and not chain.one_shot
    if chain.rule == "open_lth" and not (plain and field == "fraction"):
        raise ValueError(
            "rule='open_lth' needs scope='global' and iterative pruning with Geometric"
        )
    own = chain.rewind_step
    must = "pairs of a name and a number, as imp.swept(plan, sweep) makes"
    pairs = [
        errors.several("hyper", p, must) for p in errors.several("hyper", chain.hyper)
    ]
    if any(len(pair) != 2 for pair in pairs):
        raise errors.wrong("hyper", errors.shown(chain.hyper), must)
    errors.finite("hyper", [value for _, value in pairs])
    return dataclasses.replace(
        chain,
        hyper=tuple((name, float(value)) for name, value in pairs),
        densities=dataclasses.replace(chain.densities, by_layer=by_layer),
        rewind_step=None if own is None else _rewind_step(own, steps),
    )


def keep_counts(
    chain: Chain, params: Params, level: int, prunable: PyTree
) -> np.ndarray:
    """How many weights a level keeps: in all, and in each prunable leaf.

    Args:
      chain: the procedure.
      params: arrays or shapes, without replica axis.
      level: 0 or more.
      prunable: which leaves count.

    Returns:
      int32 `[1 + prunable leaves]`; the scope decides which entries are used.

    Raises:
      ValueError: no pattern of `by_layer` matches a layer, one matches none, or no weight
        would be left at that level; says until when there are some.
    """
    law = chain.densities
    shares: dict[str, float] = {}
    for pattern, share in law.by_layer:
        hits = jax.tree.leaves(trees.matching(params, pattern))
        for name, hit in zip(trees.paths(params), hits):
            if hit:
                shares.setdefault(name, share)
    flags = masks.resolve(params, prunable)
    sizes = []
    for (name, leaf), take in zip(trees.by_path(params).items(), flags):
        if not take:
            continue
        if law.by_layer and name not in shares:
            raise ValueError(f"by_layer: no pattern matches the layer {name!r}")
        sizes.append((int(np.prod(leaf.shape)), shares.get(name, law.share)))
    total = masks.total(params, prunable)

    def counts(level: int) -> list[int]:
        per_leaf = [law.count(size, level, share) for size, share in sizes]
        if chain.scope == "layerwise":
            return [sum(per_leaf), *per_leaf]
        return [law.count(total, level, law.share), *per_leaf]

    found = counts(level)
    if found[0] == 0:
        # What a level keeps never grows with it.
        most = (
            bisect.bisect_left(range(level), True, key=lambda i: counts(i)[0] == 0) - 1
        )
        raise ValueError(
            f"levels={level}: of the {total} prunable weights the chain {chain.name!r} "
            f"would keep none at level {most + 1}; levels must be at most {most}"
        )
    return np.array(found, np.int32)
