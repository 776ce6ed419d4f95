"""The peers in PyTorch, as a careful user would write them, and as one is published.

Each setup takes `Sizes` and returns programs by name, as in `sides_jax`. Images lie in
memory as normalised float32 and the data order is drawn beforehand, but in `open_lth`; no
metric is read back during a run.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks import encoders
from benchmarks.rows import Sizes
from benchmarks.run import Programs


def _settle() -> None:
    """The seed; and small numbers are flushed to zero, as XLA does."""
    torch.manual_seed(0)
    # Moments of weights without a gradient get there.
    torch.set_flush_denormal(True)


def _widths(sizes: Sizes) -> list[int]:
    pixels = int(np.prod(sizes.shape))
    return [pixels, *map(int, sizes.model.split("-")[1:]), 10]


def _rows(sizes: Sizes) -> Iterator[torch.Tensor]:
    """The whole batches of one permutation, over and over."""
    whole = sizes.examples // sizes.batch * sizes.batch
    order = torch.randperm(sizes.examples)[:whole]
    return itertools.cycle(order.split(sizes.batch))


def _masked(model: nn.Module, density: float) -> tuple[list[Any], list[torch.Tensor]]:
    """Kernels and their random masks, applied once."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    masks = [torch.empty_like(p).bernoulli_(density) for p in kernels]
    with torch.no_grad():
        torch._foreach_mul_(kernels, masks)
    return kernels, masks


