"""A folder as ImageNet is unpacked: trained from, killed, damaged, and made a map."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from killed_runs import environment as environment
from killed_runs import finish, kill_when, lines, same, start
from streamed_bits import assert_same, bits

from lottery_jax import checkpoints, data, records, streams, tickets

pytestmark = pytest.mark.slow

pytest.importorskip("xarray")
Image = pytest.importorskip("PIL.Image")

CLASSES, SIDE = 100, 72
EACH = {"train": (5, 8), "val": (1, 3)}
"""How many images a class has, from and below."""
LINES = (
    7  # of metrics: three validations of the dense networks, two of each later level
)


def images(folder):
    """JPEGs of many sizes, portrait and landscape, tiny ones, grey ones and CMYK."""
    rng = np.random.default_rng(0)
    modes = ["RGB"] * 8 + ["L", "CMYK"]
    for split, bounds in EACH.items():
        for label in range(CLASSES):
            own = folder / split / f"n{label:08d}"
            own.mkdir(parents=True)
            for number in range(rng.integers(*bounds)):
                size = rng.integers(20, 161, 2).tolist()
                rough = rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)
                image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
                mode = modes[int(rng.integers(len(modes)))]
                image.convert(mode).save(own / f"{own.name}_{number}.JPEG", quality=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("imagenet") / "shapes"
    images(found)
    return found


def study(source, *flags):
    """The command of a study, without its folder."""
    return (
        f"mnist1d --data {source} --validation 50 --crop 64 --augment resized_crop flip "
        "--model imagenet-resnet-18-8 --batch-size 32 --optimizer sgd "
        "--learning-rate 0.02 --steps 6it --rewind-step 2it --validate-every 2 "
        "--levels 2 --replicas 2 --arms ticket --checkpoint-seconds 0 --window-steps 2 "
    ) + " ".join(flags)


DECODED = f"--side {SIDE}"


@pytest.fixture(scope="module")
def undisturbed(environment, folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(environment, study(folder, DECODED), run)
    assert lines(run) == LINES
    return run


def test_it_trains_and_prunes_and_says_what_was_read(undisturbed, folder):
    results = records.load(undisturbed / "results.nc")
    np.testing.assert_allclose(results["density"].isel(level=2), 0.64, atol=1e-3)
    assert np.isfinite(results["test_loss"]).all()
    said = results.attrs
    # Fourteen batches of 32 at least, and seven validations of 50 examples.
    assert said["examples_read"] > 14 * 32 + LINES * 50
    assert 0 < said["seconds_waiting"] <= said["seconds_windows"]
    assert json.loads(said["examples_replaced"]) == {}
    number = sum(1 for _ in (folder / "train").rglob("*.JPEG"))
    assert 5 * CLASSES <= number < 8 * CLASSES


def test_killed_in_a_later_level_it_ends_in_the_same_bits(
    environment, undisturbed, folder, tmp_path
):
    run, command = tmp_path / "run", study(folder, DECODED)
    kill_when(environment, command, run, lambda: lines(run) >= 4)
    assert "continuing at level" in finish(environment, command, run)
    same(run, undisturbed)


def test_a_map_of_it_gives_the_same_pixels_and_results(
    environment, undisturbed, folder, tmp_path
):
    made = tmp_path / "map"
    command = [sys.executable, "-m", "lottery_jax.data.prepare", "shapes"]
    command += ["--from", str(folder), "--side", str(SIDE), "--into", str(made)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CMYK" in done.stdout and "grey" in done.stdout
    sets = [data.stream(folder, side=SIDE), data.stream(made)]
    for split in ("train", "test"):
        whole = [own.arrays[split]["image"].examples for own in sets]
        assert_same(*(streams.read(own, np.arange(len(own))) for own in whole))
    run = tmp_path / "run"
    finish(environment, study(made), run)
    found = [records.load(one / "results.nc") for one in (run, undisturbed)]
    assert_same(*map(bits, found))
    for path in undisturbed.glob("replicas-*/tickets/*/*"):
        one, two = (
            tickets.load(own) for own in (path, run / path.relative_to(undisturbed))
        )
        assert_same(one[:3], two[:3])


# --- damage ---------------------------------------------------------------------------


def stopped(process):
    """What a command says that has stopped in its own words."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    return err


@pytest.fixture
def copy(folder, tmp_path):
    return pathlib.Path(shutil.copytree(folder, tmp_path / "shapes"))


def test_a_truncated_image_stops_it_by_name_or_is_replaced_if_asked_for(
    environment, undisturbed, copy, tmp_path
):
    # A test image, which is read at the end of a level.
    file = sorted((copy / "val").rglob("*.JPEG"))[3]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run = tmp_path / "run"
    err = stopped(start(environment, study(copy, DECODED), run))
    assert str(file) in err and "truncated" in err
    assert not (run / "results.nc").exists()
    where = run / "replicas-000-001" / "checkpoints"
    assert list(where.rglob("manifest.json")), "nothing is kept"

    skipping = tmp_path / "skipping"
    finish(environment, study(copy, DECODED, "--skip-corrupt"), skipping)
    found = records.load(skipping / "results.nc")
    (pair,) = json.loads(found.attrs["examples_replaced"]).items()
    other = sorted((copy / "val").rglob("*.JPEG"))[4]
    assert pair == (str(file), str(other))
    assert_same(
        found["validation_error"].values,
        records.load(undisturbed / "results.nc")["validation_error"].values,
    )


def test_files_that_vanish_stop_it_and_back_again_it_goes_on(
    environment, undisturbed, copy, folder, tmp_path
):
    # Of the folder itself: another one would be another study.
    run, command = tmp_path / "run", study(folder, DECODED)
    process = start(environment, command, run)
    while lines(run) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    away = folder.with_name("away")
    folder.rename(away)
    try:
        err = stopped(process)
    finally:
        away.rename(folder)
    assert f"{folder}/" in err and "tried 4 times" in err
    assert not (run / "results.nc").exists()
    assert checkpoints.latest(run / "replicas-000-001" / "checkpoints") is not None
    assert "continuing at level" in finish(environment, command, run)
    same(run, undisturbed)


def test_corrupt_images_are_skipped_only_where_they_are_decoded(tmp_path):
    from experiments import recipes

    made = data.maps.write(
        {"train": [(np.zeros((4, 4, 3), np.uint8), 0)]}, tmp_path, side=4
    )
    for source in ("mnist1d", str(made)):
        recipe = recipes.Recipe(data=source, skip_corrupt=True)
        with pytest.raises(ValueError, match="skip_corrupt=True; it must be False"):
            recipes.make_task(recipe)
