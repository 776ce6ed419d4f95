"""Random draws are the same bits under every setting of JAX."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import toys

from lottery_jax import data, imp, keys, masks, models, scores
from lottery_jax.connectivity import alignment
from lottery_jax.data import augment
from lottery_jax.execution import Execution
from lottery_jax.models import initializers
from lottery_jax.tasks import classification, curve
from lottery_jax.tasks.adversarial import _offset

pytestmark = pytest.mark.slow

SETTINGS = {
    "x64": (lambda: jax.enable_x64(True),),
    "not partitionable": (lambda: jax.threefry_partitionable(False),),
    # Several at once: each compiles everything anew.
    "rbg, strict promotion": (
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ),
    "unsafe_rbg, free rank promotion, precision": (
        lambda: jax.default_prng_impl("unsafe_rbg"),
        lambda: jax.numpy_rank_promotion("allow"),
        lambda: jax.default_matmul_precision("bfloat16"),
    ),
}

COMPILES_NOTHING_ELSE = {"unsafe_rbg, free rank promotion, precision"}
"""Settings that whole programs are not compiled again for here: no draw looks at them."""

KERNELS = {
    "a": {"kernel": np.ones((5, 4), np.float32)},
    "b": {"kernel": np.ones((200, 2), np.float32)},
}
IMAGES = np.arange(6 * 8 * 8 * 3, dtype=np.int32).reshape(6, 8, 8, 3)
FLOATS = (IMAGES / IMAGES.max()).astype(np.float32)


def init_of(task):
    return lambda: quick.jit(task.init)(keys.of_seed(1))[:2]


def drawn_by_programs():
    """What a compiled program of the library draws, two replicas side by side."""

    def one(key):
        return jax.random.normal(key, (3,), jnp.float32), jax.random.split(key)

    execution = Execution(1, 0)
    made = execution.parallel(one, (0,))(keys.of_replicas(1, [0, 1]).init)
    return made[0], jax.random.key_data(made[1])


TASK = toys.classification()
PLAIN = toys.classification(models.make("mlp-6", 4))
CURVE = curve(PLAIN)
MASK = masks.ones_like(KERNELS)
DRAWS = {
    "replica keys": lambda: jax.tree.map(
        jax.random.key_data, keys.of_replicas(7, [0, 3])
    ),
    "branch keys": lambda: jax.random.key_data(
        keys.branch_keys(keys.of_replicas(7, [0]).noise[0], 3)
    ),
    "init": init_of(TASK),
    "init of convolutions": init_of(
        classification(
            data.Dataset(
                {
                    "train": {
                        "image": IMAGES.astype(np.uint8),
                        "label": np.zeros(6, "i4"),
                    }
                },
                *(2, (8, 8, 3), (0.5,), (0.5,), "toy"),
            ),
            models.ResNet(2, (1,), 2, choices=models.Choices(**models.OPEN_LTH)),
            batch_size=3,
        )
    ),
    "init of a curve": init_of(CURVE),
    "narrow": lambda: PLAIN.narrow(keys.of_seed(2), 30),
    **{
        f"kernel of {name}": lambda law=law: law(keys.of_seed(3), (4, 5), jnp.float32)
        for name, law in initializers.KERNELS.items()
    },
    "biases": lambda: initializers.bias("torch", 4)(keys.of_seed(3), (5,), jnp.float32),
    "scales": lambda: initializers.scale("uniform")(keys.of_seed(3), (5,), jnp.float32),
    "masks.random": lambda: masks.random(keys.of_seed(4), KERNELS, 0.4),
    "masks.shuffle": lambda: masks.shuffle(
        keys.of_seed(5), masks.random(keys.of_seed(4), KERNELS, 0.4)
    ),
    "scores.random": lambda: scores.random(keys.of_seed(6), KERNELS),
    "shuffled weights": lambda: imp.arms.shuffle_surviving(
        keys.of_seed(7), scores.random(keys.of_seed(6), KERNELS), MASK
    ),
    "flip": lambda: data.flip(keys.of_seed(8), IMAGES),
    "crop": lambda: data.shift_crop(keys.of_seed(8), IMAGES),
    "flip and crop": lambda: data.flip_and_crop(keys.of_seed(8), IMAGES),
    "windows": lambda: augment.windows(
        keys.of_seed(8), (6, 9, 7), (0.08, 1.0), (3 / 4, 4 / 3)
    ),
    "resized crop and flip": lambda: data.resized_crop_and_flip(
        keys.of_seed(8), FLOATS, 4
    ),
    "views": lambda: data.views.two(keys.of_seed(8), FLOATS, data.Views(blur=0.5)),
    "order": lambda: TASK.order(keys.of_seed(9), jnp.int32(6)),
    "batch": lambda: toys.classification().batch(
        toys.dataset().arrays, jnp.arange(3, dtype=jnp.int32), keys.of_seed(9), 1
    ),
    "units": lambda: alignment.random(
        models.units(models.make("mlp-6", 4), PLAIN.shapes[0]),
        *(PLAIN.shapes[0], keys.of_seed(10)),
    ),
    "starts of attacks": lambda: _offset(keys.of_seed(11), (3, 2)),
    "programs": drawn_by_programs,
}


COMPILED = {name for name in DRAWS if name.startswith("init") or name == "programs"}


def bits(tree):
    """The leaves' bits; integers of any width are compared as numbers."""
    return [
        np.asarray(x).astype(np.int64) if np.asarray(x).dtype.kind in "iu" else x
        for x in map(np.asarray, jax.tree.leaves(tree))
    ]


