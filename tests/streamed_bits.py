"""What streamed training must have in common with training in memory: all its bits."""

import jax
import numpy as np


def assert_same(a, b):
    """Every array of the one has the bits of the other."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def bits(results):
    """What of a study's results is compared: all but times."""
    return {
        name: np.asarray(x)
        for name, x in results.data_vars.items()
        if not name.startswith(("time", "seconds", "steps_per_"))
    }
