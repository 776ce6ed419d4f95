"""Training and measuring on splits that lie on no device: the bits of those that do."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples_read import Listed, streamed
from flax import linen as nn
from streamed_bits import assert_same, bits

import lottery_jax as lj
from lottery_jax import means, streams
from lottery_jax.connectivity import Measure, branches, evaluation
from lottery_jax.execution import GROUP, memory
from lottery_jax.imp import initial
from lottery_jax.training import windows

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TX = optax.sgd(0.1, momentum=0.9)
ONE, TWO, ALL = lj.Execution(1, 1), lj.Execution(2, 1), lj.Execution(2, 0)
SHARED = lj.Execution(2, 1, data_parallel=2)


def slowly(value):
    """A case for `make slow-tests`: what compiles most is asked for once elsewhere."""
    return pytest.param(value, marks=pytest.mark.slow)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, weights=None):
        x = nn.Dense(6, name="one")(x.reshape(len(x), -1))
        x = lj.models.BatchNorm(name="norm")(x, train, weights)
        return nn.Dense(3, name="head")(nn.relu(x))


def split(number):
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, 3, number).astype(np.int32)}


@pytest.fixture(scope="module")
def task():
    arrays = {"train": split(83), "validation": split(31), "test": split(29)}
    made = lj.data.Dataset(arrays, 3, (4, 4, 3), (0.5,) * 3, (0.25,) * 3, "made")
    options = dict(batch_size=16, augment=("flip", "crop"), evaluation_batch=8)
    return lj.tasks.classification(made, Small(), **options)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Splits are evaluated in parts of one batch, or of two, with a rest."""
    monkeypatch.setattr(windows, "ON_HOST", 2 * 2 * 8 * (48 + 4))


def everything(done):
    return done.state, done.best, done.curves, done.kept


@pytest.mark.parametrize(
    "execution", [TWO, *map(slowly, (ALL, SHARED, SHARED._replace(chunk=0)))]
)
def test_training_is_that_of_a_split_on_the_device(task, execution):
    found = []
    for own in (task, streamed(task)):
        where = lj.Where(execution, window=3)
        found.append(
            lj.train(own, TX, 17, 3, validate_every=5, keep=(4, 9), where=where)
        )
    assert_same(*map(everything, found))
    assert 0 < where.waited.seconds <= where.waited.of
    # 17 steps of 16 examples for 3 replicas, and 4 validations.
    assert 4 * 31 < where.waited.examples <= 3 * 17 * 16 + 4 * 31


@pytest.mark.parametrize("window", [4, slowly(1), slowly(None)])
def test_the_length_of_a_window_changes_nothing(task, window):
    found = [
        lj.train(own, TX, 11, 2, where=lj.Where(TWO, window=window))
        for own in (task, streamed(task, "train"))
    ]
    assert_same(*map(everything, found))


@pytest.mark.slow
def test_a_rule_sees_the_batch_of_its_step(task):
    rule = lj.dynamic.rigl(0.5, every=4, end=12)
    found = [
        lj.train(own, TX, 14, 2, rule=rule, where=lj.Where(TWO, window=3))
        for own in (task, streamed(task))
    ]
    assert_same(*map(everything, found))


@pytest.mark.slow
def test_runs_that_join_late_and_stand_elsewhere_in_their_order(task):
    own = lj.keys.of_replicas(0, (0, 1))
    trunk = branches.train_trunk(task, TX, own.init, own.noise, (0, 3, 8))
    runs = branches.of_trunk(trunk, own.noise, 2)
    runs = runs._replace(offset=np.arange(len(runs.joins), dtype=np.int32) * 5)
    away = streamed(task)
    found = [
        lj.training.train(one, TX, runs, 13, where=lj.Where(ALL, window=4))
        for one in (task, away)
    ]
    assert_same(*map(everything, found))
    # What has not joined is not read for: 4 runs of 3 steps, then 8 of 5, then 12.
    slots = 16 * (4 * 3 + 8 * 5 + 12 * 5)
    asked = streams.streamed(away.data)["train"].asked
    assert sum(map(len, asked)) <= slots


