"""What in an optimizer's state follows from the number of updates alone.

A level that starts at step k has new moments and old schedules, and in optax both are
state. `clocks` follows the counters of a transformation through one `update`, whatever
wraps it, and takes them to where they stand after k of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters import partial_eval

from lottery_jax import trees
from lottery_jax.optimizers import settings
from lottery_jax.optimizers.states import Place, places
from lottery_jax.optimizers.updates import loss_arguments, update_with
from lottery_jax.types import Array, Params, PyTree


class Clocks(NamedTuple):
    """How the counters of a transformation go on, whatever the gradients are.

    Attributes:
      moved: positions of the leaves of the state that stand at a step.
      unknown: names of what cannot be known at a later step of a new state.
      after: `step -> leaves of the state`, of which those at `moved` count.
    """

    moved: tuple[int, ...]
    unknown: tuple[str, ...]
    after: Callable[[Array | int], list[Array]]


def clocks(tx: optax.GradientTransformation, shapes: PyTree) -> Clocks:
    """What of a state follows from the number of updates alone.

    A counter beside moments that is read only as their age (`1 - b ** count`, `count ==
    0`, a slot of a memory) is no clock: new moments are of age 0 wherever the schedule
    stands. A counter that a schedule reads, too, is one. Where only roots and powers of
    the counter are read, it may be either.

    Args:
      tx: the transformation.
      shapes: of params, from `trees.shapes_of`.
    """
    leaves, structure = jax.tree.flatten(shapes)
    made, values = settings.apart(tx)
    where = places(tx, shapes)
    found = _clocks(made, tuple(values), where, structure, tuple(leaves))
    moved, unknown, after = found
    return Clocks(moved, unknown, functools.partial(after, values))


@functools.lru_cache(maxsize=128)
def _clocks(
    made: Any,
    names: tuple[str, ...],
    where: tuple[Place, ...],
    structure: Any,
    leaves: tuple[Any, ...],
) -> tuple[tuple[int, ...], tuple[str, ...], Callable[..., list[Array]]]:
    """`clocks` of whatever values: what is called after takes them before the step."""
    values = settings.like(names)
    # Counters do not depend on the sizes of weights.
    small = jax.tree.unflatten(
        structure, [jax.ShapeDtypeStruct((1,) * len(x.shape), x.dtype) for x in leaves]
    )
    like, state_structure = jax.tree.flatten(
        jax.eval_shape(
            lambda values, p: settings.at(made, values).init(p), values, small
        )
    )

    def update(
        state: list[Array], values: PyTree, given: tuple[Params, Params, Array]
    ) -> list[Array]:
        gradients, params, value = given

        def loss(params: Params) -> Array:
            terms = jax.tree.map(jnp.vdot, gradients, params)
            return value + sum(jax.tree.leaves(terms))

        extra = loss_arguments(loss, value, gradients)
        whole = jax.tree.unflatten(state_structure, state)
        tx = settings.at(made, values)
        new = update_with(tx, gradients, whole, params, extra)[1]
        trees.same(new, whole, ("the state after an update", "the one before"))
        return jax.tree.leaves(new)

    given = (small, small, jax.ShapeDtypeStruct((), jnp.float32))
    closed = jax.make_jaxpr(update)(like, values, given)
    others = [i for i, place in enumerate(where) if place.kind == "other"]
    uses = _uses(closed, like, len(names), others)
    moved, unknown = [], []
    for i in others:
        place, found = where[i], uses[i]
        if found.data:
            if found.read and jnp.issubdtype(like[i].dtype, jnp.integer):
                unknown.append(place.name)
        elif found.fixed or like[i].dtype == bool:
            continue
        elif not place.beside:
            moved.append(i)
        elif jnp.issubdtype(like[i].dtype, jnp.floating):
            continue  # a sum over the steps that made the values beside it
        elif "power" in found.kinds and "time" not in found.kinds:
            unknown.append(place.name)
        elif found.phase or found.kinds != {"age"}:
            moved.append(i)
    linear = [i for i in others if uses[i].linear]
    looped = any(uses[i].recurs for i in others if i not in linear)

    clock = [not found.data for found in uses]
    reduced, used = partial_eval.dce_jaxpr(closed.jaxpr, clock)

    def once(values: PyTree, state: list[Array]) -> list[Array]:
        # Gradients are 0, so that they are finite; the counters see no more of them.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given)
        inputs = jax.tree.leaves((state, values, zeros))
        inside = [x for x, use in zip(inputs, used) if use]
        new = iter(jax.core.eval_jaxpr(reduced, closed.consts, *inside))
        return [next(new) if moves else x for moves, x in zip(clock, state)]

    def after(values: PyTree, step: Array | int) -> list[Array]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), small)
        begun = settings.at(made, values).init(zeros)
        first = [jnp.asarray(x) for x in jax.tree.leaves(begun)]
        if looped:
            return jax.lax.fori_loop(
                0, step, lambda _, state: once(values, state), first
            )
        # What counts one by one is there at once, and all else follows from it.
        last = list(first)
        for i in linear:
            last[i] = first[i] + jnp.maximum(jnp.asarray(step) - 1, 0).astype(
                like[i].dtype
            )
        return [jnp.where(step > 0, x, y) for x, y in zip(once(values, last), first)]

    return tuple(moved), tuple(unknown), after


class _Use(NamedTuple):
    """What becomes of one leaf of the state in an update.

    Attributes:
      data: its next value depends on gradients, weights or losses.
      fixed: it stays what it is, or becomes what does not depend on the state.
      linear: its next value is one more.
      phase: it begins again and again.
      recurs: its next value depends on the values of clocks other than linear ones.
      read: something other than its own next value depends on it.
      kinds: how it is read where it meets data: "age", "power" or "time".
    """

    data: bool
    fixed: bool
    linear: bool
    phase: bool
    recurs: bool
    read: bool
    kinds: set[str]


class _Value(NamedTuple):
    """What is known of a value inside an update.

    Attributes:
      kind: see `_Walk`.
      of: the leaves of the state that it depends on.
      number: if it is one that is known.
      plus: for "count", how much more than the leaf it is.
    """

    kind: str
    of: frozenset[int] = frozenset()
    number: float | None = None
    plus: int | None = None


_DATA = _Value("data")


def _uses(
    closed: ClosedJaxpr, like: list[Any], values: int, others: list[int]
) -> list[_Use]:
    """What becomes of each leaf; those that belong to weights are data."""
    variables = closed.jaxpr.invars[: len(like)]
    fixed = {i for i in others if closed.jaxpr.outvars[i] is variables[i]}
    clock, read = set(others) - fixed, set[int]()
    while True:
        walk = _Walk()
        inputs = []
        for i, x in enumerate(like):
            kind = "time"
            if x.dtype == bool:
                kind = "age"
            elif jnp.issubdtype(x.dtype, jnp.integer) and x.shape == ():
                kind = "count"
            known = _Value(kind, frozenset([i]), plus=0) if i in clock else _DATA
            inputs.append(_Value("const") if i in fixed else known)
        rest = [_Value("const")] * values
        rest += [_DATA] * (len(closed.jaxpr.invars) - len(like) - values)
        consts = [_Value("const", number=_number(x)) for x in closed.consts]
        outs = walk.jaxpr(closed.jaxpr, consts, inputs + rest)
        lost = {i for i in clock if outs[i].kind == "data"}
        read |= {i for i, kinds in walk.kinds.items() if kinds}
        read |= {i for j, out in enumerate(outs) for i in out.of if i != j}
        if not lost:
            break
        clock -= lost
    linear = {
        i
        for i in clock
        if outs[i].kind == "count" and outs[i].plus == 1 and outs[i].of == {i}
    }
    found = []
    for i, out in enumerate(outs):
        found.append(
            _Use(
                i not in clock | fixed,
                i in fixed or not out.of,
                i in linear,
                out.kind == "slot",
                not out.of <= linear,
                i in read,
                walk.kinds.get(i, set()),
            )
        )
    return found


def _number(x: Any) -> float | None:
    if np.shape(x) != () or trees.is_key(x):
        return None
    return float(np.asarray(x)) if np.asarray(x).dtype.kind in "biuf" else None


_SAME = {
    *("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy"),
    *("stop_gradient", "reduce_precision", "expand_dims", "copy_p", "pvary"),
}
_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}
_LOGIC = {"and", "or", "not", "xor"}
_ROOTS = {"pow", "sqrt", "rsqrt", "cbrt", "integer_pow", "square"}
_LOOPS = {"while", "scan"}
_INDEXED = {"dynamic_slice", "dynamic_update_slice", "gather", "scatter", "scatter-add"}


class _Walk:
    """One walk through an update, to see how it reads the counters of its state.

    Kinds of values: "const"; "count", a counter plus a constant; "scaled", a multiple of
    it; "slot", its remainder; "decay", `b ** count`; "power", a root or power of it;
    "age", what these make of moments that are new; "time", anything else that follows
    from counters; "data", what depends on gradients, weights or losses.
    """

    def __init__(self) -> None:
        self.kinds: dict[int, set[str]] = {}

    def jaxpr(
        self, jaxpr: Any, consts: list[_Value], args: list[_Value]
    ) -> list[_Value]:
        """The outputs of a program for its inputs."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

        def read(x: Any) -> _Value:
            if not isinstance(x, Literal):
                return known[x]
            return _Value("const", number=_number(x.val))

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(x) for x in eqn.invars])
            known.update(zip(eqn.outvars, outs))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[_Value]) -> list[_Value]:
        """The outputs of one operation."""
        name, params, number = eqn.primitive.name, eqn.params, len(eqn.outvars)
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name == "is_finite":
            return [_Value("const", number=1.0)]
        if name == "cond":
            return self.choice(params["branches"], ins)
        if inner is not None and name not in _LOOPS:
            consts = [_Value("const")] * len(getattr(inner, "consts", ()))
            return self.jaxpr(getattr(inner, "jaxpr", inner), consts, ins)
        if any(x.kind == "data" for x in ins):
            for position, x in enumerate(ins):
                index = name in _INDEXED and position > 0
                # What goes round and is handed to a loop is an index there.
                self.meets(x, index or name in _LOOPS and x.kind == "slot")
            return [_DATA] * number
        if number == 1:
            return [_combined(name, ins)]
        return [_Value("time", frozenset().union(*(x.of for x in ins)))] * number

    def choice(self, branches: Any, ins: list[_Value]) -> list[_Value]:
        """The outputs of a branch that a value chooses."""
        chooses, args = ins[0], ins[1:]
        outs = []
        for one in branches:
            consts = [_Value("const")] * len(one.consts)
            outs.append(self.jaxpr(one.jaxpr, consts, args))
        joined = [_combined("select_n", [chooses, *cases]) for cases in zip(*outs)]
        if any(x.kind == "data" for x in joined):
            self.meets(chooses, False)
        return joined

    def meets(self, x: _Value, index: bool) -> None:
        """Notes how counters are read where they meet data."""
        if x.kind in ("data", "const"):
            return
        kind = x.kind if x.kind in ("age", "power") else "time"
        if index and x.kind in ("count", "slot"):
            kind = "age"
        for leaf in x.of:
            self.kinds.setdefault(leaf, set()).add(kind)


