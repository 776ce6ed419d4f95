"""Texts as token ids: corpora, labelled sentences, questions with answers.

What is read and tokenised once is cached; what a task is given are arrays on the host.
`python -m lottery_jax.data.prepare glue --from FOLDER` puts the files where they are read.
"""

from lottery_jax.data.text.checked import check as check
from lottery_jax.data.text.corpora import CORPORA as CORPORA
from lottery_jax.data.text.generated import markov as markov
from lottery_jax.data.text.sentences import SENTENCES as SENTENCES
from lottery_jax.data.text.sentences import sentences as sentences
from lottery_jax.data.text.squad import squad as squad
from lottery_jax.data.text.squad_scores import SquadScores as SquadScores
from lottery_jax.data.text.squad_scores import squad_scores as squad_scores
from lottery_jax.data.text.stream import stream as stream
from lottery_jax.data.text.tokenizer import Tokenizer as Tokenizer
from lottery_jax.data.text.tokenizer import tokenizer as tokenizer
from lottery_jax.data.text.tokens import Texts as Texts
from lottery_jax.data.text.tokens import Tokens as Tokens
from lottery_jax.data.text.tokens import Vocabulary as Vocabulary
from lottery_jax.data.text.windows import windows as windows
