"""Streamed splits for tests: examples of arrays, which can be watched and made to fail."""

import hashlib

import jax
import numpy as np

from lottery_jax import streams


class Listed(streams.Examples):
    """Examples of arrays; `asked` holds what was read together."""

    def __init__(self, arrays, name="listed"):
        self.arrays = {field: np.asarray(x) for field, x in arrays.items()}
        self.name, self.asked = name, []
        self.fails_at = None

    @property
    def fields(self):
        return {
            field: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
            for field, x in self.arrays.items()
        }

    @property
    def digest(self):
        bits = b"".join(x.tobytes() for x in self.arrays.values())
        return hashlib.sha256(bits).hexdigest()

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def read(self, indices, into):
        self.asked.append(indices)
        if self.fails_at is not None and len(self.asked) > self.fails_at:
            raise streams.SourceError(f"example {indices[0]} of {self.name} is gone")
        for field, x in self.arrays.items():
            into[field][:] = x[indices]


def streamed(task, *splits):
    """The same task, of which these splits (all by default) are streamed."""
    data = {
        split: streams.columns(Listed(arrays, split))
        if split in (splits or task.data)
        else arrays
        for split, arrays in task.data.items()
    }
    return task._replace(data=data)
