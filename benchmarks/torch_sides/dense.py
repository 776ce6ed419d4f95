"""Dense networks in PyTorch."""

import itertools
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_sides.common import draw_masks, draw_rows, multiply, settle
from benchmarks.worker import Programs


def lenet(
    *,
    arrangement: Literal["plain", "fused"],
    widths: list[int],
    pixels: int,
    examples: int,
    batch: int,
    density: float,
    steps: int,
) -> Programs:
    """A multilayer perceptron under Adam 1.2e-3, the masks applied after each step.

    Args:
      arrangement: "plain" is `torch.optim.Adam` as it comes and one multiplication per
        kernel; "fused" is `fused=True` and one `torch._foreach_mul_` over the kernels.
      widths: units of the hidden layers.
      pixels: inputs.
      examples: in the training set.
      batch: examples per step.
      density: of the random masks on the kernels.
      steps: per call.
    """
    settle()
    sizes = [pixels, *widths, 10]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    kernels = [p for p in model.parameters() if p.ndim == 2]
    masks = draw_masks(kernels, density)
    images = torch.rand(examples, pixels)
    labels = torch.randint(10, (examples,))
    fused = arrangement == "fused"
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=fused or None)
    rows = draw_rows(examples, batch)

    def train() -> int:
        for _ in range(steps):
            chosen = next(rows)
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                if fused:
                    multiply(kernels, masks)
                else:
                    for kernel, mask in zip(kernels, masks):
                        kernel.mul_(mask)
        return steps

    return {"train": train}


def paths(
    *,
    widths: list[int],
    pixels: int,
    test: int,
    pairs: int,
    alphas: int,
    batch: int,
) -> Programs:
    """Error and loss on the lines between multilayer perceptrons, alpha by alpha.

    The one program is `paths`, in images.

    Args:
      widths: units of the hidden layers.
      pixels: inputs.
      test: images that every point is evaluated on.
      pairs: of successive networks.
      alphas: points of a path.
      batch: images at once.
    """
    settle()
    sizes = [pixels, *widths, 10]
    networks = [
        [torch.randn(b, a) / a**0.5 for a, b in itertools.pairwise(sizes)]
        for _ in range(pairs + 1)
    ]
    biases = [torch.zeros(b) for b in sizes[1:]]
    images = torch.rand(test, pixels)
    labels = torch.randint(10, (test,))
    batches = list(zip(images.split(batch), labels.split(batch)))

    @torch.inference_mode()
    def paths() -> int:
        for a, b in itertools.pairwise(networks):
            for i in range(alphas):
                point = [torch.lerp(p, q, i / (alphas - 1)) for p, q in zip(a, b)]
                loss = wrong = torch.zeros(())
                for x, y in batches:
                    for weight, bias in zip(point[:-1], biases):
                        x = functional.relu(functional.linear(x, weight, bias))
                    logits = functional.linear(x, point[-1], biases[-1])
                    loss = loss + functional.cross_entropy(logits, y, reduction="sum")
                    wrong = wrong + (logits.argmax(1) != y).sum()
        return pairs * alphas * test

    return {"paths": paths}
