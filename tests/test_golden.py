"""A tiny stored study: the numbers must not move unless somebody means them to.

The data come from NumPy's generator, whose streams are fixed; random bits are the same in
all versions of JAX, rounding is not, hence the tolerances. To store anew, after a change
that is meant to move the numbers:

    PYTHONPATH=. python tests/test_golden.py

and say in the commit why they moved.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from lottery_jax import keys

# The studies of `toys` are shared by several files: all compile them alike.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

PATH = pathlib.Path(__file__).parent / "golden" / "one_chain.json"
LEVELS = 3


def numbers() -> dict:
    """Levels 0 to 2 of `toys.one_chain`: 12 steps of Adam each, from step 0."""
    study = toys.one_chain()

    def record(name):
        values = study.study.records[name][1][0, :, :, :LEVELS]
        return np.asarray(values, np.float64).round(6).tolist()

    def first_order(study):
        own = keys.replica_keys(study.plan.seed, 0)
        order = keys.noise_keys(own.noise).order
        return np.asarray(study.task.order(order, jnp.int32(0)))

    def corner(network):
        kernel = network.params["head"]["kernel"]
        return np.asarray(kernel, np.float64)[:2, :3].round(6).tolist()

    return {
        "arms": list(study.plan.arms),
        "alive": study.study.records["alive"][1][0, 0, :, :LEVELS].tolist(),
        "test_error": record("test_error"),
        "test_loss": record("test_loss"),
        "train_loss": record("train_loss"),
        "validation_loss": record("validation_loss"),
        "initial weights": [
            corner(study.start("imp", 1, arm, 0).network)
            for arm in ("ticket", "reinit")
        ],
        "trained weights": [
            corner(study.end("imp", 1, "ticket", level)) for level in range(LEVELS)
        ],
        "first data order": first_order(study)[:8].tolist(),
        "removed at level 1": np.flatnonzero(
            ~study.start("imp", 0, "ticket", 1).mask["head"]["kernel"]
        ).tolist(),
    }


def test_the_numbers_have_not_moved():
    stored, now = json.loads(PATH.read_text()), numbers()
    assert stored.keys() == now.keys()
    for name in ("arms", "alive", "first data order", "removed at level 1"):
        assert now[name] == stored[name], name
    tolerances = {
        "initial weights": 1e-6,
        "trained weights": 2e-4,
        "test_loss": 2e-4,
        "train_loss": 2e-4,
        "validation_loss": 2e-4,
        "test_error": 1.01 / toys.TEST,  # one example
    }
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(
            now[name], stored[name], rtol=0, atol=tolerance, err_msg=name
        )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    PATH.parent.mkdir(exist_ok=True)
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in numbers().items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {PATH}")
