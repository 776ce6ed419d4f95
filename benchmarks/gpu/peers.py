"""The same work in PyTorch, in the arrangements that suit an accelerator best.

    python -m benchmarks.gpu.peers SECONDS --help

Networks on the device, images in channels-last, fused optimizers, masks by one call, and
one CUDA graph of a whole step: of one model, of several on streams of their own, or, for
perceptrons, of stacked weights and batched products. Batches are drawn within the graph
and nothing is read back. Without CUDA nothing is measured; steps then run as they are.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu import cells, process
from benchmarks.gpu.cells import Cell
from benchmarks.rows import Sizes
from benchmarks.sides_torch import _residual, _widths

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VGG = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
"""Convolutions in each group, by depth."""


def settle(tf32: bool = True) -> None:
    """The precision of float32 products."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = tf32  # not for a gradient or two in float32


class Trained(Protocol):
    """Networks that train together.

    Attributes:
      params: their weights.
      sizes: what they are.
    """

    params: list[torch.Tensor]
    sizes: Sizes

    def step(self) -> None:
        """One step of all of them."""

    def new_loss(self) -> torch.Tensor:
        """The loss of a batch that is drawn."""


def _narrow(sizes: Sizes) -> Any:
    """Autocast to bfloat16, where it is asked for."""
    narrow = sizes.activations == "bfloat16"
    return torch.autocast(DEVICE, torch.bfloat16, enabled=narrow)


def _masks(kernels: Sequence[torch.Tensor], density: float) -> list[torch.Tensor]:
    """Random masks of kernels, as numbers to multiply by."""
    return [(torch.rand_like(p) < density).to(p.dtype) for p in kernels]


def _step(trained: Any) -> None:
    """Gradient, update and masks."""
    # The gradients are the graph's own, so that none is cleared or added to.
    trained.optimizer.zero_grad(set_to_none=True)
    trained.new_loss().backward()
    trained.optimizer.step()
    with torch.no_grad():
        torch._foreach_mul_(trained.kernels, trained.masks)


# --- networks for images --------------------------------------------------------------


def _plain(depth: int, width: int) -> nn.Module:
    """The network of `lottery_jax.models.VGG`."""
    layers: list[nn.Module] = []
    channels = 3
    for group, number in enumerate(VGG[depth]):
        layers += [nn.MaxPool2d(2)] * bool(group)
        for _ in range(number):
            own = width * min(2**group, 8)
            layers += [nn.Conv2d(channels, own, 3, 1, 1), nn.BatchNorm2d(own)]
            layers += [nn.ReLU()]
            channels = own
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, *pool, nn.Linear(channels, 10))


def network(name: str) -> nn.Module:
    """A residual network or a VGG by the name that `models.make` has for it."""
    kind, depth, *width = name.split("-")
    if kind == "resnet":
        return _residual(int(depth), *(int(w) for w in width or [16]))
    return _plain(int(depth), *(int(w) for w in width or [64]))


class Images:
    """uint8 images with a black border, so that a crop is a gather; on the device."""

    def __init__(self, sizes: Sizes) -> None:
        shape = (sizes.examples, *sizes.shape)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
        padded = functional.pad(image, (0, 0, 4, 4, 4, 4))
        self.image = padded
        self.label = torch.randint(0, 10, (sizes.examples,), device=DEVICE)
        self.pixels = torch.arange(sizes.shape[0], device=DEVICE)
        self.batch = sizes.batch

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch, flipped and cropped, normalised; channels-last in memory."""
        size, device = (self.batch,), DEVICE
        which = torch.randint(0, len(self.label), size, device=device)
        corner = torch.randint(0, 9, (2, self.batch), device=device)
        flip = torch.rand(size, device=device) < 0.5
        rows = corner[0][:, None] + self.pixels
        columns = corner[1][:, None] + self.pixels
        columns = torch.where(flip[:, None], columns.flip(1), columns)
        x = self.image[which[:, None, None], rows[:, :, None], columns[:, None, :]]
        x = (x.float() / 255 - 0.5) / 0.3
        return x.permute(0, 3, 1, 2), self.label[which]


class Convolutional:
    """One network for images under SGD with momentum."""

    def __init__(self, sizes: Sizes, data: Images) -> None:
        model = network(sizes.model).to(DEVICE)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.params = list(self.model.parameters())
        self.kernels = [p for p in self.params if p.ndim > 1]
        self.masks = _masks(self.kernels, sizes.density)
        self.sizes, self.data = sizes, data
        fused = {"fused": True} if DEVICE == "cuda" else {}
        self.optimizer = torch.optim.SGD(
            self.params, sizes.learning_rate, momentum=0.9, **fused
        )

    def new_loss(self) -> torch.Tensor:
        x, y = self.data.draw()
        with _narrow(self.sizes):
            return functional.cross_entropy(self.model(x).float(), y)

    def step(self) -> None:
        _step(self)


# --- perceptrons ----------------------------------------------------------------------


class Vectors:
    """Normalised float32 vectors, on the device."""

    def __init__(self, sizes: Sizes) -> None:
        size = (sizes.examples, _widths(sizes)[0])
        self.image = torch.randn(size, device=DEVICE)
        self.label = torch.randint(0, 10, (sizes.examples,), device=DEVICE)


class Stacked:
    """Perceptrons whose weights are stacked: each layer is one batched product.

    One network is no stack: its layers are plain products.
    """

    def __init__(self, sizes: Sizes, data: Vectors, number: int) -> None:
        self.sizes, self.data, self.number = sizes, data, number
        lead = (number,) if number > 1 else ()
        self.params = []
        for a, b in itertools.pairwise(_widths(sizes)):
            kernel = torch.randn(*lead, a, b, device=DEVICE) * (2 / a) ** 0.5
            bias = torch.zeros(*lead, 1, b, device=DEVICE)
            self.params += [kernel.requires_grad_(), bias.requires_grad_()]
        self.kernels = self.params[::2]
        self.masks = _masks(self.kernels, sizes.density)
        cuda = DEVICE == "cuda"
        own = {"fused": True, "capturable": True} if cuda else {}
        self.optimizer = torch.optim.Adam(self.params, sizes.learning_rate, **own)

    def new_loss(self) -> torch.Tensor:
        batch = self.sizes.batch
        size = (self.number, batch) if self.number > 1 else (batch,)
        which = torch.randint(0, len(self.data.label), size, device=DEVICE)
        x, y = self.data.image[which], self.data.label[which]
        product = torch.baddbmm if self.number > 1 else torch.addmm
        with _narrow(self.sizes):
            kernels, biases = self.params[::2], self.params[1::2]
            for i, (kernel, bias) in enumerate(zip(kernels, biases)):
                x = product(bias, functional.relu(x) if i else x, kernel)
        logits = x.float().reshape(-1, 10)
        return functional.cross_entropy(logits, y.reshape(-1), reduction="sum") / batch

    def step(self) -> None:
        _step(self)


# --- arrangements ---------------------------------------------------------------------


def make(sizes: Sizes, data: Any, way: str) -> list[Trained]:
    """What a cell trains: models that take turns, or one stack of them."""
    if isinstance(data, Images):
        return [Convolutional(sizes, data) for _ in range(sizes.replicas)]
    if way == "batched":
        return [Stacked(sizes, data, sizes.replicas)]
    return [Stacked(sizes, data, 1) for _ in range(sizes.replicas)]


def graph(trained: Sequence[Trained], streams: int) -> Callable[[], None]:
    """One CUDA graph of a step of all of them, on so many streams; needs CUDA."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for own in trained:
            for _ in range(3):
                own.step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    several = [torch.cuda.Stream() for _ in range(streams if streams > 1 else 0)]
    with torch.cuda.graph(captured):
        main = torch.cuda.current_stream()
        for stream in several:
            stream.wait_stream(main)
        for i, own in enumerate(trained):
            stream = several[i % streams] if several else main
            with torch.cuda.stream(stream):
                own.step()
        for stream in several:
            main.wait_stream(stream)
    return captured.replay


