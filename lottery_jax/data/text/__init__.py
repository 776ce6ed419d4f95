"""Texts as token ids: corpora, labelled sentences, questions with answers.

What is read and tokenised once is cached; what a task is given are arrays on the host.
"""

from lottery_jax.data.text.generated import markov as markov
from lottery_jax.data.text.tokens import Texts as Texts
from lottery_jax.data.text.tokens import Tokens as Tokens
from lottery_jax.data.text.tokens import Vocabulary as Vocabulary
