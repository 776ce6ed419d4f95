"""Chains and plans: what a pruning study does, and the pruning step itself.

A *chain* is a procedure with its own sequence of masks. A *plan* puts chains, arms and
the training run together; it says everything but task, optimizer, levels and replicas.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from lottery_jax import arms, masks, prune, schedules, scores
from lottery_jax.types import Array, Key, Mask, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Chain:
    """A procedure with its own sequence of masks.

    Attributes:
      name: of the chain, in results and file names.
      schedule: "geometric" removes `fraction` of the *remaining* weights per level,
        "linear" `fraction` of the *original*; both prune each level's trained weights.
        "one_shot" prunes the trained dense network to the densities of "geometric".
      fraction: in (0, 1).
      scope: "global" ranks over all layers, "layerwise" within each.
      rates: for "layerwise", (pattern, fraction) pairs instead of one fraction; the first
        pattern that is found in a leaf's key path counts.
      rule: "exact" counts, or open_lth's ("global" and "geometric" only).
      score: a name of `scores.SCORES`.
      retrain: "rewind" restores the weights of the rewind step k and trains k to the end;
        "lr_rewind" keeps the trained weights and rewinds the schedule to k; "finetune"
        keeps both, going on for as many steps with the schedule past its end. The trained
        weights are the last level's; with "one_shot" the dense network's.
      rewind_step: this chain's own rewind step; None for the plan's.
    """

    name: str = "imp"
    schedule: Literal["geometric", "linear", "one_shot"] = "geometric"
    fraction: float = 0.2
    scope: Literal["global", "layerwise"] = "global"
    rates: tuple[tuple[str, float], ...] = ()
    rule: prune.Rule = "exact"
    score: str = "magnitude"
    retrain: Literal["rewind", "lr_rewind", "finetune"] = "rewind"
    rewind_step: int | None = None

    @property
    def keeps_weights(self) -> bool:
        """Whether levels start from trained weights instead of rewound ones."""
        return self.retrain != "rewind"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a study does; determines its numbers together with task and optimizer.

    Attributes:
      steps: length T of a dense training run.
      rewind_step: the step k that levels start from, 0 <= k < steps, where a chain says
        nothing else.
      chains: procedures that run side by side.
      arms: of `arms.ARMS`; "ticket" must be among them.
      validate_every: steps between validations.
      optimizer: "reset" starts each level with fresh moments, "rewind" with those of the
        rewind step, masked.
      random_scope: how the random mask is permuted.
      seed: all keys follow from it and the replica's id.
    """

    steps: int
    rewind_step: int = 0
    chains: tuple[Chain, ...] = (Chain(),)
    arms: tuple[str, ...] = ("ticket", "reinit", "random_mask")
    validate_every: int = 100
    optimizer: Literal["reset", "rewind"] = "reset"
    random_scope: Literal["layerwise", "global"] = "layerwise"
    seed: int = 0

    @property
    def rewind_steps(self) -> tuple[int, ...]:
        """The rewind step of each chain."""
        return tuple(
            self.rewind_step if chain.rewind_step is None else chain.rewind_step
            for chain in self.chains
        )


def check(plan: Plan) -> Plan:
    """Raises a ValueError that names the first field of a plan that makes no sense."""
    for field in ("steps", "validate_every"):
        if getattr(plan, field) < 1:
            raise ValueError(f"{field}={getattr(plan, field)}; it must be 1 or more")
    for step in (plan.rewind_step, *plan.rewind_steps):
        if not 0 <= step < plan.steps:
            raise ValueError(
                f"rewind_step={step} lies beyond the run; it must be in "
                f"[0, {plan.steps}), the steps of a training run"
            )
    _one_of("optimizer", plan.optimizer, ("reset", "rewind"))
    _one_of("random_scope", plan.random_scope, ("layerwise", "global"))
    for arm in plan.arms:
        _one_of("arms", arm, arms.ARMS)
    if "ticket" not in plan.arms or len(set(plan.arms)) < len(plan.arms):
        raise ValueError(f"arms={plan.arms}; 'ticket' must be there, and each arm once")
    names = [chain.name for chain in plan.chains]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"chains: there must be some, with different names; got {names}"
        )
    for chain in plan.chains:
        _check_chain(chain)
    return plan


def _check_chain(chain: Chain) -> None:
    _one_of("schedule", chain.schedule, ("geometric", "linear", "one_shot"))
    _one_of("scope", chain.scope, ("global", "layerwise"))
    _one_of("rule", chain.rule, ("exact", "open_lth"))
    _one_of("retrain", chain.retrain, ("rewind", "lr_rewind", "finetune"))
    scores.by_name(chain.score)
    for fraction in (chain.fraction, *(f for _, f in chain.rates)):
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction}; it must be in (0, 1)")
    if chain.rates and chain.scope != "layerwise":
        raise ValueError("rates are given per layer: they need scope='layerwise'")
    if chain.rule == "open_lth" and (chain.scope, chain.schedule) != (
        "global",
        "geometric",
    ):
        raise ValueError(
            "rule='open_lth' needs scope='global' and schedule='geometric'"
        )


def _one_of(field: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"{field}={value!r}; it must be one of {', '.join(valid)}")


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
    """
    counted = [
        (name, int(np.prod(leaf.shape)))
        for name, leaf, take in zip(
            masks.paths(params),
            jax.tree.leaves(params),
            masks.resolve(params, prunable),
        )
        if take
    ]
    fractions = [chain.fraction] * len(counted)
    if chain.rates:
        found = [
            (jax.tree.leaves(masks.matching(params, p)), f) for p, f in chain.rates
        ]
        everywhere = masks.paths(params)
        for i, (name, _) in enumerate(counted):
            hits = [f for flags, f in found if flags[everywhere.index(name)]]
            if not hits:
                raise ValueError(f"rates: no pattern matches the layer {name!r}")
            fractions[i] = hits[0]
    law = schedules.linear if chain.schedule == "linear" else schedules.geometric
    per_leaf = [law(n, level, f)[level] for (_, n), f in zip(counted, fractions)]
    if chain.scope == "layerwise":
        in_all = sum(per_leaf)
    else:
        in_all = law(sum(n for _, n in counted), level, chain.fraction)[level]
    return np.array([in_all, *per_leaf], np.int32)


def prune_chain(
    chain: Chain,
    key: Key,
    inputs: scores.Inputs,
    keep: Array,
    *,
    prunable: PyTree,
    exclude: tuple[str, ...] = (),
) -> Mask:
    """One pruning step of a chain: score, then cut.

    Args:
      chain: the procedure.
      key: for scores that draw.
      inputs: what scores may look at; `inputs.mask` is the mask to cut.
      keep: from `keep_counts`, may be traced.
      prunable: which leaves count.
      exclude: patterns of leaves that count and are never cut.
    """
    ranking = scores.by_name(chain.score)(key, inputs)
    where: dict[str, Any] = dict(prunable=prunable, exclude=exclude)
    if chain.rule == "open_lth":
        return prune.global_topk(
            ranking, inputs.mask, fraction=chain.fraction, rule="open_lth", **where
        )
    if chain.scope == "global":
        return prune.global_topk(ranking, inputs.mask, keep=keep[0], **where)
    return prune.layerwise_topk(ranking, inputs.mask, keep=keep[1:], **where)
