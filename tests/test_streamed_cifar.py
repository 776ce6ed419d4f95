"""CIFAR-10 read while it trains, from each kind of source: the bits of it in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streamed_bits import assert_same, bits

import lottery_jax as lj
from lottery_jax import streams
from lottery_jax.connectivity import Measure
from lottery_jax.data import maps
from lottery_jax.data._random import random_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.usefixtures("compiled_quickly"),
]

SIZES = {"train": 1500, "test": 400}
HELD_OUT = 100
STATISTICS = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
TX = optax.sgd(0.05, momentum=0.9)
PLAN = lj.imp.Plan(
    steps=24,
    rewind_step=5,
    validate_every=12,
    arms=("ticket", "reinit", "random_mask"),
)
WHERE = functools.partial(lj.Where, lj.Execution(2, 1))
MEASURE = Measure(5, "recompute", ("train", "test"), statistics_batches=8)
SOURCES = ("tfds", "folder", "map")


@pytest.fixture(scope="module")
def items(prepared_data):
    """The first examples of both splits, as TFDS gives them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = prepared_data("cifar10")
    return {
        split: tfds.data_source(
            "cifar10", split=f"{split}[:{size}]", data_dir=folder, download=False
        )
        for split, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def arrays(items):
    """The same as images and labels, in the order of TFDS."""
    return {
        split: (
            np.stack([item["image"] for item in own]),
            np.array([item["label"] for item in own], np.int32),
        )
        for split, own in items.items()
    }


@pytest.fixture(scope="module")
def sources(items, arrays, tmp_path_factory):
    """What is read, and in which order of the examples of TFDS: [N] for each split."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("cifar10")
    for split, (images, labels) in arrays.items():
        for number, (pixels, label) in enumerate(zip(images, labels)):
            folder = root / "files" / split / f"class-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels).save(folder / f"{number:05d}.png")
    own = {split: np.arange(size) for split, size in SIZES.items()}
    by_class = {
        split: np.argsort(labels, stable=True) for split, (_, labels) in arrays.items()
    }
    return {
        "tfds": (items, own),
        "folder": (root / "files", by_class),
        "map": (maps.write(items, root / "map", side=32), own),
    }


def task_of(dataset):
    model = lj.models.make("resnet-8-4", 10)
    options = dict(batch_size=32, augment=("flip", "crop"), evaluation_batch=100)
    return lj.tasks.classification(dataset, model, **options)


@pytest.fixture(scope="module")
def streamed(sources):
    """The task by source; its examples are read while it trains."""
    return {
        name: task_of(
            lj.data.stream(source, validation=HELD_OUT, name="cifar10", **STATISTICS)
        )
        for name, (source, _) in sources.items()
    }


@pytest.fixture(scope="module")
def resident(sources, arrays):
    """The task by source; its examples lie in memory, in the order of that source."""

    @functools.cache
    def task(name):
        splits = {}
        for split, (images, labels) in arrays.items():
            rows = sources[name][1][split]
            splits[split] = {"image": images[rows], "label": labels[rows]}
        order = random_state(0, "split").permutation(SIZES["train"])
        whole = splits.pop("train")
        for split, rows in (
            ("train", order[HELD_OUT:]),
            ("validation", order[:HELD_OUT]),
        ):
            splits[split] = {field: x[rows] for field, x in whole.items()}
        own = *STATISTICS.values(), "cifar10"
        return task_of(lj.data.Dataset(splits, 10, (32, 32, 3), *own))

    return task


def study(task, folder):
    return lj.imp.run(
        task, TX, PLAN, levels=2, replicas=2, where=WHERE(folder, window=5)
    )


def tickets(folder):
    """Masks, weights at the rewind step and statistics, by file and leaf."""
    found = {}
    for path in sorted((folder / "tickets").glob("*/*.safetensors")):
        ticket = lj.tickets.load(path)
        found[path.name] = (ticket.mask, ticket.params, ticket.model_state)
    return found


@pytest.fixture(scope="module")
def in_memory(resident, tmp_path_factory):
    """Study, folder and networks of the examples in memory, by the order of a source."""

    @functools.cache
    def of(name):
        folder = tmp_path_factory.mktemp("resident")
        own = resident(name)
        networks = lj.train(own, TX, 12, 2, where=WHERE()).networks
        return study(own, folder), folder, networks

    return lambda name: of("folder" if name == "folder" else "tfds")


@pytest.mark.parametrize("name", SOURCES)
def test_two_levels_of_pruning_are_those_of_examples_in_memory(
    name, streamed, in_memory, tmp_path
):
    whole, folder, networks = in_memory(name)
    found = study(streamed[name], tmp_path)
    assert found.execution == whole.execution
    assert_same(bits(found.dataset()), bits(whole.dataset()))
    assert_same((found.masks, found.rewound), (whole.masks, whole.rewound))
    own, other = tickets(tmp_path), tickets(folder)
    # Two replicas at three levels.
    assert len(own) == 6
    assert_same(own, other)
    # The study has learned something, and pruned something.
    results = found.dataset()
    assert results["test_error"].mean() < 0.9
    density = results["density"].isel(level=2).values
    np.testing.assert_allclose(density, 0.64, atol=1e-3)


@pytest.mark.parametrize("name", SOURCES)
def test_networks_and_all_between_them_are_those_of_examples_in_memory(
    name, streamed, resident, in_memory
):
    *_, networks = in_memory(name)
    own, other = streamed[name], resident("folder" if name == "folder" else "tfds")
    trained = lj.train(own, TX, 12, 2, where=WHERE(window=4)).networks
    assert_same(trained, networks)
    found = [
        lj.connectivity.paths(task, networks, [(0, 1)], MEASURE, where=WHERE())
        for task in (own, other)
    ]
    assert_same(found[0].values, found[1].values)
    assert found[0].error.shape == (1, 2, 5)


def with_statistics(task):
    """The same task, which also measures each number of a network's statistics."""

    def evaluate(params, model_state, data, key, split):
        found = task.evaluate(params, model_state, data, key, split)
        leaves = jax.tree.leaves(model_state)
        numbers = jnp.concatenate([x.ravel() for x in leaves])
        return found | {f"statistic_{i}": x for i, x in enumerate(numbers)}

    return task._replace(evaluate=evaluate)


@pytest.mark.parametrize("name", ["folder", "map"])
def test_recomputed_statistics_are_those_of_examples_in_memory(
    name, streamed, resident, in_memory
):
    *_, networks = in_memory(name)
    other = with_statistics(resident("folder" if name == "folder" else "tfds"))
    train = streamed[name].data["train"]
    own = other._replace(data=other.data | {"train": train})
    assert list(streams.streamed(own.data)) == ["train"]
    measure = MEASURE._replace(alphas=3, splits=("test",))
    found = [
        lj.connectivity.paths(task, networks, [(0, 1)], measure, where=WHERE()).values
        for task in (own, other)
    ]
    assert_same(*found)
    number = len(found[0]) - 2
    assert number == sum(x[0].size for x in jax.tree.leaves(networks.model_state))