def one_step(trained: Sequence[Trained], way: str) -> Callable[[], None]:
    """A step of all replicas: a graph, or without CUDA the steps themselves."""
    if DEVICE == "cuda":
        streams = int(way.split()[0]) if way.endswith("streams") else 1
        return graph(trained, streams)

    def run() -> None:
        for own in trained:
            own.step()

    return run


def error(own: Trained) -> float:
    """Of the gradient of one batch: the relative error against float32's."""

    def gradient() -> torch.Tensor:
        torch.manual_seed(7)  # the same batch
        found = torch.autograd.grad(own.new_loss(), own.params)
        return torch.cat([g.float().ravel() for g in found])

    sizes, narrow = own.sizes, gradient()
    settle(tf32=False)
    own.sizes = sizes._replace(activations="float32")
    right = gradient()
    own.sizes = sizes
    settle()
    return float((narrow - right).norm() / right.norm())


def wait() -> None:
    """Until the device has done all that it was told."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(
    cell: Cell, sizes: Sizes, data: Any, quick: bool, known: float | None = None
) -> dict[str, Any]:
    """Times a cell; never raises.

    Args:
      cell: the cell.
      sizes: what it trains.
      data: what it is trained on.
      quick: no more than that it runs.
      known: its error, if another cell has it as well.
    """
    begin = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        settle()
        torch.manual_seed(0)
        trained = make(sizes, data, cell.way)
        found["error"] = error(trained[0]) if known is None else known
        run = one_step(trained, cell.way)
        found["compiling"] = time.perf_counter() - begin

        def call(steps: int) -> float:
            begin = time.perf_counter()
            for _ in range(steps):
                run()
            wait()
            return (time.perf_counter() - begin) / steps

        wait()
        call(2)
        number = 1 if quick else int(np.clip(0.25 / call(2), 4, 2000))
        taken = [call(number) for _ in range(1 if quick else 4)]
        step = statistics.median(taken)
        found |= {"ms": 1e3 * step, "low": 1e3 * min(taken), "high": 1e3 * max(taken)}
        found["rate"] = sizes.replicas / step
    except Exception as failed:  # the others go on
        found["error text"] = process.why(failed)
    return found


def main() -> None:
    """Runs the cells until the time is over."""
    options = process.options()
    end = time.monotonic() + options.seconds
    if DEVICE != "cuda":
        process.say({"failed": "peers: PyTorch sees no CUDA device"})
        process.leave()
    process.say({"device of PyTorch": torch.cuda.get_device_name()})
    data: dict[str, Any] = {}
    errors: dict[tuple[Any, ...], float | None] = {}
    for cell in process.selected(cells.PEERS, options.only, options.skip):
        if time.monotonic() > end:
            process.say({"cell": cell.name, "error text": "no time was left"})
            continue
        sizes = cells.sizes_of(cell, options.quick)
        if cell.model not in data:
            with contextlib.suppress(RuntimeError):
                data[cell.model] = (Images if sizes.augment else Vectors)(sizes)
        kind = cell.model, cell.numbers, cell.way == "batched"
        own = data.get(cell.model)
        found = measure(cell, sizes, own, options.quick, errors.get(kind))
        errors[kind] = found.get("error")
        process.say({"cell": cell.name, **found})
        wait()  # what a failed kernel leaves behind ends this process: it is started again
        torch.cuda.empty_cache()
    process.leave()


if __name__ == "__main__":
    main()
