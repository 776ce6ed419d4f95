"""One digest for what computes the same, in any process; another for anything else."""

import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import text_toys
import toys

import lottery_jax as lj
from lottery_jax.training import digests, identity

ROOT = pathlib.Path(__file__).parent.parent
X = jax.ShapeDtypeStruct((6,), jnp.float32)


def linear(scale=2.0):
    return lambda x: x * scale


def named(scale=2.0):
    @jax.jit
    def helper(x):
        return x * scale

    return helper


def named_otherwise(scale=2.0):
    @jax.jit
    def another_helper(x):
        return x * scale

    return another_helper


def constant(changed=()):
    """Closes over more numbers than are printed."""
    table = np.arange(10_000.0, dtype=np.float32)
    table[list(changed)] += 1
    return lambda x: x + jnp.asarray(table)[:6] + table.sum()


def placed(device=0):
    table = jax.device_put(jnp.arange(6.0), jax.devices()[device])
    return lambda x: x + table


def with_rule(slope=1.0):
    @jax.custom_jvp
    def f(x):
        return jnp.abs(x)

    f.defjvp(lambda p, t: (f(p[0]), slope * t[0]))
    return jax.grad(lambda x: f(x).sum())


def with_both_rules(slope=1.0):
    @jax.custom_vjp
    def f(x):
        return jnp.abs(x)

    f.defvjp(lambda x: (f(x), None), lambda _, g: (slope * g,))
    return jax.grad(lambda x: f(x).sum())


def looped(steps=3):
    return lambda x: jax.lax.fori_loop(0, steps, lambda i, y: jnp.sin(y) * i, x)


def scanned(weight=1.0):
    def body(carry, y):
        return carry * weight + y, jax.lax.cond(y > weight, jnp.sin, jnp.cos, y)

    return lambda x: jax.lax.scan(body, jnp.float32(0), x)


def drawn(rate=0.5):
    return lambda x: x * jax.random.bernoulli(jax.random.key(3), rate, x.shape)


def shown(text="x"):
    def f(x):
        jax.debug.print(text + "={}", x)
        return x + 1

    return f


def on_host(power=2):
    def host(x):
        return np.asarray(x) ** power

    return lambda x: jax.pure_callback(host, X, x)


def convolved(stride=1):
    def f(x):
        x, kernel = jnp.ones((1, 4, 4, 1)) * x[0], jnp.ones((2, 2, 1, 1)) * x[1]
        return lj.convolution.conv(x, kernel, strides=(stride, stride)).sum()

    return jax.grad(f)


def named_outputs(name="a"):
    return lambda x: {name: x}


def among(words=frozenset({"a", "b", "c", "d"})):
    return lambda x: jax.pure_callback(lambda y: y * len(words & {"a", "b"}), X, x)


FAMILIES = {
    linear: (3.0,),
    named: (3.0,),
    constant: ((5_000,),),
    with_rule: (2.0,),
    with_both_rules: (2.0,),
    looped: (4,),
    scanned: (0.5,),
    drawn: (0.25,),
    on_host: (3,),
    convolved: (2,),
    named_outputs: ("b",),
    among: (frozenset({"a"}),),
}
"""Functions that make functions, and arguments with which these do something else."""


def of(function):
    return digests.of_function(function, X)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_made_anew_it_is_the_same_and_with_another_constant_it_is_not(family):
    assert of(family()) == of(family())
    assert of(family(*FAMILIES[family])) != of(family())


def test_what_a_helper_is_called_where_a_constant_lies_and_what_is_shown_do_not_count():
    assert of(named()) == of(named_otherwise())
    assert of(placed(0)) == of(placed(1))
    assert of(shown("x")) == of(shown("y"))


def normalised():
    norm = lj.models.BatchNorm()
    variables = {
        "params": {"scale": np.ones(6), "bias": np.zeros(6)},
        "batch_stats": {"mean": np.zeros(6), "var": np.ones(6)},
    }
    return lambda x: norm.apply(variables, x[None], False)


@pytest.mark.parametrize("function", [convolved, normalised])
def test_rounding_and_the_way_to_convolve_belong_to_the_execution(function):
    plain = of(function())
    execution = lj.Execution(1, 1, "tiles", "bfloat16", activations="bfloat16")
    with execution.settings():
        assert of(function()) == plain
        traced = str(jax.make_jaxpr(function())(X))
        assert "bf16" in traced or "precision=bfloat16" in traced


