"""Where things run and how many at once: devices, memory, processes, folders."""

from lottery_jax.activations import Activations as Activations
from lottery_jax.execution import deadline as deadline
from lottery_jax.execution import memory as memory
from lottery_jax.execution import pace as pace
from lottery_jax.execution import processes as processes
from lottery_jax.execution import replicas as replicas
from lottery_jax.execution import where as where
from lottery_jax.execution.deadline import Deadline as Deadline
from lottery_jax.execution.deadline import OutOfTimeError as OutOfTimeError
from lottery_jax.execution.pace import line as line
from lottery_jax.execution.replicas import AXIS as AXIS
from lottery_jax.execution.replicas import DATA_AXIS as DATA_AXIS
from lottery_jax.execution.replicas import GROUP as GROUP
from lottery_jax.execution.replicas import Execution as Execution
from lottery_jax.execution.replicas import Precision as Precision
from lottery_jax.execution.replicas import default_execution as default_execution
from lottery_jax.execution.where import Progress as Progress
from lottery_jax.execution.where import Waited as Waited
from lottery_jax.execution.where import Where as Where