def _combined(name: str, ins: list[_Value]) -> _Value:
    """The kind of what an operation makes of values."""
    kinds = [x.kind for x in ins]
    of = frozenset[int]().union(*(x.of for x in ins))
    some = {k for k in kinds if k != "const"}
    if "data" in some:
        return _DATA
    if not some:
        if name == "select_n" and ins[0].number is not None:
            return ins[1 + int(ins[0].number)]
        return ins[0] if name in _SAME else _Value("const")
    if name in _SAME:
        return ins[0]._replace(of=of)
    two = len(ins) == 2
    if name in ("add", "sub") and some == {"count"} and kinds[0] == "count" and two:
        return _shifted(ins[0], ins[1], of, 1 if name == "add" else -1)
    if name == "add" and kinds == ["const", "count"]:
        return _shifted(ins[1], ins[0], of, 1)
    if name in _COMPARE and two and "const" in kinds and some <= {"count", "slot"}:
        bound = next((x.number for x in ins if x.kind == "const"), None)
        if bound is not None and bound >= 2**31 - 2**8:
            # Counters stop at the largest number that there is; nobody trains as long.
            below = (name in ("lt", "le")) == (kinds[1] == "const")
            return _Value("const", number=float(below and name != "eq"))
        if some == {"slot"} or bound in (0.0, 1.0):
            return _Value("age", of)
        return _Value("time", of)
    if name == "select_n":
        return _selected(ins, of)
    if name in ("max", "min", "clamp") and some == {"count"}:
        return _Value("count", of)
    if name == "rem" and some == {"count"} and kinds[0] == "count":
        return _Value("slot", of)
    if some == {"slot"} and name in ("add", "sub", "rem", "sign"):
        return _Value("slot", of)
    if name in _LOGIC and some <= {"age", "slot"}:
        return _Value("age", of)
    if name == "pow" and kinds[0] in ("const", "time") and kinds[1] == "count":
        return _Value("decay", of)
    if name in _ROOTS and kinds[0] == "count" and some == {"count"}:
        return _Value("power", of)
    if name == "sub" and ins[0].number == 1.0 and some <= {"decay", "power"}:
        return _Value("age", of)
    if name in ("mul", "div", "neg"):
        if some == {"count"} and (name == "mul" or kinds[0] == "count"):
            return _Value("scaled", of)
        if (
            some == {"decay"}
            and "const" in kinds
            or some == {"decay"}
            and len(ins) == 1
        ):
            return _Value("decay", of)
        if name == "mul" and "decay" in some and some <= {"decay", "count", "scaled"}:
            return _Value("decay", of)
        if name == "div" and kinds == ["decay", "age"]:
            return _Value("age", of)
    if name in ("mul", "div") and some == {"power", "time"}:
        return _Value("power", of)  # a rate times a root that is not the schedule's
    if "power" in some and some <= {"power", "age"}:
        return _Value("power", of)
    if some == {"age"}:
        return _Value("age", of)
    return _Value("time", of)


def _shifted(count: _Value, by: _Value, of: frozenset[int], sign: int) -> _Value:
    plus = None
    if count.plus is not None and by.kind == "const" and by.number is not None:
        plus = count.plus + sign * int(by.number)
    return _Value("count", of, plus=plus)


def _selected(ins: list[_Value], of: frozenset[int]) -> _Value:
    """One of several values; the first of the inputs chooses."""
    chooses, cases = ins[0], ins[1:]
    if chooses.kind == "const":
        if chooses.number is not None and len(cases) > int(chooses.number):
            return cases[int(chooses.number)]
        if all(x == cases[0] for x in cases):
            return cases[0]
    kinds = {x.kind for x in cases} - {"const"}
    if chooses.kind not in ("const", "age") or len(kinds) > 1 or "data" in kinds:
        return _Value("time", of)
    kind = next(iter(kinds), chooses.kind)
    return _Value(kind, of)
