"""Iterative magnitude pruning: train, prune, rewind, with its controls.

A *chain* is a procedure with its own sequence of masks (iterative or one-shot; weight
rewinding, learning-rate rewinding or fine-tuning); its *arms* are the controls. `run`
trains a whole study; with a folder it stores checkpoints and tickets there and continues
what it finds. `retrain` trains one level of tickets again under another task, optimizer
or arm.
"""

from lottery_jax.imp import arms as arms
from lottery_jax.imp.arms import ARMS as ARMS
from lottery_jax.imp.initial import AtInit as AtInit
from lottery_jax.imp.initial import prune_at_init as prune_at_init
from lottery_jax.imp.plan import Chain as Chain
from lottery_jax.imp.plan import Geometric as Geometric
from lottery_jax.imp.plan import Linear as Linear
from lottery_jax.imp.plan import Plan as Plan
from lottery_jax.imp.plan import check as check
from lottery_jax.imp.plan import keep_counts as keep_counts
from lottery_jax.imp.plan import swept as swept
from lottery_jax.imp.results import Change as Change
from lottery_jax.imp.results import Emptied as Emptied
from lottery_jax.imp.results import Records as Records
from lottery_jax.imp.results import Study as Study
from lottery_jax.imp.results import tickets_of as tickets_of
from lottery_jax.imp.retraining import retrain as retrain
from lottery_jax.imp.retraining import tickets_from as tickets_from
from lottery_jax.imp.store import ticket_path as ticket_path
from lottery_jax.imp.study import check_task as check_task
from lottery_jax.imp.study import run as run
