"""Language models by name: networks that say of a text which token comes next.

Recurrent ones are called as `model(ids, carry, train) -> (logits, carry)` and begin with
`model.initial(batch)`; the others as `model(ids, train) -> logits`.
"""

from typing import Any, Literal

import flax.linen as nn

from lottery_jax.models import families
from lottery_jax.models.decoder import Decoder
from lottery_jax.models.recurrent import Recurrent

FAMILIES: families.Families = {
    "lstm": ("lstm-LAYERS-UNITS (lstm-2-650)", Recurrent.named_lstm),
    "gru": ("gru-LAYERS-UNITS", Recurrent.named_gru),
    "transformer": ("transformer-LAYERS-WIDTH-HEADS", Decoder.named),
}
"""All families of language models."""

FORMS = families.forms(FAMILIES)
"""The names that `make` knows."""


def make(
    name: str,
    vocabulary: int,
    *,
    positions: int = 64,
    dropout: float | None = None,
    tied: bool | None = None,
    embeddings: Literal["pruned", "kept"] = "pruned",
) -> nn.Module:
    """The language model of this name, a hashable Linen module.

    Args:
      name: one of `FORMS`: "lstm-2-128", "gru-2-128", "transformer-4-128-4".
      vocabulary: number of token ids.
      positions: the longest text of a Transformer; the others know no longest.
      dropout: in [0, 1); None for the module's own.
      tied: whether the output layer's kernel is the embeddings; None for the module's own.
      embeddings: whether they count among the prunable weights.

    Raises:
      ValueError: the name is none of these, or a size makes no sense.
    """
    settings: dict[str, Any] = {
        "vocabulary": vocabulary,
        "positions": positions,
        "embeddings": embeddings,
    }
    given = {"dropout": dropout, "tied": tied}
    settings |= {field: x for field, x in given.items() if x is not None}
    return families.named(name, FAMILIES, settings)
