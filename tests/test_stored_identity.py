"""No folder continues or returns anything of another task, data, optimizer or start."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import connectivity, dynamic, imp, keys, masks, prune, training
from lottery_jax.connectivity import Measure
from lottery_jax.data import Dataset
from lottery_jax.training import identity
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ONE = lj.Execution(1, 0)


class Net(nn.Module):
    """A layer, a norm and a head; `act` changes no shape."""

    act: Callable[..., Any] = jax.nn.relu

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = nn.Dense(5, name="hidden")(x.reshape(x.shape[0], -1))
        x = lj.models.BatchNorm(name="norm")(x, train, weights)
        return nn.Dense(4, name="head")(self.act(x))


def dataset(mean=0.0) -> Dataset:
    """Toy points as images of 2 x 2 pixels and 2 channels."""
    toy = toys.dataset()
    arrays = {
        split: {"image": a["image"].reshape(-1, 2, 2, 2), "label": a["label"].copy()}
        for split, a in toy.arrays.items()
    }
    return Dataset(arrays, 4, (2, 2, 2), (mean, 0.0), (1.0, 1.0), "toy images")


def task(act=jax.nn.relu, mean=0.0, **options):
    options = {"batch_size": 50, "evaluation_batch": 20} | options
    return lj.tasks.classification(dataset(mean), Net(act), **options)


def decayed(task):
    def loss(params, *rest):
        value, aux = task.loss(params, *rest)
        return value + 1e-4 * jnp.sum(params["head"]["kernel"] ** 2), aux

    return task._replace(loss=loss)


def halved(task):
    def evaluate(*args):
        return jax.tree.map(lambda x: x / 2, task.evaluate(*args))

    return task._replace(evaluate=evaluate)


def relabelled(task, split):
    data = jax.tree.map(np.copy, task.data)
    data[split]["label"][3] ^= 1
    return task._replace(data=data)


def sgd(rate=0.1, momentum=0.9):
    return optax.sgd(optax.cosine_decay_schedule(rate, 4), momentum=momentum)


def by_position(key, step, params, gradients, mask):
    return prune.global_topk(jax.tree.map(jnp.ones_like, params), mask, fraction=0.5)


class Parts(NamedTuple):
    """All that the numbers of a folder follow from; made anew by each call of `parts`."""

    task: Any
    tx: Any
    rule: Any
    score: Any
    start: Any
    seed: int


def scored(power=1.0):
    """The same name and code for every power."""
    return lambda key, inputs: jax.tree.map(lambda x: jnp.abs(x**power), inputs.trained)


def fresh(task, number, seed=0):
    draw = jax.vmap(lambda key: Network(*task.init(key)[:2]))
    return lj.trees.host(draw(jax.random.split(jax.random.key(seed), number)))


def parts(**changes) -> Parts:
    rule = dynamic.gradual_magnitude(0.5, 0, 2, 2)
    made = {"task": task(), "tx": sgd(), "rule": rule, "score": scored(), "seed": 0}
    made["start"] = fresh(made["task"], 3)
    return Parts(**made | changes)


def moved(networks):
    return jax.tree.map(lambda x: x + 1, networks)


def with_a_start():
    def start(key, params, mask):
        return by_position(key, 0, params, params, mask)

    return parts().rule._replace(start=start, on=None)


def other_rule():
    return parts().rule._replace(update=by_position, on=None)


CHANGES = {
    "activation": ("task.loss|task.evaluate on", lambda: parts(task=task(jax.nn.tanh))),
    "augmentation": ("task.batch", lambda: parts(task=task(augment=("flip",)))),
    "batch size": ("task.order", lambda: parts(task=task(batch_size=75))),
    "normalisation": ("task.batch", lambda: parts(task=task(mean=0.1))),
    "decay in the loss": ("task.loss", lambda: parts(task=decayed(task()))),
    "evaluation": ("task.evaluate on '\\w+'", lambda: parts(task=halved(task()))),
    "training data": ("data", lambda: parts(task=relabelled(task(), "train"))),
    "test data": ("data", lambda: parts(task=relabelled(task(), "test"))),
    "learning rate": ("optimizer", lambda: parts(tx=sgd(0.2))),
    "schedule": ("optimizer", lambda: parts(tx=optax.sgd(0.1, momentum=0.9))),
    "momentum": ("optimizer", lambda: parts(tx=sgd(momentum=0.8))),
    "wrapper": (
        "optimizer",
        lambda: parts(tx=optax.chain(optax.clip_by_global_norm(1.0), sgd())),
    ),
    "rule": ("rule.update", lambda: parts(rule=other_rule())),
    "start of the rule": ("rule.start", lambda: parts(rule=with_a_start())),
    "score": ("plan.imp.score", lambda: parts(score=scored(2.0))),
    "exclude": ("task.exclude=", lambda: parts(task=task(exclude=("head/",)))),
    "prunable": (
        "task.prunable=",
        lambda: parts(
            task=task(prunable=lambda p: masks.prunable(p, include=("hidden",)))
        ),
    ),
    "start": ("start|networks", lambda: parts(start=moved(parts().start))),
    "seed": ("plan.seed=|start.params|noise", lambda: parts(seed=1)),
}
"""What is changed, and the field that the refusal must name."""

TRAINING = ("activation", "augmentation", "batch size", "normalisation")
TRAINING += ("decay in the loss", "evaluation", "training data", "test data")
TRAINING += ("learning rate", "schedule", "momentum", "wrapper")
SOME = ("activation", "training data", "learning rate")
"""For doors that are another one's, with starts of their own."""
POINTS = ("activation", "normalisation", "augmentation", "evaluation", "test data")
POINTS += ("training data", "start")


