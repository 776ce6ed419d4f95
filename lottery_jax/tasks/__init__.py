"""Everything that is trained, as a `Task`."""

from lottery_jax.tasks.actor_critic import actor_critic as actor_critic
from lottery_jax.tasks.adversarial import Attack as Attack
from lottery_jax.tasks.adversarial import adversarial as adversarial
from lottery_jax.tasks.anchored import Anchored as Anchored
from lottery_jax.tasks.anchored import anchor as anchor
from lottery_jax.tasks.anchored import anchored as anchored
from lottery_jax.tasks.classification import classification as classification
from lottery_jax.tasks.contrastive import contrastive as contrastive
from lottery_jax.tasks.contrastive import nt_xent as nt_xent
from lottery_jax.tasks.curve import Ends as Ends
from lottery_jax.tasks.curve import between as between
from lottery_jax.tasks.curve import coefficients as coefficients
from lottery_jax.tasks.curve import curve as curve
from lottery_jax.tasks.curve import straight as straight
from lottery_jax.tasks.language_model import language_model as language_model
from lottery_jax.tasks.masked_lm import masked_lm as masked_lm
from lottery_jax.tasks.sentences import sentences as sentences
from lottery_jax.tasks.shared_order import shared_order as shared_order
from lottery_jax.tasks.spans import spans as spans