@pytest.fixture(scope="module")
def by_default():
    return {name: bits(draw()) for name, draw in DRAWS.items()}


def test_draws_are_draws(by_default):
    for name, leaves in by_default.items():
        assert any(np.unique(x).size > 1 for x in leaves), name


@pytest.mark.parametrize("setting", SETTINGS)
def test_draws_are_the_same_bits_under_every_setting(setting, by_default):
    for name, draw in DRAWS.items():
        if setting in COMPILES_NOTHING_ELSE and name in COMPILED:
            continue
        with contextlib.ExitStack() as stack:
            for enter in SETTINGS[setting]:
                stack.enter_context(enter())
            found = bits(draw())
        for got, expected in zip(found, by_default[name], strict=True):
            assert got.dtype == expected.dtype, name
            np.testing.assert_array_equal(got, expected, err_msg=name)


def test_keys_are_threefry_whatever_the_default_is():
    with jax.default_prng_impl("rbg"):
        for made in (*keys.of_replicas(0, [0]), *keys.replica_keys(0, 0)):
            assert str(jax.random.key_impl(made)) == keys.IMPL
        assert str(jax.random.key_impl(jax.random.key(0))) == "rbg"


def test_an_offset_of_jax_is_no_seed_of_ours():
    before = jax.random.key_data(keys.of_seed(3))
    jax.config.update("jax_random_seed_offset", 5)
    try:
        np.testing.assert_array_equal(jax.random.key_data(keys.of_seed(3)), before)
    finally:
        jax.config.update("jax_random_seed_offset", 0)


def test_draws_do_not_depend_on_what_is_beside_them():
    with jax.default_prng_impl("rbg"):
        several = keys.of_replicas(3, [0, 1, 2])
        one = keys.of_replicas(3, [1])

        def init(key):
            return TASK.init(key)[0]

        together = jax.vmap(init)(several.init)
        alone = jax.vmap(init)(one.init)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        np.testing.assert_array_equal(a[1], b[0])


# --- a whole study in double precision ------------------------------------------------

_STUDY = """
import json, sys
import numpy as np, optax
sys.path.insert(0, "tests")
import jax
import lottery_jax as lj
from lottery_jax import imp
from lottery_jax.connectivity import Measure, distances, linear

rng = np.random.RandomState(0)
def split(n):
    image = rng.randint(0, 256, (n, 6, 6, 1)).astype(np.uint8)
    return {"image": image, "label": (np.arange(n) % 3).astype(np.int32)}
splits = {"train": split(24), "validation": split(12), "test": split(12)}
data = lj.data.Dataset(splits, 3, (6, 6, 1), (0.5,), (0.25,), "tiny")
model = lj.models.ResNet(3, layers=(1,), width=2)
task = lj.tasks.classification(
    data, model, batch_size=12, augment=("flip", "crop"), evaluation_batch=12
)
plan = imp.Plan(steps=3, rewind_step=1, validate_every=3, arms=("ticket", "random_mask"))
tx = optax.sgd(optax.cosine_decay_schedule(0.1, 3), momentum=0.9)
study = imp.run(task, tx, plan, levels=1, replicas=(0, 1))
done = lj.train(task, tx, steps=3, replicas=2)
nets = done.networks
out = {"dtypes": sorted({str(x.dtype) for x in jax.tree.leaves(nets)})}
out["loss"] = done.curves.values["train_loss"][:, -1].tolist()
for policy in ("recompute", "interpolate"):
    measure = Measure(3, policy, ("test",), 1)
    path = linear.paths(task, nets, [(0, 1)], measure)
    out[policy] = np.asarray(path.values['loss'], float).ravel().tolist()
out["mask"] = [np.asarray(x).ravel().tolist() for x in jax.tree.leaves(study.masks)]
out["l2"] = float(distances.l2(*(lj.trees.rows(nets.params, i) for i in (0, 1))))
out["classes"] = distances.predictions(task, nets).ravel().tolist()
print(json.dumps(out))
"""


def test_a_convolutional_study_is_the_same_with_64_bits_enabled():
    # Compiled quickly: what runs is tiny.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _STUDY],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).resolve().parent.parent,
            env=os.environ | settings | {"JAX_ENABLE_X64": x64},
        )
        for x64 in ("0", "1")
    ]
    found = []
    for run in runs:
        out, error = run.communicate()
        assert run.returncode == 0, error
        found.append(json.loads(out.splitlines()[-1]))
    narrow, wide = found
    assert wide["dtypes"] == narrow["dtypes"] == ["float32"]
    assert wide["classes"] == narrow["classes"] and wide["mask"] == narrow["mask"]
    for name in ("loss", "recompute", "interpolate", "l2"):
        np.testing.assert_allclose(wide[name], narrow[name], rtol=1e-4, err_msg=name)