# --- the doors ------------------------------------------------------------------------


def by_study(p: Parts, where):
    plan = imp.Plan(
        4, chains=(imp.Chain(score=p.score),), validate_every=4, seed=p.seed
    )
    start = lj.trees.rows(p.start, 0)
    options = dict(levels=1, replicas=(0, 1), start=start, where=where)
    return imp.run(p.task, p.tx, plan, **options).records


def by_training(p: Parts, where):
    own = keys.of_replicas(p.seed, (0, 1, 2))
    runs = training.fresh(p.task, p.tx, own.init, own.noise, where=where)
    state = runs.state._replace(params=p.start.params)
    runs = runs._replace(state=state)
    options = dict(every=2, validate=True, rule=p.rule, where=where)
    return training.train(p.task, p.tx, runs, 4, **options).networks


def by_replicas(p: Parts, where):
    options = dict(seed=p.seed, validate_every=4, start=p.start, where=where)
    return lj.train(p.task, p.tx, 4, 3, **options).networks


def by_analysis(p: Parts, where):
    plan = connectivity.Plan(4, (0, 2), 2, ("recompute",), 3, statistics_batches=1)
    plan = dataclasses.replace(plan, seed=p.seed)
    start = lj.trees.rows(p.start, slice(2))
    options = dict(replicas=(0, 1), start=start, where=where)
    return connectivity.run(p.task, p.tx, plan, **options).networks


MEASURE = Measure(3, "recompute", ("train", "test"), 1)


def by_points(p: Parts, where):
    which, weights = np.array([[0, 1], [1, 2]]), np.full((2, 2), 0.5)
    return connectivity.evaluate_many(
        p.task, p.start, which, weights, MEASURE, where=where
    )


def by_paths(p: Parts, where):
    return connectivity.paths(p.task, p.start, [(0, 1)], MEASURE, where=where).values


def three(p: Parts):
    return [lj.trees.rows(p.start, i) for i in range(3)]


def by_plane(p: Parts, where):
    return connectivity.plane(p.task, *three(p), MEASURE, size=2, where=where).values


