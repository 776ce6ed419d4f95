"""What is trained on: arrays on the host, augmentation and data order on the device.

`load` returns NumPy arrays, `stream` what is read while runs train; everything that draws
(`shuffled`, `flip`, `shift_crop`) is a pure function of a key and runs inside a compiled
program.
`python -m lottery_jax.data.prepare NAME` downloads and prepares a data set once.
"""

from lottery_jax.data import maps as maps
from lottery_jax.data import text as text
from lottery_jax.data import views as views
from lottery_jax.data.adapted import colour32 as colour32
from lottery_jax.data.adapted import grey28 as grey28
from lottery_jax.data.augment import center_crop as center_crop
from lottery_jax.data.augment import flip as flip
from lottery_jax.data.augment import flip_and_crop as flip_and_crop
from lottery_jax.data.augment import normalize as normalize
from lottery_jax.data.augment import random_resized_crop as random_resized_crop
from lottery_jax.data.augment import resized_crop_and_flip as resized_crop_and_flip
from lottery_jax.data.augment import shift_crop as shift_crop
from lottery_jax.data.checked import check as check
from lottery_jax.data.checked import in_memory as in_memory
from lottery_jax.data.order import gather as gather
from lottery_jax.data.order import sequential as sequential
from lottery_jax.data.order import shuffled as shuffled
from lottery_jax.data.order import steps_per_epoch as steps_per_epoch
from lottery_jax.data.perturb import blur as blur
from lottery_jax.data.perturb import randomize_labels as randomize_labels
from lottery_jax.data.sets import GENERATED as GENERATED
from lottery_jax.data.sets import NAMES as NAMES
from lottery_jax.data.sets import Dataset as Dataset
from lottery_jax.data.sets import available as available
from lottery_jax.data.sets import load as load
from lottery_jax.data.streamed.stream import stream as stream
from lottery_jax.data.views import Views as Views
