"""A device that is full, in everything that trains, draws, prunes, evaluates or compares.

Scenarios are small but whole: a study, retraining, an analysis, and so on. Which programs
of many replicas one of them calls is seen while it runs; then each of these programs in
turn is called on a device that has no room for more than one replica at once.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import pathlib
import warnings

import jax
import numpy as np
import optax
import pytest
import toys
from examples_read import streamed

import lottery_jax as lj
from lottery_jax import (
    connectivity,
    dynamic,
    imp,
    keys,
    models,
    pretrained,
    probes,
    training,
    trees,
)
from lottery_jax.connectivity import Measure, analysis, distances
from lottery_jax.execution import Execution, Where
from lottery_jax.execution.memory import at_once
from lottery_jax.imp import levels
from lottery_jax.training import programs, segment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

ROOT = pathlib.Path(__file__).resolve().parent.parent

FULL = toys.FULL

ALL, ONE = Execution(1, 0), Execution(1, 1)


# --- the device -----------------------------------------------------------------------


class Device:
    """Sees all calls of programs; has room for `most` rows at once of one of them.

    Attributes:
      full_in: what builds that program; None if there is room for all.
      calls: (builder, rows at once) of each call.
    """

    def __init__(self, full_in=None, most=1):
        self.full_in, self.most, self.calls = full_in, most, []

    @property
    def failed(self):
        """How many rows were to run at once in the calls that failed."""
        return [n for b, n in self.calls if b is self.full_in and n > self.most]


class Called:
    """A program on such a device."""

    def __init__(self, made, build, execution, device):
        self.made, self.build = made, build
        self.execution, self.device = execution, device
        self.ahead, self.lower = made.ahead, made.lower

    def __call__(self, *args):
        # The last array that there is has a replica axis.
        rows = next(len(x) for x in reversed(jax.tree.leaves(args)) if np.ndim(x))
        number = at_once(self.execution, rows)
        self.device.calls.append((self.build, number))
        if self.build is self.device.full_in and number > self.device.most:
            raise FULL
        return self.made(*args)


@contextlib.contextmanager
def on(device):
    """Calls all programs on a device; they are compiled once for all of them."""
    remembered = programs.remembered

    def on_device(make, *parts):
        made = remembered(make, *parts)
        if make is not programs._build:
            return made
        build, *rest = parts
        (execution,) = (x for x in rest if isinstance(x, Execution))
        return Called(made, build, execution, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "remembered", on_device)
        yield device


def named(build):
    return f"{build.__module__}.{build.__qualname__}"


def moves_only(build):
    """Whether a program computes nothing of networks, so that fewer would not help."""
    return build.__name__ in ("_take", "_orders")


# --- scenarios ------------------------------------------------------------------------

# Wherever they can, all train and test as many rows, so that they share programs.

TX = optax.sgd(0.05, momentum=0.9)

PLAN = imp.Plan(
    steps=6,
    rewind_step=3,
    chains=(
        imp.Chain("magnitude"),
        imp.Chain("gradient", score="snip", scope="layerwise"),
        imp.Chain("random", score="random", retrain="lr_rewind"),
        imp.Chain("one_shot", one_shot=True, retrain="finetune"),
    ),
    arms=tuple(arm.name for arm in imp.arms.ARMS),
    validate_every=3,
    level_optimizer="rewind",
)


@functools.cache
def task():
    return toys.classification()._replace(narrow=toys.narrow)


def study(where):
    found = imp.run(task(), TX, PLAN, levels=1, replicas=(0,), where=where)
    return found.records, found.execution, found.changes


@functools.cache
def tickets():
    return imp.tickets_of(
        imp.run(task(), TX, PLAN, levels=1, replicas=(0,), where=Where(ONE))
    )


def retraining(where):
    chains = tuple(imp.Chain(chain.name) for chain in PLAN.chains)
    plan = dataclasses.replace(PLAN, chains=chains, rewind_step=0)
    given, at = tickets(), dict(level=1, replicas=(0,), where=where)
    found = imp.retrain(task(), TX, plan, given, dense=given, **at)
    return found.records, found.execution, found.changes


def instability(where):
    plan = analysis.Plan(
        steps=6,
        rewind_steps=(0, 3),
        branches=3,
        batch_norm=("recompute", "interpolate"),
        alphas=3,
        statistics_batches=2,
        schedules=("continued", "restarted"),
        every=3,
    )
    found = analysis.run(task(), TX, plan, replicas=(0, 1), where=where)
    return found.records, found.execution, ()


def pruned_on_the_way(where):
    rule = dynamic.rigl(0.5, 4, every=2)
    done = lj.train(
        task(), TX, 6, 2, validate_every=3, keep=(3,), rule=rule, where=where
    )
    found = (done.networks, done.curves.values, done.best.loss)
    return found, done.execution, done.changes


@functools.cache
def away():
    return streamed(task())


def read_in_windows(where):
    where = dataclasses.replace(where, window=2)
    done = lj.train(away(), TX, 6, 2, validate_every=3, where=where)
    how = Measure(4, "recompute", statistics_batches=2)
    path = connectivity.paths(
        away(), trees.host(done.networks), [(0, 1)], how, where=where
    )
    found = (done.networks, done.curves.values, done.best.loss, path.values)
    return found, where.room.within(where.execution), done.changes


def measured(where):
    own = keys.of_replicas(0, range(24))
    runs = training.fresh(task(), TX, own.init, own.noise, where=where)
    networks = trees.host(runs.state.network)
    a, b, c = (trees.rows(networks, i) for i in range(3))
    how = Measure(4, "recompute", statistics_batches=2)
    curve = connectivity.error_along_curve(
        task(), a, b, (c.params,), how, kind="bezier", where=where
    )
    path = connectivity.paths(
        task(),
        networks,
        [(0, 1), (1, 2)],
        how,
        masks=jax.tree.map(lambda x: x > -0.5, networks.params),
        projection="intersection",
        where=where,
    )
    found = {
        "plane": connectivity.plane(task(), a, b, c, how, size=2, where=where).values,
        "curve": curve.values,
        "path": path.values,
        "test": training.evaluate(task(), networks, "test", where=where),
        "classes": distances.predictions(task(), networks, where=where),
    }
    return found, where.room.within(where.execution), ()


def pruned_at_init(where):
    found = imp.prune_at_init(task(), "synflow", (0.5, 0.2), replicas=2, where=where)
    return found[:2], where.room.within(where.execution), ()


def given(where):
    params, *_ = trees.host(task().init(jax.random.key(0)))
    body = {name: leaf for name, leaf in params.items() if name != "head"}
    found = pretrained.Pretrained(models.BertShape(), body, ROOT, (), (), "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* drawn afresh")
        start = pretrained.start(found, task(), replicas=3, where=where)
    return start, where.room.within(where.execution), ()


def probed(where):
    dataset = toys.pictures()
    model = models.ResNet(4, (1,), 2)

    def init(key):
        made = dict(model.init(key, np.zeros((1, *dataset.shape), np.float32)))
        return lj.Network(made.pop("params"), made)

    networks = trees.host(jax.vmap(init)(keys.of_replicas(0, range(3)).init))
    train, test = (
        probes.features(
            model, networks, dataset.arrays[s]["image"], dataset, where=where
        )
        for s in ("train", "test")
    )
    labels = [dataset.arrays[split]["label"] for split in ("train", "test")]
    given = (train, labels[0], test, labels[1])
    found = {
        "nearest": probes.nearest(*given, neighbours=5, where=where),
        "linear": probes.linear(*given, steps=5, where=where),
        "features": test,
    }
    return found, where.room.within(where.execution), ()


SCENARIOS = (
    study,
    retraining,
    instability,
    pruned_on_the_way,
    read_in_windows,
    measured,
    pruned_at_init,
    given,
    probed,
)


@functools.cache
def alone(scenario):
    """What a scenario finds one replica at a time, and the programs that it calls."""
    tickets()
    with on(Device()) as device:
        found, *_ = scenario(Where(ONE))
    return found, tuple(dict.fromkeys(build for build, _ in device.calls))


def assert_same(found, expected, message):
    """The same but for rounding; what is no number is the same."""
    assert jax.tree.structure(found) == jax.tree.structure(expected), message
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        if isinstance(x, str) or x.dtype.kind in "US":
            assert np.array_equal(x, y), message
        else:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3, err_msg=message)


# --- the battery ----------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_every_program_survives_a_full_device(scenario):
    expected, builds = alone(scenario)
    for build in builds:
        if moves_only(build):
            continue
        seen = []
        with warnings.catch_warnings(record=True) as said, on(Device(build)) as device:
            warnings.simplefilter("always")
            where = Where(ALL, watch=seen.append)
            found, execution, changes = scenario(where)
        message = named(build)
        assert_same(found, expected, message)
        # Said once, and nothing that follows fails again.
        assert device.failed == sorted(set(device.failed), reverse=True) != [], message
        (warning,) = (
            str(one.message) for one in said if one.category is RuntimeWarning
        )
        assert warning.startswith("a device ran out of memory in "), message
        assert warning.endswith("; went on from there with chunk=1"), message
        # Written down wherever something is.
        assert execution == ONE, message
        assert all(change.execution == ONE for change in changes), message
        if scenario in (study, retraining):
            assert len(changes) == 1, message
        # Each stage begins at its start.
        for stage in dict.fromkeys(one.stage for one in seen):
            first = next(one for one in seen if one.stage == stage)
            assert first.done == first.start < first.total, (message, stage)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_where_not_even_one_fits_every_program_says_so(scenario):
    for build in alone(scenario)[1]:
        whole = "lie there as a whole; use fewer replicas"
        match = whole if moves_only(build) else "with one replica at a time; use fewer"
        with (
            pytest.raises(MemoryError, match=match),
            on(Device(build, most=0)),
        ):
            scenario(Where(ONE))
            pytest.fail(f"{named(build)} was not called")


@pytest.mark.parametrize(
    ("build", "moment"),
    [
        (levels._init, (0, 0)),
        (segment.train_rows, (0, 0)),
        (levels._layer_counts, (0, 6)),
        (training.measured.tested, (0, 6)),
        (levels._cut, (1, 0)),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_study_records_when_it_went_on_with_fewer(build, moment):
    with pytest.warns(RuntimeWarning, match="chunk=1"), on(Device(build)):
        *_, changes = study(Where(ALL))
    assert changes == (imp.Change(*moment, ONE),)


def test_what_was_recorded_between_levels_survives_a_kill(tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.level == 1 and progress.done == 6:
            raise Killed

    with (
        pytest.warns(RuntimeWarning, match="in pruning to level 1; .* chunk=1"),
        pytest.raises(Killed),
        on(Device(levels._cut)),
    ):
        # The first checkpoint within the level needs the moment before it.
        study(Where(ALL, tmp_path, checkpoint_seconds=0, watch=kill))
    found, execution, changes = study(Where(None, tmp_path))
    assert execution == ONE
    assert changes == (imp.Change(1, 0, ONE),)
    assert_same(found, alone(study)[0], "resumed")


# --- that nothing is left out ---------------------------------------------------------


def sources():
    return sorted(
        path
        for folder in ("lottery_jax", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    )


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.args


def test_every_program_of_the_package_is_in_a_scenario():
    built = set()
    for path in sources():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for function, args in calls(path):
            if function not in ("program", "training.program", "programs.program"):
                continue
            first = args[0]
            if ast.unparse(first) == "*args":
                continue  # a call of one
            if isinstance(first, ast.Starred):
                first = first.value.elts[0]
            build = importlib.import_module(module)
            for name in ast.unparse(first).split("."):
                build = getattr(build, name)
            built.add(build)
    assert len(built) > 10
    called = {build for scenario in SCENARIOS for build in alone(scenario)[1]}
    missing = sorted(map(named, built - called))
    assert not missing, f"no scenario of this file calls {missing}"


def test_programs_of_many_replicas_are_compiled_in_one_place():
    found = {
        str(path.relative_to(ROOT))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("jax.jit", "jax.pmap")
    }
    assert found == {
        "lottery_jax/execution/replicas.py",  # `Execution.parallel`
        "lottery_jax/training/rows.py",  # moves rows from place to place
        "lottery_jax/training/programs.py",  # asks whether something is jitted
        "lottery_jax/convolution/primitives.py",  # one convolution
        "lottery_jax/keys.py",  # draws keys
        "lottery_jax/selection.py",  # one mask, so that eager calls compile once
        "lottery_jax/strong/choices.py",  # adds up subsets, of no network
    }