def by_curve(p: Parts, where):
    a, b, bend = three(p)
    at = functools.partial(connectivity.error_along_curve, kind="bezier", where=where)
    return at(p.task, a, b, (bend.params,), MEASURE).values


def by_bends(p: Parts, where):
    a, b, _ = three(p)
    curve = lj.tasks.curve(p.task)
    network = lj.trees.stack([lj.tasks.between(a, b)])
    make = jax.vmap(lambda n: training.start(p.tx, n, (), masks.ones_like(n.params)))
    noise = keys.of_replicas(p.seed, (0,)).noise
    runs = training.Runs(make(network), noise, np.zeros(1, int), np.zeros(1, int))
    options = dict(every=4, validate=True, where=where)
    return training.train(curve, p.tx, runs, 4, **options).networks


def tickets(p: Parts, share=0.5):
    (params, state), found = lj.trees.rows(p.start, 0), []
    for replica in range(2):
        mask = prune.global_topk(
            lj.scores.magnitude(params), masks.ones_like(params), fraction=share
        )
        found.append(lj.storage.tickets.Ticket(mask, params, state, {"n": replica}))
    return [found]


def by_retraining(p: Parts, where):
    plan = imp.Plan(4, arms=("ticket",), validate_every=4, seed=p.seed)
    options = dict(level=1, replicas=(0, 1), where=where)
    return imp.retrain(p.task, p.tx, plan, tickets(p), **options).records


DOORS = {
    "imp.run": (
        by_study,
        (*TRAINING, "score", "exclude", "prunable", "start", "seed"),
    ),
    "training.train": (
        by_training,
        (*TRAINING, "rule", "start of the rule", "start", "seed"),
    ),
    "lj.train": (by_replicas, (*SOME, "start", "seed")),
    "connectivity.run": (by_analysis, (*TRAINING, "start", "seed")),
    "evaluate_many": (by_points, POINTS),
    "paths": (by_paths, POINTS),
    "plane": (by_plane, POINTS),
    "error_along_curve": (by_curve, POINTS),
    "the bends of a curve": (by_bends, (*SOME, "start", "seed")),
    "imp.retrain": (by_retraining, (*SOME, "start", "seed")),
}
"""Everything that stores: what runs, and which changes determine its numbers."""

FIRST = ("imp.run", "paths")
"""A study and an evaluation: the others are asked among the slow tests."""


def of_door(door, *others):
    return pytest.param(door, *others, marks=[pytest.mark.slow] * (door not in FIRST))


