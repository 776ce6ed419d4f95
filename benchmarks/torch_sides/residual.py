"""Residual networks and their convolutions in PyTorch."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_sides.common import draw_masks, draw_rows, multiply, settle
from benchmarks.worker import Program, Programs


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
    settle()
    model: nn.Module = _ResNet(blocks, width)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    masks = draw_masks(kernels, density)
    shape = (examples, 32, 32, 3) if channels_last else (examples, 3, 32, 32)
    images = torch.randn(shape)
    labels = torch.randint(10, (examples,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rows = draw_rows(examples, batch)

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
                multiply(kernels, masks)
        return steps

    return {"train": train}


def convolutions(
    *, batch: int, operations: float, shapes: list[list[int]], channels_last: bool
) -> Programs:
    """3x3 convolutions alone, forward and both gradients, in floating-point operations.

    Args:
      batch: images.
      operations: about how many operations a call does.
      shapes: input size, channels in, channels out and stride of each; its program is
        named after its position.
      channels_last: the memory format.
    """
    settle()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return {
        str(i): _convolution(batch, operations, *shape, layout=layout)
        for i, shape in enumerate(shapes)
    }


def _convolution(
    batch: int,
    operations: float,
    size: int,
    inputs: int,
    outputs: int,
    stride: int,
    *,
    layout: torch.memory_format,
) -> Program:
    x = torch.randn(batch, inputs, size, size).to(memory_format=layout)
    kernel = torch.randn(outputs, inputs, 3, 3).to(memory_format=layout)
    x.requires_grad_()
    kernel.requires_grad_()
    y = functional.conv2d(x, kernel, stride=stride, padding=1)
    g = torch.randn(y.shape).to(memory_format=layout)
    one = 3 * 2 * y.numel() * 9 * inputs
    steps = max(1, round(operations / one))

    def program() -> int:
        for _ in range(steps):
            y = functional.conv2d(x, kernel, stride=stride, padding=1)
            torch.autograd.grad(y, (x, kernel), g)
        return one * steps

    return program


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
