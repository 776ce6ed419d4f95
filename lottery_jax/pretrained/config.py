"""What `config.json` says of an encoder, and how it is said."""

from collections.abc import Mapping
from typing import Any

from lottery_jax import errors
from lottery_jax.models import BertShape

_SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "inner",
    "max_position_embeddings": "positions",
}
"""Fields that every file must have, and what they are called in `BertShape`."""

_OTHERS = {
    "type_vocab_size": "types",
    "layer_norm_eps": "epsilon",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
    "tie_word_embeddings": "tied",
}
"""Fields that a file may lack: then they are BERT's, the defaults of `BertShape`."""

_ONLY: Mapping[str, tuple[Any, str]] = {
    "model_type": ("bert", "of other encoders other functions are computed"),
    "position_embedding_type": ("absolute", "relative positions are not computed"),
    "is_decoder": (False, "attention looks both ways here"),
    "add_cross_attention": (False, "there is no second sequence here"),
    "embedding_size": (None, "embeddings are as wide as hidden states here"),
}
"""Fields that may be absent, or must have one value; and why."""


def shape_of(config: Mapping[str, Any]) -> BertShape:
    """The shape of the encoder that a `config.json` describes.

    Args:
      config: what the file holds.

    Returns:
      Its sizes, dropout rates, activation, and whether the decoder is tied.

    Raises:
      ValueError: a model that is not BERT (RoBERTa, say, counts positions otherwise), a
        field that is missing, unknown or makes no sense; names it.
    """
    errors.is_a("config", config, Mapping, "what a config.json holds")
    for field, (only, why) in _ONLY.items():
        value = config.get(field, only)
        if value != only:
            must = f"{only!r} or absent: {why}"
            raise errors.wrong(f"config[{field!r}]", errors.shown(value), must)
    lacks = [field for field in _SIZES if field not in config]
    if lacks:
        raise ValueError(
            f"config lacks {lacks}; it must say {list(_SIZES)}, as the config.json of a "
            "BERT does"
        )
    names = _SIZES | {k: v for k, v in _OTHERS.items() if k in config}
    try:
        return BertShape(**{ours: config[theirs] for theirs, ours in names.items()})
    except ValueError as error:
        called = ", ".join(f"{ours} is {theirs}" for theirs, ours in names.items())
        raise ValueError(f"config: {error} ({called})") from error


def config_of(shape: BertShape, architecture: str) -> dict[str, Any]:
    """What a `config.json` says of an encoder: `shape_of` the other way round.

    Args:
      shape: of the encoder.
      architecture: the class of `transformers` that the weights belong to.

    Returns:
      A JSON-able dict.
    """
    names = _SIZES | _OTHERS
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "initializer_range": 0.02,
        **{theirs: getattr(shape, ours) for theirs, ours in names.items()},
    }