# Its trunk, which comes first, is not evaluated; its paths are (`evaluate_many`).
WITHOUT = {("connectivity.run", "evaluation")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of each door after one run, and what it returned."""

    @functools.cache
    def of(door):
        folder = tmp_path_factory.mktemp("finished") / "run"
        return folder, DOORS[door][0](parts(), lj.Where(ONE, folder, 0))

    return of


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("door", map(of_door, DOORS))
def test_the_same_parts_made_anew_are_what_was_there(finished, door):
    folder, first = finished(door)
    before = files(folder)
    again = DOORS[door][0](parts(), lj.Where(ONE, folder, 0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert files(folder) == before


class Killed(Exception):
    pass


def killed_at(level, step):
    def watch(progress):
        if (progress.level, progress.done) == (level, step):
            raise Killed

    return watch


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A study that was killed within level 1."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Killed):
        by_study(parts(), lj.Where(ONE, folder, 0, killed_at(1, 4)))
    assert not (folder / "tickets/imp/level01-replica00.safetensors").exists()
    return folder


@pytest.mark.parametrize("change", ["learning rate", "training data", "activation"])
def test_an_interrupted_study_goes_on_with_nothing_else(interrupted, change):
    field, changed = CHANGES[change]
    with pytest.raises(ValueError, match=f"another study: .*({field})"):
        by_study(changed(), lj.Where(ONE, interrupted, 0))


def test_an_interrupted_study_goes_on_with_the_same_parts_made_anew(
    interrupted, finished
):
    seen = []
    where = lj.Where(ONE, interrupted, 0, seen.append)
    found = by_study(parts(), where)
    assert seen[0].resumed and seen[0].level == 1
    jax.tree.map(np.testing.assert_array_equal, finished("imp.run")[1], found)


@pytest.mark.parametrize(
    ("door", "change"),
    [
        of_door(d, c)
        for d, (_, changes) in DOORS.items()
        for c in changes
        if (d, c) not in WITHOUT
    ],
)
def test_what_determines_numbers_is_refused_by_name(finished, door, change):
    folder, _ = finished(door)
    before, (field, changed) = files(folder), CHANGES[change]
    with pytest.raises(
        ValueError, match=f"holds .*: .*({field}).*; continue"
    ) as caught:
        DOORS[door][0](changed(), lj.Where(ONE, folder, 0))
    assert "or choose another folder" in str(caught.value)
    assert files(folder) == before


@pytest.mark.parametrize(
    "door", map(of_door, ["imp.run", "training.train", "evaluate_many"])
)
def test_other_draws_are_refused(finished, door, monkeypatch):
    folder, _ = finished(door)
    monkeypatch.setattr(keys, "DRAWS", keys.DRAWS + 1)
    with pytest.raises(ValueError, match=r"keys.DRAWS=\d, not \d \(equal seeds drew"):
        DOORS[door][0](parts(), lj.Where(ONE, folder, 0))


def test_a_study_with_narrow_networks_knows_their_law():
    plan = imp.Plan(2, arms=("ticket", "small_dense"), validate_every=2)
    own = toys.classification(lj.models.make("mlp-5", 4))

    def fields(narrow):
        where = lj.Where(ONE, "somewhere")
        mine = own._replace(narrow=narrow)
        return imp.store.fields(mine, sgd(), plan, (0,), None, where)

    found = identity.stored(fields(own.narrow))
    identity.check("F", "another study", found, fields(lambda k, n: own.narrow(k, n)))

    def on_host(key, count, share=1):
        drawn = own.narrow(key, int(count * share))
        return jax.tree.map(np.asarray, drawn)

    assert fields(on_host) == fields(lambda key, count: on_host(key, count))
    assert fields(on_host) != fields(lambda key, count: on_host(key, count, 0.5))
    with pytest.raises(ValueError, match="F holds another study: another task.narrow;"):
        other = fields(lambda k, n: own.narrow(k, n // 2))
        identity.check("F", "another study", found, other)


def test_data_that_were_written_into_are_other_data(tmp_path):
    p, where = parts(), lj.Where(ONE, tmp_path)
    by_points(p, where)
    p.task.data["test"]["image"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="other points: another data;"):
        by_points(p, lj.Where(ONE, tmp_path))


def test_other_versions_are_said_where_functions_differ(finished, monkeypatch):
    folder, first = finished("evaluate_many")
    newer = identity.versions() | {"jax": "99.0"}
    monkeypatch.setattr(identity, "versions", lambda: newer)
    again = by_points(parts(), lj.Where(ONE, folder))  # traced alike: it is the same
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for change, said in (("activation", True), ("test data", False)):
        with pytest.raises(ValueError) as caught:
            by_points(CHANGES[change][1](), lj.Where(ONE, folder))
        versions = f"jax {jax.__version__} there, 99.0 now"
        assert (versions in str(caught.value)) == said
        assert ("cannot be compared" in str(caught.value)) == said


def test_a_checkpoint_that_says_nothing_of_its_origin_is_refused(tmp_path):
    lj.checkpoints.save(tmp_path / "checkpoints", {"x": np.zeros(1)}, {"plan": {}})
    with pytest.raises(ValueError, match="another study: kind=missing, not study;"):
        by_study(parts(), lj.Where(ONE, tmp_path))
