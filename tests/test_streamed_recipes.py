"""Recipes of data that are read while runs train: folders, maps, and what they refuse."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import imp, recipes
from experiments.kinds import images
from lottery_jax import streams
from lottery_jax.data import maps, prepare

pytestmark = pytest.mark.usefixtures("compiled_quickly")

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("xarray")

SIDE, CLASSES, EACH = 6, 3, {"train": 4, "val": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of small PNG files of several sizes, as ImageNet is unpacked."""
    made, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in EACH.items():
        for label in range(CLASSES):
            own = made / split / f"n{label}"
            own.mkdir(parents=True)
            for i in range(number):
                pixels = random.integers(0, 256, (SIDE + i, SIDE, 3), np.uint8)
                Image.fromarray(pixels).save(own / f"{i}.png")
    return made


def recipe(folder, **fields):
    own = dict(model="mlp-4", batch_size=4, validation=0, side=SIDE) | fields
    return dataclasses.replace(imp.PRESETS["mnist1d"].config, data=str(folder), **own)


@pytest.fixture
def no_maps(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    images._load_data.cache_clear()
    yield tmp_path
    images._load_data.cache_clear()


def test_a_folder_is_read_while_runs_train(folder):
    cfg = recipe(folder)
    task = recipes.make_task(cfg)
    away = streams.streamed(task.data)
    numbers = {split: len(own) for split, own in away.items()}
    assert numbers == {"train": 12, "test": 6}
    first = streams.read(away["train"], [0, 11])
    assert first["image"].shape == (2, SIDE, SIDE, 3)
    assert first["label"].tolist() == [0, 2]
    assert recipes.make_task(recipe(folder, validation=3)).validates


def test_a_map_gives_the_same_examples(folder, no_maps):
    prepare.main(["tiny_imagenet", "--from", str(folder), "--side", str(SIDE)])
    by_name = recipes.make_task(recipe("tiny_imagenet", side=None))
    by_path = recipes.make_task(recipe(maps.folder("tiny_imagenet"), side=None))
    expected = streams.read(
        streams.streamed(recipes.make_task(recipe(folder)).data)["train"], range(12)
    )
    for task in (by_name, by_path):
        found = streams.read(streams.streamed(task.data)["train"], range(12))
        for field, values in expected.items():
            np.testing.assert_array_equal(found[field], values)
    with pytest.raises(ValueError, match=f"side={SIDE}; it must be None"):
        recipes.make_task(recipe(maps.folder("tiny_imagenet")))


def test_data_that_are_not_prepared_say_how(no_maps):
    with pytest.raises(FileNotFoundError) as error:
        recipes.make_task(recipe("imagenet", side=None))
    command = "python -m lottery_jax.data.prepare imagenet --from FOLDER --side 256"
    assert command in str(error.value)
    assert "--data FOLDER --side 256" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subset": 5}, "subset='?5'?; it must be None: data="),
        ({"label_noise": 0.1}, "label_noise='?0.1'?; it must be 0.0: data="),
        ({"blur": 2.0}, "blur='?2.0'?; it must be None"),
        ({"inputs": "grey28"}, "inputs='grey28'; it must be 'own'"),
        ({"classes": 2}, "classes='?2'?; it must be None"),
        ({"half": "a"}, "half='a'; it must be None"),
        ({"from_class": 1}, "from_class='?1'?; it must be 0"),
        ({"normalization": "unit_l2"}, "normalization='unit_l2'; it must be another"),
    ],
)
def test_fields_that_need_values_in_memory_are_refused(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        recipes.make_task(recipe(folder, **fields))


def test_sides_and_folders_that_make_no_sense_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="side=6; it must be None: only images"):
        recipes.make_task(dataclasses.replace(recipe(folder), data="mnist1d"))
    with pytest.raises(ValueError, match="side=6; it must be None: the map"):
        recipes.make_task(recipe("imagenet"))
    with pytest.raises(ValueError, match="data='.*/none'; it must be a folder"):
        recipes.make_task(recipe(tmp_path / "none"))
    with pytest.raises(
        ValueError, match="data='nothing'; it must be one of .*imagenet"
    ):
        recipes.make_task(recipe("nothing", side=None))


def test_a_plan_of_data_that_are_not_there_reads_nothing(no_maps):
    cfg = recipe("imagenet", side=None, model="mlp-2", batch_size=512, steps="1ep")
    with recipes.by_size():
        task = recipes.make_task(cfg)
    away = streams.streamed(task.data)
    assert len(away["train"]) == 1_281_167 and len(away["test"]) == 50_000
    assert task.steps_per_epoch == 2503
    with pytest.raises(streams.SourceError, match="it can only be counted"):
        streams.read(away["train"], [0])


def test_an_order_that_is_shared_is_a_field(folder):
    own, shared = (
        recipes.make_task(recipe(folder, shared_order=flag)) for flag in (False, True)
    )
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 2)
    step = np.int32(0)
    orders = [[task.order(key, step) for key in keys] for task in (own, shared)]
    assert (orders[0][0] != orders[0][1]).any()
    np.testing.assert_array_equal(*orders[1])
