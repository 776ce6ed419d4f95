"""The peers in PyTorch, as a careful user would write them: data in memory, no loader.

Each `setup` returns the one program `train`, which takes some more steps and returns how
many. Images lie in memory as normalised float32 and the data order is drawn beforehand;
no metric is read back during a run.
"""

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

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
    _settle()
    sizes = [pixels, *widths, 10]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    kernels = [p for p in model.parameters() if p.ndim == 2]
    masks = _masks(kernels, density)
    images = torch.rand(examples, pixels)
    labels = torch.randint(10, (examples,))
    fused = arrangement == "fused"
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=fused or None)
    rows = _rows(examples, batch)

    def train() -> int:
        for _ in range(steps):
            chosen = next(rows)
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                if fused:
                    _multiply(kernels, masks)
                else:
                    for kernel, mask in zip(kernels, masks):
                        kernel.mul_(mask)
        return steps

    return {"train": train}


def resnet(
    *,
    channels_last: bool,
    blocks: int,
    width: int,
    examples: int,
    batch: int,
    density: float,
    steps: int,
) -> Programs:
    """A residual network for CIFAR under SGD 0.01 with momentum, masks after each step.

    Args:
      channels_last: the memory format of model and images.
      blocks: in each of the three stages.
      width: channels of the first stage.
      examples: in the training set.
      batch: examples per step.
      density: of the random masks on the kernels.
      steps: per call.
    """
    _settle()
    model: nn.Module = _ResNet(blocks, width)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    masks = _masks(kernels, density)
    shape = (examples, 32, 32, 3) if channels_last else (examples, 3, 32, 32)
    images = torch.randn(shape)
    labels = torch.randint(10, (examples,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rows = _rows(examples, batch)

    def train() -> int:
        for _ in range(steps):
            chosen = next(rows)
            x = images[chosen]
            # Strides of channels_last, without a copy.
            x = x.permute(0, 3, 1, 2) if channels_last else x
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                _multiply(kernels, masks)
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
    _settle()
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


class _Block(nn.Module):
    """Two 3x3 convolutions; where shapes change the shortcut is a 1x1 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class _ResNet(nn.Module):
    """The network of `lottery_jax.models.ResNet(imagenet=False)`."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
        for stage in range(3):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                layers.append(_Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def _settle() -> None:
    torch.manual_seed(0)
    # XLA does the same; moments of weights without a gradient get there.
    torch.set_flush_denormal(True)


def _masks(kernels: list[nn.Parameter], density: float) -> list[torch.Tensor]:
    masks = [torch.empty_like(p).bernoulli_(density) for p in kernels]
    with torch.no_grad():
        _multiply(kernels, masks)
    return masks


def _multiply(kernels: list[nn.Parameter], masks: list[torch.Tensor]) -> None:
    torch._foreach_mul_(kernels, masks)  # type: ignore[arg-type]


def _rows(examples: int, batch: int) -> Iterator[torch.Tensor]:
    """The whole batches of one permutation, over and over."""
    order = torch.randperm(examples)
    whole = examples // batch * batch
    return itertools.cycle(order[:whole].split(batch))
