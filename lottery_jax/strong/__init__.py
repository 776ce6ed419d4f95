"""The strong lottery ticket hypothesis, built: random networks, pruned and never trained.

    target = lj.strong.layers(params)                     # a trained ReLU network
    twin = lj.strong.build(key, target, neurons=42)       # twice as deep, random, masked
    twin(x)                                               # nearly what the target says of x
    lj.strong.bound(twin)                                 # proved, over the unit ball
    lj.strong.attack(key, twin).distance                  # and from below
    twin.counts                                           # candidates, all weights, kept

What the theorems ask of the random network: twice the depth of the target (2L layers), and
of each input so many hidden neurons for every weight to come out within eps:

    single        1/eps^2 (1/eps for weights inside the range)    Malach et al. 2020
    golden        log(1/eps); at most 2.1 ln(1/eps) are kept      Orseau et al. 2020
    subset_sums   log(1/eps)                                      Pensia et al. 2020

the first two times the logarithm of the number of weights, the last plus it. docs/strong.md
has the proof of the bound, and what the networks cost.
"""

from lottery_jax.strong.choices import golden as golden
from lottery_jax.strong.choices import golden_steps as golden_steps
from lottery_jax.strong.choices import programme as programme
from lottery_jax.strong.choices import single as single
from lottery_jax.strong.choices import subset_sums as subset_sums
from lottery_jax.strong.distance import Attack as Attack
from lottery_jax.strong.distance import attack as attack
from lottery_jax.strong.distance import bound as bound
from lottery_jax.strong.distance import differences as differences
from lottery_jax.strong.distance import outputs as outputs
from lottery_jax.strong.laws import Hyperbolic as Hyperbolic
from lottery_jax.strong.laws import Uniform as Uniform
from lottery_jax.strong.laws import hyperbolic as hyperbolic
from lottery_jax.strong.laws import neurons as neurons
from lottery_jax.strong.targets import apply as apply
from lottery_jax.strong.targets import forward as forward
from lottery_jax.strong.targets import layers as layers
from lottery_jax.strong.targets import with_constant as with_constant
from lottery_jax.strong.twins import METHODS as METHODS
from lottery_jax.strong.twins import Counts as Counts
from lottery_jax.strong.twins import Rescale as Rescale
from lottery_jax.strong.twins import Twin as Twin
from lottery_jax.strong.twins import build as build
from lottery_jax.strong.twins import scales as scales
