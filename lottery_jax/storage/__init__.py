"""What remains when a process has ended: tickets, checkpoints, results, state dicts.

Every file appears complete or not at all, and what was damaged is refused by name.
"""

from lottery_jax.storage import checkpoints as checkpoints
from lottery_jax.storage import records as records
from lottery_jax.storage import state_dicts as state_dicts
from lottery_jax.storage import tickets as tickets
from lottery_jax.storage.checkpoints import (
    CorruptCheckpointError as CorruptCheckpointError,
)
from lottery_jax.storage.tickets import CorruptTicketError as CorruptTicketError
from lottery_jax.storage.tickets import Ticket as Ticket
