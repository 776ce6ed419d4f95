"""What the peers share: settings, masks, data orders."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn


def settle() -> None:
    """The seed; and small numbers are flushed to zero, as XLA does."""
    torch.manual_seed(0)
    # XLA does the same; moments of weights without a gradient get there.
    torch.set_flush_denormal(True)


def draw_masks(kernels: list[nn.Parameter], density: float) -> list[torch.Tensor]:
    """Random masks of a density, applied to the kernels once."""
    masks = [torch.empty_like(p).bernoulli_(density) for p in kernels]
    with torch.no_grad():
        multiply(kernels, masks)
    return masks


def multiply(kernels: list[nn.Parameter], masks: list[torch.Tensor]) -> None:
    """Applies the masks, all at once."""
    torch._foreach_mul_(kernels, masks)  # type: ignore[arg-type]


def draw_rows(examples: int, batch: int) -> Iterator[torch.Tensor]:
    """The whole batches of one permutation, over and over."""
    order = torch.randperm(examples)
    whole = examples // batch * batch
    return itertools.cycle(order[:whole].split(batch))
