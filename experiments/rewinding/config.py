"""What the studies of rewinding are determined by."""

import dataclasses
from typing import Literal

from experiments import presets
from experiments.identity import FREE
from experiments.recipes import PathRecipe

Study = Literal["stability", "retraining", "batch_size"]
Arm = Literal["ticket", "reinit", "random_mask"]


@dataclasses.dataclass(frozen=True)
class Config(PathRecipe):
    """Everything that a study is determined by, and where and how it runs."""

    study: Study = "stability"
    """stability: error and LII of subnetworks against the rewind step. retraining: weight
    and learning-rate rewinding, fine-tuning and reinit against the retraining time.
    batch_size: LII and the ticket-reinit gap at k = 0 against the batch size."""
    rewind_steps: tuple[str, ...] = ("0it", "30it", "100it", "300it", "1000it")
    """For stability: the steps k that levels start from."""
    retrain_times: tuple[str, ...] = ()
    """For retraining: how long levels train, t <= steps; the last step stays the same."""
    batch_sizes: tuple[int, ...] = ()
    """For batch_size: instead of `batch_size`, at equal epochs."""
    levels: tuple[int, ...] = (0, 4, 7, 10)
    """Levels of pruning at which subnetworks are studied; 0 is the dense network."""
    fraction: float = 0.2
    """Share of the surviving weights removed at each level."""
    scope: Literal["global", "layerwise"] = "global"
    """Whether weights are ranked over all layers or within each."""
    arms: tuple[Arm, ...] = ("ticket", "reinit", "random_mask")
    """For stability: the ticket and its controls."""
    branches: int = 3
    """Continuations of each subnetwork under different noise; every two make a pair."""
    successive: bool = True
    """For stability: barriers between successive levels, at all of them."""
    batch_norm: Literal["recompute", "interpolate"] | None = None
    """How BatchNorm statistics are treated on a path; needed where there are any."""
    threshold: float = dataclasses.field(default=0.02, metadata=FREE)
    """Below this LII a subnetwork is called stable."""
    tolerance: float = dataclasses.field(default=0.002, metadata=FREE)
    """How far above the dense error a matching subnetwork may be."""


PRESETS = presets.make(Config, presets.REWINDING)