def lenet(sizes: Sizes) -> Programs:
    """A multilayer perceptron under Adam, the masks applied after each step.

    Plain is `torch.optim.Adam` as it comes and one multiplication per kernel; `fused` is
    `fused=True` and one `torch._foreach_mul_` over the kernels.
    """
    _settle()
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(_widths(sizes)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    kernels, masks = _masked(model, sizes.density)
    images = torch.rand(sizes.examples, _widths(sizes)[0])
    labels = torch.randint(10, (sizes.examples,))
    optimizer = torch.optim.Adam(
        model.parameters(), lr=sizes.learning_rate, fused=sizes.fused or None
    )
    rows = _rows(sizes)

    def run() -> int:
        for chosen in itertools.islice(rows, sizes.steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                if sizes.fused:
                    torch._foreach_mul_(kernels, masks)
                else:
                    for kernel, mask in zip(kernels, masks):
                        kernel.mul_(mask)
        return sizes.steps

    return {"run": run}


def paths(sizes: Sizes) -> Programs:
    """Error and loss on the lines between perceptrons, alpha by alpha, in images."""
    _settle()
    widths = _widths(sizes)
    networks = [
        [torch.randn(b, a) / a**0.5 for a, b in itertools.pairwise(widths)]
        for _ in range(sizes.pairs + 1)
    ]
    biases = [torch.zeros(b) for b in widths[1:]]
    images, labels = torch.rand(sizes.test, widths[0]), torch.randint(10, (sizes.test,))
    batches = list(zip(images.split(sizes.batch), labels.split(sizes.batch)))

    @torch.inference_mode()
    def run() -> int:
        for a, b in itertools.pairwise(networks):
            for i in range(sizes.alphas):
                at = i / (sizes.alphas - 1)
                point = [torch.lerp(p, q, at) for p, q in zip(a, b)]
                loss = wrong = torch.zeros(())
                for x, y in batches:
                    for weight, bias in zip(point[:-1], biases):
                        x = functional.relu(functional.linear(x, weight, bias))
                    logits = functional.linear(x, point[-1], biases[-1])
                    loss = loss + functional.cross_entropy(logits, y, reduction="sum")
                    wrong = wrong + (logits.argmax(1) != y).sum()
        return sizes.pairs * sizes.alphas * sizes.test

    return {"run": run}


# --- residual networks ----------------------------------------------------------------


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


def _residual(depth: int, width: int) -> nn.Module:
    """The network of `lottery_jax.models.ResNet(imagenet=False)`."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            stride = 2 if stage and not i else 1
            layers.append(_Block(channels, width * 2**stage, stride))
            channels = width * 2**stage
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, *pool, nn.Linear(channels, 10))


def resnet(sizes: Sizes) -> Programs:
    """A residual network for CIFAR under SGD with momentum, masks after each step."""
    _settle()
    model = _residual(*map(int, sizes.model.split("-")[1:]))
    if sizes.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels, masks = _masked(model, sizes.density)
    last = (sizes.examples, 32, 32, 3)
    images = torch.randn(last if sizes.channels_last else (sizes.examples, 3, 32, 32))
    labels = torch.randint(10, (sizes.examples,))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=sizes.learning_rate, momentum=0.9
    )
    rows = _rows(sizes)

    def run() -> int:
        for chosen in itertools.islice(rows, sizes.steps):
            x = images[chosen]
            # Strides of channels_last, without a copy.
            x = x.permute(0, 3, 1, 2) if sizes.channels_last else x
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_(kernels, masks)
        return sizes.steps

    return {"run": run}


# --- encoders -------------------------------------------------------------------------


class _Layer(nn.Module):
    """Attention and two dense layers, norms after the residual sums."""

    def __init__(self, width: int, heads: int, inner: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(width, width))
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(2))
        self.dropout = nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        y = self.output(mixed.transpose(1, 2).flatten(2))
        x = self.norms[0](x + self.dropout(y))
        y = self.outer(functional.gelu(self.inner(x)))
        return self.norms[1](x + self.dropout(y))


class _Encoder(nn.Module):
    """The network of `lottery_jax.models.Bert`; what it says of tokens or of sentences."""

    def __init__(self, sizes: Sizes, rate: float = 0.1) -> None:
        super().__init__()
        layers, width, heads, inner = encoders.sizes_of(sizes.model)
        self.words = nn.Embedding(sizes.vocabulary, width)
        self.places = nn.Embedding(max(512, *sizes.shape), width)
        self.kinds = nn.Embedding(2, width)
        self.norm, self.dropout = nn.LayerNorm(width, 1e-12), nn.Dropout(rate)
        each = [_Layer(width, heads, inner, rate) for _ in range(layers)]
        self.layers = nn.Sequential(*each)
        self.transform, self.last = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary))
        self.output = nn.Linear(width, encoders.CLASSES)

    def forward(
        self, ids: torch.Tensor, kinds: torch.Tensor, positions: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]] + self.kinds(kinds)
        x = self.layers(self.dropout(self.norm(x)))
        if positions is None:
            x = torch.tanh(self.transform(x[:, 0]))
            return self.output(self.dropout(x))
        x = x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
        x = self.last(functional.gelu(self.transform(x)))
        return functional.linear(x, self.words.weight, self.bias)


def encoder(sizes: Sizes) -> Programs:
    """An encoder under fused AdamW, guessing masked tokens or classes of sentences."""
    _settle()
    model = _Encoder(sizes)
    kernels = [
        layer.weight for layer in model.layers.modules() if type(layer) is nn.Linear
    ]
    masks = [torch.empty_like(p).bernoulli_(sizes.density) for p in kernels]
    arrays = {
        name: torch.from_numpy(x).long()
        for name, x in encoders.draw_arrays(sizes).items()
    }
    optimizer = torch.optim.AdamW(
        # Of the other task's head there are no gradients, so nothing is done for it.
        model.parameters(),
        lr=sizes.learning_rate,
        weight_decay=0.01,
        fused=True,
    )
    rows, number = _rows(sizes), encoders.guessed(sizes)

    def run() -> int:
        for chosen in itertools.islice(rows, sizes.steps):
            ids, positions, labels = (
                arrays["ids"][chosen],
                None,
                arrays["label"][chosen],
            )
            if sizes.head == "masked_lm":
                positions = torch.rand(ids.shape).topk(number).indices
                labels = ids.gather(1, positions)
                ids = ids.scatter(1, positions, encoders.MASK)
            optimizer.zero_grad()
            logits = model(ids, arrays["types"][chosen], positions).flatten(0, -2)
            functional.cross_entropy(logits, labels.flatten()).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_(kernels, masks)
        return sizes.steps

    return {"run": run}


# --- a loop of the shape that open_lth has --------------------------------------------


class _Images(Dataset):
    """Examples that are converted and normalised one by one, in Python."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self._images[index])
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.height, image.width, 1).permute(2, 0, 1).contiguous()
        pixels = pixels.to(torch.float32).div(255)
        mean, std = torch.tensor([0.1307]), torch.tensor([0.3081])
        pixels = pixels.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
        return pixels, int(self._labels[index])


class _Masked(nn.Module):
    """A network whose weights are multiplied by their masks at each forward pass."""

    def __init__(self, widths: list[int], density: float) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
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


def open_lth(sizes: Sizes) -> Programs:
    """A multilayer perceptron in a loop written from a description of open_lth's.

    Each example is made a PIL image, converted and normalised in Python when it is asked
    for; a `DataLoader` stacks them; masks are buffers that are multiplied into the weights
    at each forward pass; Adam comes as it is, and the learning rate follows a schedule that
    is stepped at every iteration.
    """
    _settle()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (sizes.examples, *sizes.shape[:2]), np.uint8)
    loader = DataLoader(
        _Images(images, generator.integers(0, 10, sizes.examples)),
        batch_size=sizes.batch,
        shuffle=True,
        num_workers=sizes.loaders,
        persistent_workers=sizes.loaders > 0,
    )
    model = _Masked(_widths(sizes), sizes.density)
    optimizer = torch.optim.Adam(model.parameters(), lr=sizes.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def run() -> int:
        for x, y in itertools.islice(batches, sizes.steps):
            optimizer.zero_grad()
            model.train()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        return sizes.steps

    return {"run": run}
