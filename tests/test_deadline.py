"""Calls that must end in time: when they stop, what they leave, and that they go on."""

import jax
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import checkpoints, connectivity, imp
from lottery_jax.connectivity import Measure
from lottery_jax.execution import Deadline, OutOfTimeError, deadline

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Seconds:
    """A clock that is set by hand; calls of `tick` are the watcher's."""

    def __init__(self, each=0.0):
        self.now, self.each = 1000.0, each

    def __call__(self):
        return self.now

    def tick(self, _=None):
        self.now += self.each


def task():
    return toys.classification(lj.models.make("mlp-6", 4))


def place(folder, clock, minutes=1.0, **more):
    limit = Deadline(minutes, now=clock)
    more = {"watch": clock.tick} | more
    return lj.Where(lj.Execution(2, 1), folder, deadline=limit, **more)


def arrays(*trees):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(trees)]


# --- the deadline itself --------------------------------------------------------------


def test_a_piece_of_a_kind_takes_about_as_long_as_the_last_one():
    clock = Seconds()
    limit = Deadline(10, age=100, now=clock)
    for kind, seconds in (("start", 50), ("step", 20), ("step", 8)):
        clock.now += seconds
        limit.ended(kind)
    # The start of the process belongs to the first piece.
    assert limit.took == {"start": 150, "step": 8}
    left = deadline.MARGIN + deadline.SLOWER * 8 + 2 * 3
    clock.now = 1000 + 500 - left
    assert not limit.near("step", checkpoint=3)
    clock.now += 0.01
    assert limit.near("step", checkpoint=3)
    assert limit.near("another")  # it may compile, as the start did


def test_something_is_done_in_every_call():
    clock = Seconds()
    limit = Deadline(1, now=clock)
    clock.now += 3600
    limit.ended(deadline.BETWEEN)
    assert not limit.near("step")
    limit.ended("step")
    assert limit.near("step")


def test_it_says_where_it_has_stopped():
    clock = Seconds()
    limit = Deadline(9, now=clock)
    clock.now += 8.6 * 60
    limit.place = lj.execution.Progress("training", 12_000, 15_000, 9, level=3).place
    assert str(limit.stopped()) == (
        "stopped after 8.6 of 9 minutes at level 3, step 12,000; the same command goes on"
    )
    at = lj.execution.Progress("paths", 256, 4320, 72).place
    assert at == "paths, 256 of 4,320"


def test_the_age_of_this_process_counts_its_imports():
    age = deadline.process_age()
    assert age > deadline._BEFORE > 0
    assert 0 <= deadline.process_age() - age < 5


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "9", None])
def test_minutes_that_make_no_sense_are_refused(minutes):
    with pytest.raises(ValueError, match="minutes=.*; it must be a number above 0"):
        Deadline(minutes)


# --- what trains and measures under one -----------------------------------------------


def calls(run, folder, clock, most=30, **more):
    """The same call again and again until it ends: its outcome, and how many it took."""
    for number in range(1, most):
        try:
            return run(place(folder, clock, **more)), number
        except OutOfTimeError as error:
            assert "the same command goes on" in str(error)
    raise AssertionError("it does not come to an end")


def test_training_stops_before_the_end_and_goes_on_to_the_same_bits(tmp_path):
    def run(where):
        return lj.train(
            task(), optax.adam(0.02), 24, 3, validate_every=4, keep=(2, 6), where=where
        )

    expected = run(lj.Where(lj.Execution(2, 1)))
    clock = Seconds(each=8)
    done, number = calls(run, tmp_path, clock)
    # 8 s to begin with and for each segment: of the two first columns, which are cut in
    # the middle, one a call; then all that are left.
    assert number == 3
    assert checkpoints.metadata(tmp_path)["step"] == 24
    assert arrays(done.state, done.curves, done.kept) == arrays(
        expected.state, expected.curves, expected.kept
    )


class Work(lj.training.segment.Work):
    """Whose steps take a second each by a clock, and checkpoints some."""

    clock = Seconds()
    checkpoint = 0.0

    def segment(self, moment, a, b, window):
        self.clock.now += b - a
        return super().segment(moment, a, b, window)

    def save(self, *given):
        self.clock.now += self.checkpoint
        super().save(*given)