def study(task, where, **options):
    plan = lj.imp.Plan(steps=12, rewind_step=3, validate_every=4, **options)
    return lj.imp.run(task, TX, plan, levels=2, replicas=2, where=where).dataset()


@pytest.mark.slow
def test_two_levels_of_pruning_after_five_interruptions(task, tmp_path):
    whole = study(task, lj.Where(TWO))
    away = streamed(task)
    rng = np.random.default_rng(0)
    interrupted = 0
    where = lj.Where(TWO, tmp_path, checkpoint_seconds=0, window=2)
    while True:
        source = streams.streamed(away.data)["train"]
        source.fails_at = None
        if interrupted < 5:
            source.fails_at = len(source.asked) + int(rng.integers(1, 7))
        try:
            found = study(away, where)
            break
        except streams.SourceError:
            interrupted += 1
    assert interrupted == 5
    assert_same(bits(whole), bits(found))


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "snip"])
def test_scores_see_the_first_batches_if_they_look_at_any(task, score):
    chain = lj.imp.Chain(score=score)
    away = streamed(task)
    found = [
        bits(study(own, lj.Where(TWO, window=12), chains=(chain,), arms=("ticket",)))
        for own in (task, away)
    ]
    assert_same(*found)


@pytest.mark.slow
def test_masks_at_initialisation(task):
    found = [
        initial.prune_at_init(
            own, "snip", (0.5, 0.2), replicas=3, batches=3, where=lj.Where(TWO)
        )
        for own in (task, streamed(task))
    ]
    assert_same(*((x.masks, x.networks) for x in found))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["recompute", slowly("interpolate")])
def test_points_between_networks(task, policy):
    networks = lj.train(task, TX, 5, 3, where=lj.Where(TWO)).networks
    which = np.array([[0, 1], [1, 2], [0, 2], [2, 2], [0, 1]])
    weights = np.linspace([1, 0], [0, 1], 5)
    measure = Measure(batch_norm=policy, splits=("train", "test"), statistics_batches=4)
    for away in (streamed(task), streamed(task, "train"), streamed(task, "test")):
        found = [
            evaluation.evaluate_many(
                own, networks, which, weights, measure, group=3, where=lj.Where(TWO)
            )
            for own in (task, away)
        ]
        assert_same(*found)


def test_evaluation_and_predictions(task):
    networks = lj.train(task, TX, 5, 3, where=lj.Where(TWO)).networks
    away = streamed(task)
    for split_ in ("validation", "test"):
        found = [lj.training.evaluate(own, networks, split_) for own in (task, away)]
        assert_same(*found)
    found = [lj.connectivity.predictions(own, networks) for own in (task, away)]
    assert_same(*found)


# --- what is read ---------------------------------------------------------------------


def one_order(task, key):
    return task._replace(order=lambda _, step: task.order(key, step))


@pytest.mark.slow
def test_replicas_of_one_order_share_what_is_read(task):
    away = streamed(one_order(task, jax.random.key(7)), "train")
    lj.train(away, TX, 6, 4, where=lj.Where(TWO, window=2))
    asked = streams.streamed(away.data)["train"].asked
    # An epoch of 83 examples in 6 steps: nobody reads one twice.
    assert sorted(np.concatenate(asked)) == list(range(83))


def test_a_window_is_read_once_in_rising_order(task):
    away = streamed(task, "train")
    lj.train(away, TX, 6, 3, where=lj.Where(TWO, window=2))
    asked = streams.streamed(away.data)["train"].asked
    for numbers in asked:
        assert (np.diff(numbers) > 0).all() and numbers.dtype == np.int64


