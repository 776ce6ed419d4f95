"""One 2-D convolution, fast in loops and under `vmap`, differentiable at will.

A convolution and its two gradients are three bilinear maps, each other's transposes; they
are three JAX primitives here (`primitives`). How one of them is computed for one kernel is
said in `one_kernel`, and how many kernels, one per replica, are executed in `many_kernels`.

Why not `jax.lax.conv_general_dilated` alone: inside the body of an XLA loop on CPU only
convolutions of the form `b01f,01io->b01f` take the fast path, the stock gradients do
not have that form (jax-ml/jax#12868), and under a `vmap` over kernels all three become
grouped convolutions, which are slow on CPU (jax-ml/jax#13800, #26266).
"""

from lottery_jax.convolution import many_kernels as many_kernels  # registers lowerings
from lottery_jax.convolution.api import METHODS as METHODS
from lottery_jax.convolution.api import Method as Method
from lottery_jax.convolution.api import batched_by as batched_by
from lottery_jax.convolution.api import conv as conv
from lottery_jax.convolution.api import conv_general_dilated as conv_general_dilated
from lottery_jax.convolution.api import dense as dense
from lottery_jax.convolution.geometry import Padding as Padding
from lottery_jax.convolution.pooling import avg_pool as avg_pool
from lottery_jax.convolution.pooling import max_pool as max_pool
from lottery_jax.convolution.pooling import overlapping_max_pool as overlapping_max_pool
