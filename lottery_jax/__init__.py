"""Lottery tickets in JAX: masks are pytrees, applied by pure functions around optax.

    import lottery_jax as lj

    mask = lj.masks.ones_like(params)
    tx = lj.transforms.masked(optax.adam(1e-3))
    mask = lj.prune.global_topk(lj.scores.magnitude(trained), mask, fraction=0.2)
    params = lj.masks.apply(mask, initial)

The core works with any pytree of arrays and any training loop. Studies train whole
experiments, all replicas at once; `train` is the shortest way to five trained networks.
"""

# Core: any pytree, any loop.
from lottery_jax import at_init as at_init
from lottery_jax import dynamic as dynamic
from lottery_jax import granularity as granularity
from lottery_jax import masks as masks
from lottery_jax import permutations as permutations
from lottery_jax import prune as prune
from lottery_jax import schedules as schedules
from lottery_jax import scores as scores
from lottery_jax import supermask as supermask
from lottery_jax import transforms as transforms
from lottery_jax import trees as trees

# isort: split
# Studies: many runs, one program.
from lottery_jax import connectivity as connectivity
from lottery_jax import execution as execution
from lottery_jax import imp as imp
from lottery_jax import keys as keys
from lottery_jax import training as training
from lottery_jax import transfer as transfer
from lottery_jax import verdicts as verdicts
from lottery_jax.execution import Execution as Execution
from lottery_jax.execution import Progress as Progress
from lottery_jax.execution import Where as Where

# isort: split
# What is trained.
from lottery_jax import convolution as convolution
from lottery_jax import data as data
from lottery_jax import environments as environments
from lottery_jax import models as models
from lottery_jax import pretrained as pretrained
from lottery_jax import probes as probes
from lottery_jax import tasks as tasks
from lottery_jax import types as types
from lottery_jax.types import Mask as Mask
from lottery_jax.types import Network as Network
from lottery_jax.types import Params as Params
from lottery_jax.types import Task as Task
from lottery_jax.types import TrainState as TrainState

# isort: split
# What remains: files, figures, small networks.
from lottery_jax import compact as compact
from lottery_jax import ma as ma
from lottery_jax import plots as plots
from lottery_jax import pytorch as pytorch
from lottery_jax import strong as strong
from lottery_jax import units as units
from lottery_jax.storage import checkpoints as checkpoints
from lottery_jax.storage import records as records
from lottery_jax.storage import tickets as tickets

train = training.train_replicas

__version__ = "0.3.0"