def test_devices_that_share_a_batch_divide_a_window(task):
    away = streamed(task, "train")
    own = SHARED.place(lj.keys.of_replicas(0, np.arange(2)).noise)
    window = windows.of_first_steps(away, SHARED, own, 2, lj.Where().waited)
    image = window.examples["image"]
    (number,) = {x.shape[1] for x in window.examples.values()}
    asked = streams.streamed(away.data)["train"].asked[-1]
    assert number % 2 == 0 and number >= len(asked)
    halves = [np.asarray(part.data)[0] for part in image.addressable_shards]
    assert [len(half) for half in halves] == [number // 2] * 2
    whole = task.data["train"]["image"][asked]
    np.testing.assert_array_equal(np.concatenate(halves)[: len(asked)], whole)

    def first(examples, places, key):
        seen = windows.seen(task.functions, {}, examples, places, 0)
        keys = lj.keys.noise_keys(key)
        return seen.batch(seen.data, seen.order(keys.order, 0), keys.batch, 0)

    compiled = SHARED.parallel(first, (GROUP, 0, 0)).lower(*window, own).compile()
    # No device ever has the other's part: what they add up is a batch.
    assert f"u8[{number // 2},4,4,3]" in compiled.as_text()
    assert f"u8[{number},4,4,3]" not in compiled.as_text()
    labels = compiled(*window, own)["label"]
    for key, found in zip(own, labels):
        rows = task.order(lj.keys.noise_keys(key).order, np.int32(0))
        np.testing.assert_array_equal(found, task.data["train"]["label"][rows])


def test_at_most_one_window_is_read_ahead():
    begun, used = [], []

    def job(i):
        begun.append(i)
        return lambda: i

    waited = lj.Where().waited
    for i in windows.ahead([lambda i=i: job(i) for i in range(5)], waited):
        assert begun == list(range(min(i + 2, 5)))
        used.append(i)
    assert used == list(range(5)) and 0 <= waited.share <= 1


def test_places_name_the_same_examples():
    indices = np.array([[5, 3, -1], [3, 9, 5]])
    wanted, places = windows.rebased(indices)
    assert wanted.tolist() == [3, 5, 9]
    assert places.tolist() == [[1, 0, -1], [0, 2, 1]]


@pytest.mark.parametrize("number, batch", [(31, 8), (32, 8), (7, 8), (8, 8), (17, 16)])
def test_parts_are_whole_batches_and_leave_nothing_over(number, batch):
    edges = windows.parts(Listed(split(number)), batch)
    assert edges[0][0] == 0 and edges[-1][1] == number
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:]))
    assert all(start % batch == 0 for start, _ in edges)
    assert all(stop - start >= min(batch, number) for start, stop in edges)


# --- refused --------------------------------------------------------------------------


def test_a_metric_that_is_no_mean_is_refused_by_name(task):
    def evaluate(*args):
        found = task.evaluate(*args)
        return found | {"worst": jnp.float32(1)}

    other = streamed(task._replace(evaluate=evaluate))
    with pytest.raises(ValueError, match="metric='worst'.*mean over examples"):
        lj.train(other, TX, 5, 1)
    with pytest.raises(ValueError, match="metric='worst'"):
        lj.training.evaluate(other, lj.train(task, TX, 2, 1).networks, "test")


def test_a_window_that_does_not_fit_says_how_long_it_may_be(task, monkeypatch):
    # Two windows in 90% of the memory; 16 examples of 52 bytes for each of 2 replicas.
    monkeypatch.setattr(memory, "of_host", lambda: 10 * 2 * 16 * 52)
    where = lj.Where(ONE, window=5)
    with pytest.raises(
        MemoryError, match=r"window=5: .*at most 4 steps .*\(window=4\)"
    ):
        lj.train(streamed(task), TX, 10, 2, validate_every=10, where=where)
    monkeypatch.setattr(memory, "of_host", lambda: 16 * 52)
    monkeypatch.setattr(windows, "ON_HOST", 10)
    with pytest.raises(MemoryError, match="not even one step fits"):
        lj.train(streamed(task), TX, 10, 2, where=lj.Where(ONE))


