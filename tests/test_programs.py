"""The cache of programs: what counts as the same, and above all what does not."""

import collections
import dataclasses
import functools
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import toys

import lottery_jax as lj
from lottery_jax import connectivity, imp
from lottery_jax.execution import Execution
from lottery_jax.training import programs
from lottery_jax.training.programs import remembered, sameness


def same(make_a, make_b=None):
    """Whether two things count as the same, where each is made by a call of its own."""
    return sameness(make_a()) == sameness((make_b or make_a)())


# --- optimizers -----------------------------------------------------------------------


def schedules():
    return {
        "constant": lambda rate: rate,
        "cosine": lambda rate: optax.cosine_decay_schedule(rate, 100),
        "warm-up": lambda rate: optax.warmup_cosine_decay_schedule(0.0, rate, 10, 100),
        "piecewise": lambda rate: optax.piecewise_constant_schedule(rate, {50: 0.1}),
        "joined": lambda rate: optax.join_schedules(
            [optax.linear_schedule(0.0, rate, 10), optax.constant_schedule(rate)], [10]
        ),
    }


ALIASES = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw"),
    *("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw"),
    *("noisy_sgd", "novograd", "optimistic_adam_v2", "radam", "rmsprop", "rprop"),
    *("sgd", "sign_sgd", "sm3", "yogi"),
)
CONTRIB = ("ademamix", "muon", "prodigy", "schedule_free_adamw")
NEED = {"noisy_sgd": {"key": 0}, "optimistic_adam_v2": {}}
# These take numbers only.
NUMBERS_ONLY = {"rprop", "sm3", "schedule_free_adamw"}


def alias(name):
    module = optax.contrib if name in CONTRIB else optax
    if not hasattr(module, name):
        pytest.skip(f"this optax has no {name}")
    return functools.partial(getattr(module, name), **NEED.get(name, {}))


@pytest.mark.parametrize("name", ALIASES + CONTRIB)
def test_equal_calls_of_an_optimizer_are_equal_and_others_are_not(name):
    make = alias(name)
    for kind, schedule in schedules().items():
        if kind != "constant" and name in NUMBERS_ONLY:
            continue
        one = sameness(make(schedule(0.1)))
        assert one == sameness(make(schedule(0.1))), kind
        assert one != sameness(make(schedule(0.2))), kind
        # The last bit of a rate is another program.
        assert one != sameness(make(schedule(math.nextafter(0.1, 1)))), kind
    assert hash(sameness(make(0.1))) == hash(sameness(make(0.1)))


def test_no_hyperparameter_is_overlooked():
    variants = [
        lambda: optax.adam(0.1),
        lambda: optax.adam(0.1, b1=0.8),
        lambda: optax.adam(0.1, b2=0.99),
        lambda: optax.adam(0.1, eps=1e-7),
        lambda: optax.adam(0.1, eps_root=1e-9),
        lambda: optax.adam(0.1, mu_dtype=jnp.bfloat16),
        lambda: optax.adam(0.1, nesterov=True),
        lambda: optax.adamw(0.1),
        lambda: optax.adamw(0.1, weight_decay=0.1),
        lambda: optax.adamw(0.1, mask={"a": True}),
        lambda: optax.adamw(0.1, mask={"a": False}),
        lambda: optax.sgd(0.1),
        lambda: optax.sgd(0.1, momentum=0.0),
        lambda: optax.sgd(0.1, momentum=0.9),
        lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
        lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)),
        lambda: optax.chain(optax.clip(2.0), optax.sgd(0.1)),
        lambda: optax.chain(optax.sgd(0.1), optax.clip(1.0)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1)),
        lambda: optax.inject_hyperparams(optax.sgd)(0.1),
        lambda: optax.inject_hyperparams(optax.sgd)(0.2),
        lambda: optax.sgd(optax.piecewise_constant_schedule(0.1, {50: 0.1})),
        lambda: optax.sgd(optax.piecewise_constant_schedule(0.1, {60: 0.1})),
        lambda: optax.sgd(optax.piecewise_constant_schedule(0.1, {50: 0.2})),
        lambda: lj.transforms.masked(optax.sgd(0.1)),
        lambda: lj.transforms.masked(optax.sgd(0.1), anchor="frozen"),
    ]
    found = [sameness(make()) for make in variants]
    for i, a in enumerate(found):
        assert [j for j, b in enumerate(found) if a == b] == [i]
    assert found == [sameness(make()) for make in variants]


# --- what must be equal ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """A frozen dataclass whose methods are passed on."""

    width: int
    scale: float = 1.0
    names: tuple[str, ...] = ("a",)

    def double(self, x):
        return x * self.scale * self.width


@dataclasses.dataclass
class More:
    """Not frozen."""

    width: int

    def double(self, x):
        return 2 * x * self.width


def closure(value):
    return lambda x: x * value


