"""A text that needs no download."""

import numpy as np

from lottery_jax import errors
from lottery_jax.data._random import random_state
from lottery_jax.data.text.tokens import Texts, Vocabulary


def markov(
    *, tokens: int = 20_000, vocabulary: int = 12, share: float = 0.8, seed: int = 0
) -> Texts:
    """A text in which two tokens mostly settle the next one, as one long text a split.

    What follows which two is drawn once; where it is not followed, a token is uniform. The
    loss of who knows the law is its entropy, `-share' log(share') - (1 - share') log((1 -
    share') / (vocabulary - 1))` with `share' = share + (1 - share) / vocabulary`.

    Args:
      tokens: of all splits together; validation and test have a tenth each.
      vocabulary: number of token ids, 2 or more.
      share: of the tokens that follow the law, in (0, 1).
      seed: of law and text.

    Returns:
      Texts whose splits have `ids`, `[T]`.

    Raises:
      ValueError: an argument out of range.
    """
    tokens = errors.whole("tokens", tokens, 100)
    vocabulary = errors.whole("vocabulary", vocabulary, 2)
    errors.share("share", share)
    generator = random_state(seed, "markov")
    law = generator.randint(vocabulary, size=(vocabulary, vocabulary))
    free = generator.random_sample(tokens) >= share
    ids = generator.randint(vocabulary, size=tokens).astype(np.int32)
    for i in range(2, tokens):
        if not free[i]:
            ids[i] = law[ids[i - 2], ids[i - 1]]
    train, validation, test = np.split(ids, [tokens * 8 // 10, tokens * 9 // 10])
    arrays = {"train": train, "validation": validation, "test": test}
    splits = {split: {"ids": own} for split, own in arrays.items()}
    return Texts(splits, Vocabulary(vocabulary), "markov", metric="loss")
