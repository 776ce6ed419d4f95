"""All runs in one data order: the same examples, each with noise of its own."""

import numpy as np
import pytest
import toys

from lottery_jax import data, keys, models, tasks
from lottery_jax.training.programs import sameness

ROWS, BATCH = 12, 4


@pytest.fixture(scope="module")
def task():
    """Images, so that there is an augmentation to differ in."""
    random = np.random.default_rng(0)

    def split(number):
        return {
            "image": random.integers(0, 256, (number, 8, 8, 3), np.uint8),
            "label": random.integers(0, 2, number, np.int32),
        }

    arrays = {"train": split(ROWS), "test": split(4)}
    own = data.Dataset(arrays, 2, (8, 8, 3), (0.5,) * 3, (0.5,) * 3, "made")
    return tasks.classification(
        own, models.make("mlp-4", 2), batch_size=BATCH, augment=("flip", "crop")
    )


def noise(number=2):
    found = keys.of_replicas(0, np.arange(number)).noise
    return [keys.noise_keys(key) for key in found]


def orders(task, key, steps=7):
    return np.stack([task.order(key.order, np.int32(i)) for i in range(steps)])


def test_replicas_see_the_same_examples_at_the_same_step(task):
    one, other = noise()
    assert (orders(task, one) != orders(task, other)).any()
    shared = tasks.shared_order(task, 3)
    np.testing.assert_array_equal(orders(shared, one), orders(shared, other))


def test_every_epoch_has_every_example_in_an_order_of_its_own(task):
    found = orders(tasks.shared_order(task), noise()[0], 6).reshape(2, ROWS)
    np.testing.assert_array_equal(np.sort(found), [np.arange(ROWS)] * 2)
    assert (found[0] != found[1]).any()


def test_the_order_is_that_of_the_seed_and_of_no_replica(task):
    key = noise()[0]
    by_seed = [orders(tasks.shared_order(task, seed), key) for seed in (0, 1)]
    assert (by_seed[0] != by_seed[1]).any()
    for own in keys.of_replicas(0, np.arange(3)):
        for one in own:
            assert (orders(task, keys.noise_keys(one)) != by_seed[0]).any()


def test_augmentation_stays_each_replicas_own(task):
    one, other = noise()
    shared = tasks.shared_order(task)
    rows, step = shared.order(one.order, np.int32(0)), np.int32(0)
    own, theirs = (shared.batch(shared.data, rows, k.batch, step) for k in (one, other))
    np.testing.assert_array_equal(own["label"], theirs["label"])
    assert (own["image"] != theirs["image"]).any()


def test_nothing_else_changes(task):
    shared = tasks.shared_order(task)
    assert shared._replace(order=task.order) == task
    again = tasks.shared_order(task)
    assert shared.order.__self__ == again.order.__self__ and hash(shared.order)
    assert sameness(shared.functions) == sameness(again.functions)
    assert sameness(shared.functions) != sameness(tasks.shared_order(task, 1).functions)


def test_other_tasks_have_it_too():
    inner = toys.language_model()
    shared = tasks.shared_order(inner)
    one, other = noise()
    np.testing.assert_array_equal(orders(shared, one), orders(shared, other))


@pytest.mark.parametrize(
    ("given", "seed", "message"),
    [(None, 0, "task="), ("task", -1, "seed=-1"), ("task", 0.5, "seed=0.5")],
)
def test_what_makes_no_sense_is_refused_by_name(task, given, seed, message):
    with pytest.raises(ValueError, match=message):
        tasks.shared_order(given and task, seed)