@pytest.mark.slow
def test_a_folder_of_other_examples_is_refused(task, tmp_path):
    where = lj.Where(ONE, tmp_path)
    lj.train(streamed(task), TX, 4, 1, where=where)
    changed = {name: x.copy() for name, x in task.data["train"].items()}
    changed["image"][3, 0, 0] += 1
    other = streamed(task._replace(data=task.data | {"train": changed}))
    with pytest.raises(ValueError, match=r"another data\['train'\]"):
        lj.train(other, TX, 4, 1, where=lj.Where(ONE, tmp_path))


def test_what_cannot_be_read_stops_with_all_that_was_reached_stored(task, tmp_path):
    away = streamed(task, "train")
    source = streams.streamed(away.data)["train"]
    source.fails_at = 4
    where = lj.Where(ONE, tmp_path, checkpoint_seconds=1e6, window=2)
    with pytest.raises(streams.SourceError, match="is gone"):
        lj.train(away, TX, 12, 1, validate_every=2, where=where)
    read = len(source.asked)
    source.fails_at = None
    seen = []
    again = dataclasses.replace(where, watch=seen.append)
    found = lj.train(away, TX, 12, 1, validate_every=2, where=again)
    assert seen[0].resumed and seen[0].done >= 2 * (read - 2)
    assert_same(found.state, lj.train(task, TX, 12, 1, validate_every=2).state)


def test_columns_stand_where_splits_can_be(task):
    columns = streams.columns(Listed(split(9)))
    with pytest.raises(ValueError, match="data.*streamed column"):
        streams.streamed({"a": {"b": columns}})
    with pytest.raises(ValueError, match="streamed, as the rest"):
        streams.streamed({"train": columns | {"label": np.zeros(9)}})
    mixed = columns | {"label": streams.columns(Listed(split(9)))["label"]}
    with pytest.raises(ValueError, match="other examples"):
        streams.streamed({"train": mixed})
    with pytest.raises(TypeError, match="no values until"):
        np.asarray(columns["image"])
    assert streams.resident({"train": columns, "test": 1}) == {"test": 1}


def test_a_slice_of_a_column_is_one_of_those_examples():
    arrays = split(9)
    columns = streams.columns(Listed(arrays))
    some = {name: x[2:8][::2] for name, x in columns.items()}
    assert some["image"].shape == (3, 4, 4, 3) and some["image"].dtype == np.uint8
    examples = streams.streamed({"part": some})["part"]
    found = streams.read(examples, [2, 0])
    np.testing.assert_array_equal(found["image"], arrays["image"][[6, 2]])
    assert examples.digest != columns["image"].examples.digest
    for rows in (slice(9, 9), [9], [-1], [0.5], []):
        with pytest.raises(ValueError, match="rows="):
            columns["image"][rows]


def test_sums_of_parts_are_those_of_the_whole():
    with means.as_sums():
        found = means.of(jnp.arange(4.0), 7, 2)
    assert isinstance(found, means.Sums) and found.mean == means.of(
        jnp.arange(4.0), 7, 2
    )


def test_what_is_compiled_as_a_whole_is_refused_by_name(task):
    away, network = streamed(task), lj.Network(*task.init(jax.random.key(0))[:2])
    measure = Measure(batch_norm="recompute", splits=("test",))
    with pytest.raises(ValueError, match="streamed.*connectivity.paths reads it"):
        lj.connectivity.error_along_path(away, network, network, measure)
    state = lj.training.start(TX, network, (), lj.masks.ones_like(network.params))
    with pytest.raises(ValueError, match="streamed.*a loop of one's own"):
        lj.training.train_steps(away, TX, state, jax.random.key(1), 0, 1, capacity=1)
    own = jax.tree.map(lambda x: x[0], lj.keys.of_replicas(0, (0,)))
    with pytest.raises(ValueError, match="imp.prune_at_init reads them"):
        lj.at_init.first_batches(away, own.noise, 2)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", ["edge_popup", "curve"])