OF_OPTAX = (
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
)
OF_OPTAX += ("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lbfgs", "lion")
OF_OPTAX += ("nadam", "nadamw", "noisy_sgd", "novograd", "optimistic_adam_v2", "radam")
OF_OPTAX += ("optimistic_gradient_descent", "polyak_sgd", "rmsprop", "rprop", "sgd")
OF_OPTAX += ("sign_sgd", "sm3", "yogi")
OF_CONTRIB = ("acprop", "ademamix", "cocob", "dadapt_adamw", "dog", "dowg", "momo")
OF_CONTRIB += ("momo_adam", "muon", "prodigy", "schedule_free_adamw", "sophia")
OF_CONTRIB += ("schedule_free_sgd",)

OPTIMIZERS = {
    **{name: functools.partial(getattr(optax, name), 0.1) for name in OF_OPTAX},
    **{n: functools.partial(getattr(optax.contrib, n), 0.1) for n in OF_CONTRIB},
    "momentum": lambda: optax.sgd(0.1, 0.9),
    "less momentum": lambda: optax.sgd(0.1, 0.8),
    "nesterov": lambda: optax.sgd(0.1, 0.8, nesterov=True),
    "longer memory": lambda: optax.adam(0.1, b2=0.9999),
    "cosine": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "longer cosine": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 11)),
    "steps": lambda: optax.sgd(optax.piecewise_constant_schedule(0.1, {5: 0.1})),
    "clipped": lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "decayed": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1)),
    "several": lambda: optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(0.1),
    "parts": lambda: optax.multi_transform(
        {"a": optax.sgd(0.1), "b": optax.adam(0.1)},
        lambda params: {n: "a" if n == "head" else "b" for n in params},
    ),
}

REFUSED = {"adafactor", "muon", "sm3"}
"""What trains no subnetwork (`test_optimizers`): there is no training to tell apart."""


@pytest.mark.slow
def test_every_optimizer_has_one_digest_of_its_own():
    task, found = toys.classification(lj.models.make("mlp-3", 4)), {}
    for name, make in OPTIMIZERS.items():
        if name in REFUSED:
            with pytest.raises(ValueError, match="tx="):
                identity.of_optimizer(task, make())
            continue
        one, again = (
            identity.of_optimizer(task, make())["optimizer"] for _ in range(2)
        )
        assert one == again, name
        found[name] = one
    names = {digest: name for name, digest in found.items()}
    twice = {name: names[x] for name, x in found.items() if names[x] != name}
    assert not twice


class Opaque:
    def __call__(self, x):
        return x


def test_what_cannot_be_told_from_another_is_refused():
    with pytest.raises(
        digests.OpaqueError, match="'pure_callback' has a .*Opaque, which"
    ):
        of(lambda x: jax.pure_callback(Opaque(), X, x))
    task = toys.classification(lj.models.make("mlp-3", 4))

    def loss(*args):
        value, aux = task.loss(*args)
        seen = jax.lax.stop_gradient(value)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        return value, (*aux[:2], {"x": jax.pure_callback(Opaque(), scalar, seen)})

    with pytest.raises(ValueError, match="^task.loss: its .* leave the folder out"):
        identity.of_task(task._replace(loss=loss), ("loss",))


FUNCTIONS = ("init", "order", "batch", "loss", "exclude")


def everything() -> dict[str, Any]:
    """The fields of five kinds of tasks, and digests of all families."""
    found: dict[str, Any] = {f.__name__: of(f()) for f in FAMILIES}
    tasks = {
        "norm": toys.classification(),
        "language": toys.language_model(),
        "policy": toys.policy_gradient(),
        "masked": text_toys.masked_lm(),
        "spans": text_toys.spans(),
    }
    tasks["curve"] = lj.tasks.curve(tasks["norm"])
    for name, task in tasks.items():
        own = identity.of_task(task, FUNCTIONS, ("test",))
        own |= identity.of_optimizer(task, optax.adam(optax.linear_schedule(1, 0, 9)))
        own |= identity.of_data(task, lj.Where())
        found |= {f"{name} {field}": value for field, value in own.items()}
    return found


@functools.cache
def in_another_process(seed: int, devices: int) -> str:
    code = "import test_digests; print(test_digests.everything())"
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    more = {"PYTHONHASHSEED": str(seed), "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | more | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_digests_are_the_same_in_every_process_whatever_its_hash_seed_and_devices():
    first, second = in_another_process(1, 1), in_another_process(2, 2)
    assert first == second == str(everything())
