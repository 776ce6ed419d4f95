"""Games that policies play: pure functions that are stepped on the device.

`cartpole` and `acrobot` are written after their published equations, `make` knows them by
name, and `adapted` takes those of other libraries. A new one is a file: an `Environment`,
and a line in `NAMED`.
"""

from lottery_jax.environments.acrobot import acrobot as acrobot
from lottery_jax.environments.adapted import adapted as adapted
from lottery_jax.environments.cartpole import cartpole as cartpole
from lottery_jax.environments.environment import Environment as Environment
from lottery_jax.environments.environment import check as check
from lottery_jax.environments.named import NAMES as NAMES
from lottery_jax.environments.named import make as make