def recursive(value):
    def down(n):
        return value if n == 0 else down(n - 1)

    return down


def mutual(value):
    def even(n):
        return value if n == 0 else odd(n - 1)

    def odd(n):
        return -value if n == 0 else even(n - 1)

    return even


def default(value):
    return lambda x, y=value: x * y


def keyword(value):
    def named(x, *, y=value):
        return x * y

    return named


def times(a, b):
    return a * b


class Net(nn.Module):
    """A module with every kind of field."""

    width: int = 3
    act: object = nn.relu
    table: dict = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x):
        return self.act(nn.Dense(self.width)(x))


# Each makes something from a value.
MAKERS = {
    "closure": closure,
    "closure in a closure": lambda v: closure(closure(v)),
    "recursion": recursive,
    "mutual recursion": mutual,
    "default": default,
    "keyword default": keyword,
    "partial": lambda v: functools.partial(times, v),
    "partial by name": lambda v: functools.partial(times, b=v),
    "bound method": lambda v: Settings(v).double,
    "method of one that may change": lambda v: More(v).double,
    "method of a nested dataclass": lambda v: Settings(1, Settings(v)).double,
    "jitted": lambda v: jax.jit(closure(v)),
    "in a dict": lambda v: closure({"rate": v, "other": [1, 2]}),
    "in a list": lambda v: closure([v, (v, "x")]),
    "in a set": lambda v: closure({v, "x"}),
    "in a named tuple": lambda v: closure(optax.ScaleByScheduleState(v)),
    "module": lambda v: Net(v),
    "module with a function": lambda v: Net(3, closure(v)),
    "module with a dict": lambda v: Net(table={"a": v}),
    "method of a module": lambda v: Net(v).apply,
}
PAIRS = [(1, 2), (0.1, 0.2), (1, 1.0), (1, True), (0.0, -0.0), ("a", b"a")]


@pytest.mark.parametrize("name", MAKERS)
def test_made_again_is_the_same_and_from_other_values_is_not(name):
    make = MAKERS[name]
    for a, b in PAIRS:
        assert same(lambda a=a: make(a)), a
        assert same(lambda b=b: make(b)), b
        assert not same(lambda a=a: make(a), lambda b=b: make(b)), (a, b)
    assert hash(sameness(make(1))) == hash(sameness(make(1)))


def test_nan_is_nan():
    assert same(lambda: closure(float("nan")))
    assert same(lambda: closure(np.float32("nan")))


ARRAYS = [
    lambda: np.arange(3),
    lambda: np.arange(3.0),
    lambda: np.arange(3, dtype=np.int32),
    lambda: np.arange(3).reshape(1, 3),
    lambda: np.arange(4),
    lambda: np.array([0.0, 1.0, -0.0]),
    lambda: np.array([0.0, 1.0, 0.0]),
    lambda: np.array([0.0, 1.0, np.nan]),
    lambda: np.float32(1),
    lambda: np.float64(1),
    lambda: np.array(1.0, np.float32),
    lambda: np.int32(1),
    lambda: np.bool_(True),
    lambda: 1,
    lambda: 1.0,
    lambda: True,
    lambda: 1 + 0j,
    lambda: jnp.float32(1),
    # Weak: the product with a bfloat16 array has another dtype.
    lambda: jnp.asarray(1.0),
    lambda: jnp.arange(3),
    lambda: jax.random.key(0),
    lambda: jax.random.key(1),
    lambda: jax.random.key(0, impl="rbg"),
    lambda: jax.random.PRNGKey(0),
    lambda: np.ma.masked_array([1.0], [True]),
    lambda: np.array([None, 1], object),
]


def test_arrays_and_numbers_are_compared_by_all_that_matters():
    kept = [(make(), make()) for make in ARRAYS]  # alive: ids are not used again
    found = [(sameness(closure(a)), sameness(closure(b))) for a, b in kept]
    for i, (a, again) in enumerate(found):
        # Of an array of objects, or of a kind of its own, nothing is known.
        assert (a == again) == (i < len(ARRAYS) - 2)
        for j, (b, _) in enumerate(found):
            assert (a == b) == (i == j), (kept[i], kept[j])


# --- what must not be equal -----------------------------------------------------------


