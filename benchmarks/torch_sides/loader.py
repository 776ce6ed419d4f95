"""A loop of the shape that open_lth has: a loader, transforms per image, masked forward.

Written from a description of that loop: each example is made a PIL image, converted to a
tensor and normalised in Python when it is asked for; a `DataLoader` stacks them; masks are
buffers that are multiplied into the weights at each forward pass; Adam comes as it is, and
the learning rate follows a schedule that is stepped at every iteration.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.torch_sides.common import settle
from benchmarks.worker import Programs


def lenet(
    *,
    workers: int,
    widths: list[int],
    side: int,
    examples: int,
    batch: int,
    density: float,
    steps: int,
) -> Programs:
    """A multilayer perceptron under Adam 1.2e-3, on square images.

    The one program is `train`, in steps.

    Args:
      workers: processes that load, beside this one; 0 loads in this one.
      widths: units of the hidden layers.
      side: pixels of an image's side.
      examples: in the training set.
      batch: examples per step.
      density: of the random masks on the kernels.
      steps: per call.
    """
    settle()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (examples, side, side), np.uint8)
    labels = generator.integers(0, 10, examples)
    loader = DataLoader(
        _Images(images, labels),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    model = _Masked([side * side, *widths, 10], density)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    batches = _forever(loader)

    def train() -> int:
        for x, y in itertools.islice(batches, steps):
            optimizer.zero_grad()
            model.train()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        return steps

    return {"train": train}


class _Images(Dataset):
    """Examples that are transformed one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self._images[index])
        return _normalise(_to_tensor(image)), int(self._labels[index])


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """From a grey image to float32 in [0, 1], one channel first."""
    pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
    pixels = pixels.view(image.height, image.width, 1).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255)


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.1307]), torch.tensor([0.3081])
    return pixels.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class _Masked(nn.Module):
    """A network whose weights are multiplied by their masks at each forward pass."""

    def __init__(self, sizes: list[int], density: float) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        layers = [nn.Linear(a, b) for a, b in pairs]
        self.layers = nn.ModuleList(layers)
        for i, layer in enumerate(layers):
            mask = torch.empty_like(layer.weight).bernoulli_(density)
            self.register_buffer(f"mask_{i}", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            layer.weight.data *= getattr(self, f"mask_{i}")
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


def _forever(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader
