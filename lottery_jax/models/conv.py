"""Conv-2, Conv-4, Conv-6 and Conv-8: VGG's small kin."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from lottery_jax import convolution, units
from lottery_jax.models.layers import Choices, Conv, Dense, doubled, head, in_sequence
from lottery_jax.types import Array


class ConvNet(nn.Module):
    """Pairs of 3x3 convolutions with 2x2 max pooling, then dense layers.

    With widths (64,), (64, 128), (64, 128, 256) Conv-2, -4, -6 of Frankle & Carbin 2019,
    figure 2; with (64, 128, 256, 512) Conv-8 of Ramanujan et al. 2020. Layers: `conv_0`,
    ..., `dense_0`, `dense_1`, `head`, all with biases.

    Attributes:
      num_classes: outputs.
      widths: channels of each pair of convolutions.
      dense: units of the hidden dense layers.
      choices: initialisation.
    """

    num_classes: int
    widths: Sequence[int] = (64,)
    dense: Sequence[int] = (256, 256)
    choices: Choices = Choices()

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, weights: Array | None = None
    ) -> Array:
        """Logits `[B, num_classes]` of `x`, `[B, H, W, C]`; `train`, `weights` unused."""
        for i, width in enumerate(self.widths):
            for j in (2 * i, 2 * i + 1):
                conv = Conv(width, choices=self.choices, name=f"conv_{j}")
                x = jax.nn.relu(conv(x))
            x = convolution.max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.dense):
            x = jax.nn.relu(Dense(width, self.choices, name=f"dense_{i}")(x))
        return head(x, self.num_classes, self.choices)

    @nn.nowrap
    def unit_plan(self) -> units.Layers:
        """The first dense layer reads every channel once per pixel."""
        convs = [f"conv_{i}" for i in range(2 * len(self.widths))]
        dense = [f"dense_{i}" for i in range(len(self.dense))]
        return in_sequence([(name, None) for name in convs + dense], self.choices)

    @staticmethod
    def named(numbers: Sequence[int], **settings: Any) -> "ConvNet | None":
        """`conv-2|4|6|8[-W]`, W channels in the first pair, doubled in each further one."""
        match numbers:
            case [2 | 4 | 6 | 8 as depth, *width] if len(width) < 2:
                return ConvNet(widths=doubled(width or [64], depth // 2), **settings)
        return None