class Agreeable:
    """Says that it equals everything."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0

    def method(self, x):
        return x * self.value


class Int(int):
    """A number with something more to it."""


class Kept(Settings):
    """No dataclass itself; keeps more than its fields."""

    def __init__(self, width, extra):
        super().__init__(width)
        object.__setattr__(self, "extra", extra)


@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
    """Keeps what is no field."""

    start: dataclasses.InitVar[int]

    def __post_init__(self, start):
        object.__setattr__(self, "value", start)


@dataclasses.dataclass(frozen=True)
class Careless:
    """Compares less than it has."""

    value: int
    hidden: int = dataclasses.field(compare=False, default=0)


class Slotted:
    """Without a dict."""

    __slots__ = ("value",)


@dataclasses.dataclass
class SlottedField(Slotted):
    """With fields, above one that has slots."""

    other: int = 0


def slotted(value):
    made = SlottedField()
    made.value = value
    return made


def extended(value):
    number = Int(3)
    number.value = value
    return number


def attributed(value):
    def function(x):
        return x * function.value

    function.value = value
    return function


def class_in_a_loop(value):
    class Own:
        def __call__(self, x):
            return x * value

    return Own()


def dataclass_in_a_loop(value):
    @dataclasses.dataclass(frozen=True)
    class Own:
        width: int = 1

        def double(self, x):
            return x * value

    return Own().double


FOREIGN = {
    "a foreign ==": lambda v: closure(Agreeable(v)),
    "a method of it": lambda v: Agreeable(v).method,
    "in a partial": lambda v: functools.partial(times, Agreeable(v)),
    "as a default": lambda v: default(Agreeable(v)),
    "in a dataclass": lambda v: Settings(1, Agreeable(v)).double,
    "a subclass of int": lambda v: closure(extended(v)),
    "more than fields": lambda v: closure(Kept(1, v)),
    "an InitVar": lambda v: closure(Derived(v)),
    "a field that == leaves out": lambda v: closure(Careless(1, v)),
    "slots": lambda v: closure(slotted(v)),
    "an attribute of a function": attributed,
    "a class in a loop": class_in_a_loop,
    "a dataclass in a loop": dataclass_in_a_loop,
    "an iterator": lambda v: closure(iter([v])),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_in_doubt_it_is_a_miss(name):
    a, b = FOREIGN[name](1), FOREIGN[name](2)
    assert sameness(a) != sameness(b)
    assert sameness(a) == sameness(a)


def test_the_order_of_a_dict_is_part_of_it():
    assert not same(
        lambda: closure({"a": 1, "b": 2}), lambda: closure({"b": 2, "a": 1})
    )


def test_the_same_code_in_another_cell_or_namespace():
    source = "def f(x):\n    return x * scale\n"

    def defined(scale):
        namespace = {"scale": scale}
        exec(compile(source, "a cell", "exec"), namespace)
        return namespace["f"]

    assert not same(lambda: defined(1), lambda: defined(2))
    # A notebook: a global is changed, and the cell is run again.
    namespace = {"scale": 1}
    exec(compile(source, "a cell", "exec"), namespace)
    first, before = namespace["f"], sameness(namespace["f"])
    exec(compile(source, "a cell", "exec"), namespace)
    assert sameness(namespace["f"]) == before
    namespace["scale"] = 2
    exec(compile(source, "a cell", "exec"), namespace)
    assert namespace["f"].__code__ == first.__code__
    assert sameness(namespace["f"]) != before


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return g(x)\ndef g(x):\n    return x * scale\n",
        "def f(x):\n    return (lambda y: y * scale)(x)\n",
        "def f(x):\n    return Own().m(x)\nclass Own:\n    def m(self, x):\n"
        "        return x * scale\n",
        "def f(x):\n    return mine.scale * x\n",
    ],
    ids=["through a helper", "in a lambda", "in a class", "in a module"],
)
def test_a_global_is_seen_wherever_it_is_read(source):
    mine = types.ModuleType("mine")
    namespace = {"scale": 1, "mine": mine, "__name__": "nowhere"}
    mine.scale = 1
    exec(source, namespace)
    before = sameness(namespace["f"])
    assert sameness(namespace["f"]) == before
    namespace["scale"] = mine.scale = 2
    assert sameness(namespace["f"]) != before


def test_recursion_is_told_from_a_call_of_another():
    def link(target):
        def g(n):
            return target["of"](n)

        return g

    to_itself, to_another, back = {}, {}, {}
    a = link(to_itself)
    to_itself["of"] = a
    b, c = link(to_another), link(back)
    to_another["of"], back["of"] = closure(c), b
    # Walked from the other side first, nothing that is remembered may be mistaken.
    assert sameness((c, b)) == sameness((c, b))
    assert len({hash(sameness(x)) for x in (a, b, c)}) >= 2
    assert sameness(a) != sameness(b) != sameness(c) != sameness(a)


# --- programs -------------------------------------------------------------------------


def _scaled(function):
    return jax.jit(lambda x: function(x))


def test_what_was_made_is_found_again_and_right():
    one = programs.program(_scaled, closure(2.0))
    assert programs.program(_scaled, closure(2.0)) is one
    other = programs.program(_scaled, closure(3.0))
    assert (float(one(1.0)), float(other(1.0))) == (2.0, 3.0)


def test_a_function_stays_itself_while_it_counts():
    calls = []

    def counted(x):
        calls.append(x)
        return x

    first = programs.program(_scaled, counted)
    first(1.0)
    assert calls and programs.program(_scaled, counted) is first


def test_what_was_changed_since_is_not_given_to_another():
    rate = {"of": 2.0}
    old = closure_over(rate)
    one = programs.program(_scaled, old)
    rate["of"] = 3.0
    # Nobody called it yet: it would be traced with the new rate.
    new = programs.program(_scaled, closure_over({"of": 2.0}))
    assert new is not one
    assert float(new(1.0)) == 2.0


def closure_over(rate):
    return lambda x: x * rate["of"]


def test_the_oldest_make_room():
    made = [remembered(lambda i: [i], i) for i in range(2)]
    assert made == [[0], [1]]
    for i in range(2 * programs._MOST):
        remembered(_listed, i)
    assert len(programs._made) <= programs._MOST
    assert remembered(_listed, 0) == [0]


def _listed(i):
    return [i]


# --- studies --------------------------------------------------------------------------


class Compilations:
    """Counts what XLA compiles while it is entered."""

    def __enter__(self):
        self.number = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def _heard(self, event, seconds, **_):
        self.number += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._heard)


@pytest.fixture
def empty(monkeypatch):
    """A cache of its own: what is compiled quickly here is found nowhere else."""
    monkeypatch.setattr(programs, "_made", collections.OrderedDict())
    with quick.compilation():
        yield


def study():
    task = toys.classification(lj.models.make("mlp-6", 4))
    plan = imp.Plan(steps=4, validate_every=2, arms=("ticket", "random_mask"))
    where = lj.Where(Execution(1, 1))
    return imp.run(task, optax.sgd(0.05), plan, levels=1, replicas=(0, 1), where=where)


def test_a_second_study_compiles_nothing(empty):
    with Compilations() as first:
        found = study()
    assert first.number > 0
    with Compilations() as again:
        toys.assert_same_records(study().records, found.records)
    assert again.number == 0


@pytest.mark.slow
def test_training_that_differs_in_anything_is_another_program(empty):
    def losses(rate=0.05, width=6, tx=optax.sgd, **options):
        task = toys.classification(lj.models.make(f"mlp-{width}", 4), **options)
        where = lj.Where(Execution(1, 1))
        done = lj.train(task, tx(rate), 4, replicas=2, where=where)
        return done.curves.values["train_loss"]

    found = losses()
    with Compilations() as again:
        np.testing.assert_array_equal(losses(), found)
    assert again.number == 0
    for options in (
        {"rate": 0.1},
        {"tx": optax.lion},
        {"width": 7},
        {"batch_size": 30},
    ):
        with Compilations() as other:
            assert (losses(**options) != found).any(), options
        assert other.number > 0, options


@pytest.mark.slow
def test_a_second_analysis_compiles_nothing(empty):
    def analysis():
        task = toys.classification(lj.models.make("mlp-6", 4))
        plan = connectivity.Plan(
            steps=4,
            rewind_steps=(0, 2),
            branches=2,
            alphas=3,
            schedules=("continued", "restarted"),
        )
        return connectivity.run(
            task, optax.adam(0.01), plan, replicas=(0,), where=lj.Where(Execution(1, 1))
        )

    first = analysis()
    with Compilations() as again:
        second = analysis()
    assert again.number == 0
    toys.assert_same_records(second.records, first.records)


def images(augment, mean=(0.0,)):
    rng = np.random.default_rng(0)
    arrays = {
        name: {
            "image": rng.normal(size=(20, 4, 4, 1)).astype(np.float32),
            "label": rng.integers(0, 4, 20).astype(np.int32),
        }
        for name in ("train", "validation", "test")
    }
    data = lj.data.Dataset(arrays, 4, (4, 4, 1), mean, (1.0,), "noise")
    model = lj.models.make("mlp-5", 4)
    return lj.tasks.classification(data, model, batch_size=10, augment=augment)


def test_another_augmentation_or_normalisation_is_another_task():
    makers = [
        lambda: images(()),
        lambda: images(("flip",)),
        lambda: images(("crop",)),
        lambda: images(("flip", "crop")),
        lambda: images((), mean=(0.5,)),
        lambda: toys.classification(batch_size=32),
        lambda: toys.classification(batch_size=30),
        lambda: toys.classification(evaluation_batch=20),
        lambda: toys.classification(exclude=("head",)),
        lambda: toys.classification(toys.NormNet(width=11)),
        lambda: toys.language_model(dropout=0.1),
        lambda: toys.language_model(dropout=0.2),
        lambda: toys.policy_gradient(),
        lambda: toys.fragile(),
    ]
    found = [sameness(make().functions) for make in makers]
    assert len(set(found)) == len(found)
    again = [sameness(make().functions) for make in makers]
    assert [a == b for a, b in zip(found, again)] == [True] * len(found)
