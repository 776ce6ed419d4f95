"""Tickets from PyTorch and for PyTorch: open_lth's, torchvision's, one's own.

A ticket there is a state dict and a dict of masks of 0 and 1. What changes on the way are
names, given by a convention or layer by layer, and layouts:

- dense kernels, `[out, in]` there, are `[in, out]` here; convolutions, `[out, in, h, w]`
  there, `[h, w, in, out]` here;
- images are flattened channel by channel there and pixel by pixel here, so the inputs of
  the first dense layer are in another order;
- of BatchNorm `weight`, `bias`, `running_mean` and `running_var` there are `scale` and
  `bias` in the params and `mean` and `var` in the model state here.

Numbers are copied bit for bit, and the network says the same of the same images (given as
`[B, C, H, W]` there, `[B, H, W, C]` here), up to rounding. What a state dict does not tell
is left to the reader: how images were normalised, and for networks of one's own what lies
between the layers. Anything else that does not fit is refused, by its names there and here.
"""

from lottery_jax.pytorch.convert import Exported as Exported
from lottery_jax.pytorch.convert import export_ticket as export_ticket
from lottery_jax.pytorch.convert import import_ticket as import_ticket
from lottery_jax.pytorch.names import CONVENTIONS as CONVENTIONS
from lottery_jax.pytorch.names import modules as modules
from lottery_jax.pytorch.names import sequential as sequential
from lottery_jax.storage.state_dicts import StateDict as StateDict
from lottery_jax.storage.state_dicts import read as read
from lottery_jax.storage.state_dicts import write as write
