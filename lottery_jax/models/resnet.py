"""Residual networks for CIFAR, for ImageNet and for sizes between (He et al. 2016)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lottery_jax import convolution, units
from lottery_jax.models.layers import (
    Choices,
    Conv,
    batch_norm,
    head,
    head_units,
    mean_of_pixels,
)
from lottery_jax.types import Array

IMAGENET_LAYERS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks in each stage, by depth (He et al. 2016, table 1); from 50 on bottlenecks."""


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1.

    Where stride or channels change the shortcut is a 1x1 convolution with BatchNorm
    (option B of He et al. 2016, section 3.3; prunable). Layers: `conv_0`, `norm_0`, ...,
    `shortcut`, `shortcut_norm`.

    Attributes:
      width: channels inside; the bottleneck's output has four times as many.
      stride: of the (first) 3x3 convolution.
      bottleneck: which of the two blocks.
      choices: initialisation and normalisation.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """`[B, H, W, C]` to `[B, H / stride, W / stride, width or 4 * width]`."""

        def conv(x, features, window, stride, name, norm):
            layer = Conv(
                features,
                window,
                stride,
                use_bias=False,
                choices=self.choices,
                name=name,
            )
            return batch_norm(self.choices, norm)(layer(x), train, weights)

        if self.bottleneck:
            plan = [(self.width, 1, 1), (self.width, 3, self.stride)]
            plan.append((4 * self.width, 1, 1))
        else:
            plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        y = x
        for i, (features, window, stride) in enumerate(plan):
            y = jax.nn.relu(y) if i else y
            y = conv(y, features, window, stride, f"conv_{i}", f"norm_{i}")
        # Given networks say themselves: without their dead channels (`lottery_jax.compact`)
        # a projection's input and output may be equally wide.
        projects = x.shape != y.shape
        if not self.is_initializing():
            projects = self.has_variable("params", "shortcut")
        if projects:
            x = conv(x, y.shape[-1], 1, self.stride, "shortcut", "shortcut_norm")
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Stages of residual blocks, each but the first halving the resolution.

    With `imagenet=False` the networks for CIFAR of He et al. 2016, section 4.2, with
    projection shortcuts (open_lth's `cifar_resnet_D_W`); with `imagenet=True` those of
    section 4.1, the stride in the 3x3 convolution of a bottleneck (torchvision's). These
    also go without their stem: the same four stages after CIFAR's, for images of 64
    pixels, of which they leave 8 x 8 before the mean, not 2 x 2.
    Layers: `stem`, `stem_norm`, `stage_0_block_0`, ..., `head`.

    Attributes:
      num_classes: outputs.
      layers: blocks in each stage.
      width: channels in the first stage, doubled in each further one.
      bottleneck: which block.
      imagenet: a stem of a 7x7 convolution of stride 2 and a 3x3 max pool of stride 2,
        instead of one 3x3 convolution.
      choices: initialisation and normalisation.
    """

    num_classes: int
    layers: Sequence[int] = (3, 3, 3)
    width: int = 16
    bottleneck: bool = False
    imagenet: bool = False
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, H, W, C]`; see `BatchNorm`."""
        window, stride = (7, 2) if self.imagenet else (3, 1)
        stem = Conv(
            self.width,
            window,
            stride,
            use_bias=False,
            choices=self.choices,
            name="stem",
        )
        x = batch_norm(self.choices, "stem_norm")(stem(x), train, weights)
        x = jax.nn.relu(x)
        if self.imagenet:
            x = convolution.overlapping_max_pool(x)
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                block = Block(
                    self.width * 2**stage,
                    stride=2 if stage and not i else 1,
                    bottleneck=self.bottleneck,
                    choices=self.choices,
                    name=f"stage_{stage}_block_{i}",
                )
                x = block(x, train, weights)
        return head(mean_of_pixels(x), self.num_classes, self.choices)

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """The blocks of a stage add to one stream; a projection begins the next."""
        layers = [units.Layer("stem", None, "stem", "stem_norm")]
        stream = "stem"
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                block = f"stage_{stage}_block_{i}"
                projects = not i and (stage > 0 or self.bottleneck)
                before, stream = stream, block if projects else stream
                convs = [f"conv_{j}" for j in range(3 if self.bottleneck else 2)]
                groups = [before, *(f"{block}/{name}" for name in convs[:-1]), stream]
                layers += [
                    units.Layer(f"{block}/{name}", reads, makes, f"{block}/norm_{j}")
                    for j, (name, reads, makes) in enumerate(
                        zip(convs, groups, groups[1:])
                    )
                ]
                if projects:
                    shortcut = f"{block}/shortcut"
                    layers.append(
                        units.Layer(shortcut, before, stream, f"{shortcut}_norm")
                    )
        return [*layers, *head_units(stream, self.choices)]

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "ResNet | None":
        """`resnet-D[-W]` with D = 6n + 2: n blocks in each of three stages."""
        match numbers:
            case [depth, *width] if depth % 6 == 2 < depth and len(width) < 2:
                layers = ((depth - 2) // 6,) * 3
                return ResNet(layers=layers, width=(width or [16])[0], **settings)
        return None

    @staticmethod
    def named_imagenet(numbers: Sequence[int], **settings: Any) -> "ResNet | None":
        """`imagenet-resnet-D[-W]`, D of `IMAGENET_LAYERS`."""
        return _of_four_stages(numbers, imagenet=True, **settings)

    @staticmethod
    def named_tiny_imagenet(numbers: Sequence[int], **settings: Any) -> "ResNet | None":
        """`tiny-imagenet-resnet-D[-W]`: the same with CIFAR's stem, 3x3, and no pool."""
        return _of_four_stages(numbers, imagenet=False, **settings)


def _of_four_stages(numbers: Sequence[int], **settings: Any) -> ResNet | None:
    match numbers:
        case [depth, *width] if depth in IMAGENET_LAYERS and len(width) < 2:
            return ResNet(
                layers=IMAGENET_LAYERS[depth],
                width=(width or [64])[0],
                bottleneck=depth >= 50,
                **settings,
            )
    return None