def test_wrapped_tasks_know_nothing_of_it(task, wrapped):
    if wrapped == "edge_popup":
        made = lj.supermask.task(task, lj.supermask.edge_popup(0.5))
    else:
        made = lj.tasks.curve(task)
    found = [
        lj.train(own, TX, 6, 2, validate_every=3, where=lj.Where(TWO, window=2))
        for own in (made, streamed(made))
    ]
    assert_same(*map(everything, found))


class Watched(Listed):
    """Examples that notice whether two threads ask for some of them at once."""

    within, most = 0, 0

    def read(self, indices, into):
        Watched.within += 1
        Watched.most = max(Watched.most, Watched.within)
        time.sleep(0.002)
        super().read(indices, into)
        Watched.within -= 1


def test_one_thread_reads_at_a_time_and_time_is_counted_once(task):
    whole = Watched(
        {
            n: np.concatenate([task.data[s][n] for s in task.data])
            for n in ("image", "label")
        }
    )
    edges = np.cumsum([0, *(len(task.data[s]["label"]) for s in task.data)])
    data = {
        s: streams.columns(streams.part(whole, np.arange(a, b)))
        for s, a, b in zip(task.data, edges, edges[1:])
    }
    own, where = task._replace(data=data), lj.Where(TWO, window=2)
    begin = time.monotonic()
    done = lj.train(own, TX, 12, 2, validate_every=4, where=where)
    lj.training.evaluate(own, done.networks, "test", where=where)
    assert Watched.most == 1
    assert 0 < where.waited.seconds <= where.waited.of <= time.monotonic() - begin
    assert 0 < where.waited.share < 1


def test_replaced_examples_of_all_splits_are_told(task):
    away = streamed(task)
    found = streams.streamed(away.data)
    for examples in found.values():
        type(examples).replaced = property(lambda self: {f"{self.name} 3": "4"})
    try:
        where = lj.Where(ONE)
        done = lj.train(away, TX, 2, 1, where=where)
        lj.training.evaluate(away, done.networks, "test", where=where)
    finally:
        del Listed.replaced
    assert set(where.waited.replaced) == {f"{s} 3" for s in found}


def test_metrics_of_batches_of_two_sizes_are_refused(task):
    def evaluate(*args):
        found = task.evaluate(*args)
        if isinstance(found["loss"], means.Sums):
            found["other"] = means.of(found["loss"].sums, 31, 4)
        return found

    other = streamed(task._replace(evaluate=evaluate))
    with pytest.raises(ValueError, match="batches of one size"):
        lj.train(other, TX, 5, 1)


def test_a_failing_validation_leaves_what_was_reached(task, tmp_path):
    away = streamed(task)
    streams.streamed(away.data)["validation"].fails_at = 2 * 2  # of its third
    where = lj.Where(ONE, tmp_path, checkpoint_seconds=1e6)
    with pytest.raises(streams.SourceError, match="is gone"):
        lj.train(away, TX, 12, 1, validate_every=1, where=where)
    seen = []
    again = dataclasses.replace(where, watch=seen.append)
    lj.train(streamed(task), TX, 12, 1, validate_every=1, where=again)
    assert seen[0].resumed and seen[0].done >= 1


def test_a_study_refuses_such_a_metric_before_it_trains(task):
    def evaluate(*args):
        return task.evaluate(*args) | {"worst": jnp.float32(1)}

    seen = []
    with pytest.raises(ValueError, match="metric='worst'"):
        study(
            streamed(task._replace(evaluate=evaluate)), lj.Where(ONE, watch=seen.append)
        )
    assert not seen