@pytest.fixture
def timed(monkeypatch):
    """Trains until time is nearly over; the error, and the seconds that it took."""

    def until_stopped(folder, minutes, checkpoint=0.0, **more):
        Work.clock, Work.checkpoint = Seconds(), checkpoint
        where, tx = place(folder, Work.clock, minutes), optax.sgd(0.1)
        drawn = lj.keys.of_replicas(0, [0, 1])
        runs = lj.training.fresh(task(), tx, drawn.init, drawn.noise)
        with pytest.raises(OutOfTimeError) as stopped:
            lj.training.train(task(), tx, runs, where=where, **more)
        return str(stopped.value), Work.clock.now - 1000

    monkeypatch.setattr(lj.training.runs, "Work", Work)
    return until_stopped


def test_where_columns_are_cut_a_piece_is_a_whole_one(timed, tmp_path):
    """Else the last segment, of one step, would stand for the next column, of 20."""
    marks = [19, 39, 59, 79, 99]
    said, seconds = timed(tmp_path, 61 / 60, stop=100, every=20, marks=marks)
    assert "at training, 40 of 100;" in said
    assert seconds == 40 and checkpoints.metadata(tmp_path)["step"] == 40


def test_what_a_checkpoint_costs_is_known_from_the_first_moment_on(timed, tmp_path):
    """25 s each; none would be due within the call."""
    said, seconds = timed(tmp_path, 2, checkpoint=25, stop=100, every=5)
    # 5 s and a checkpoint, and steps until 7.5 s, two checkpoints and 10 s are left.
    assert "at training, 30 of 100;" in said
    assert seconds == 30 + 2 * 25 <= 120
    assert checkpoints.latest(tmp_path) == 2


def test_a_checkpoint_is_written_however_rarely_they_are_due(tmp_path):
    clock = Seconds(each=30)
    where = place(tmp_path, clock, checkpoint_seconds=1e6)
    with pytest.raises(OutOfTimeError, match="at training, 4 of 24;"):
        lj.train(task(), optax.sgd(0.1), 24, 2, validate_every=4, where=where)
    assert checkpoints.metadata(tmp_path)["step"] == 4


def test_without_a_folder_nothing_could_be_kept_and_it_does_not_stop():
    clock = Seconds(each=60)
    where = place(None, clock)
    done = lj.train(task(), optax.sgd(0.1), 8, 2, validate_every=4, where=where)
    assert done.curves.steps.tolist() == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("each", [11, 61])
def test_a_study_stops_anywhere_and_goes_on_to_the_same_bits(tmp_path, each):
    """Within a level, at its end (whose checkpoint is otherwise left to the study)."""
    plan = imp.Plan(steps=8, rewind_step=2, validate_every=4, arms=("ticket", "reinit"))

    def run(where):
        return imp.run(
            task(), optax.adam(0.02), plan, levels=2, replicas=2, where=where
        )

    def stored(folder):
        files = sorted(folder.glob("tickets/*/*"))
        assert len(files) == 6
        return [path.read_bytes() for path in files]

    expected = run(lj.Where(lj.Execution(2, 1), tmp_path / "whole"))
    seen = []
    clock = Seconds(each=each)

    def watch(progress):
        clock.tick()
        seen.append((progress.level, progress.done, progress.resumed))

    done, number = calls(run, tmp_path / "parts", clock, watch=watch)
    assert number > 2
    # Each segment was trained once; a level above 0 begins at step 2.
    trained = [(n, step) for n, step, resumed in seen if not resumed and step > 2]
    assert trained == [(n, step) for n in range(3) for step in (4, 8)]
    assert arrays(done.masks) == arrays(expected.masks)
    one, two = done.dataset(), expected.dataset()
    for name in one.variables:
        if not name.startswith(("time", "seconds", "steps_per_")):
            assert one[name].values.tobytes() == two[name].values.tobytes(), name
    assert stored(tmp_path / "parts") == stored(tmp_path / "whole")


@pytest.mark.slow
def test_paths_are_measured_group_by_group(tmp_path, monkeypatch):
    networks = lj.train(task(), optax.sgd(0.1), 4, 3).networks
    pairs, measure = [(0, 1), (0, 2), (1, 2)], Measure(50, None, ("test",))

    def run(where):
        return connectivity.paths(task(), networks, pairs, measure, where=where)

    expected = run(lj.Where(lj.Execution(2, 1)))
    found, number = calls(run, tmp_path, Seconds(each=40))
    assert number == 2  # of 150 points in groups of 128
    assert arrays(found.values) == arrays(expected.values)
