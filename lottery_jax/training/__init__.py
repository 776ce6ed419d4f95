"""How anything is trained: the one runner and its parts.

loop        one run, one segment: a pure compiled function
rows        stacks of runs on the devices
segment     many runs, one segment, and what is due after it
runs        many runs through time: `train`
measured    what a task's functions say of networks, by name
checked     what is asked of every argument before anything compiles
passes      many points that are measured alike, in groups
programs    the one cache of compiled programs
"""

from lottery_jax.training import checked as checked
from lottery_jax.training import loop as loop
from lottery_jax.training import measured as measured
from lottery_jax.training import passes as passes
from lottery_jax.training import programs as programs
from lottery_jax.training import rows as rows
from lottery_jax.training import runs as runs
from lottery_jax.training.loop import parse_step as parse_step
from lottery_jax.training.loop import segments as segments
from lottery_jax.training.loop import start as start
from lottery_jax.training.loop import step_gradient as step_gradient
from lottery_jax.training.loop import train_steps as train_steps
from lottery_jax.training.loop import update_mask as update_mask
from lottery_jax.training.measured import check as check
from lottery_jax.training.measured import evaluate as evaluate
from lottery_jax.training.programs import program as program
from lottery_jax.training.rows import of_replica as of_replica
from lottery_jax.training.runs import Trained as Trained
from lottery_jax.training.runs import concatenate as concatenate
from lottery_jax.training.runs import fresh as fresh
from lottery_jax.training.runs import start_many as start_many
from lottery_jax.training.runs import train as train
from lottery_jax.training.runs import train_replicas as train_replicas
from lottery_jax.training.segment import Change as Change
from lottery_jax.training.segment import Runs as Runs
from lottery_jax.types import Curves as Curves
