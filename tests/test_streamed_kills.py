"""A study whose examples are read while it trains, killed at random instants."""

import subprocess
import time

import numpy as np
import pytest
from killed_runs import environment as environment
from killed_runs import finish, lines, same, start
from killed_runs import settings as settings
from streamed_bits import assert_same, bits

from experiments import pictures
from lottery_jax import imp, records, streams
from lottery_jax.data import maps

pytestmark = pytest.mark.slow

pytest.importorskip("xarray")
pytest.importorskip("PIL")

KILLS = 5
LINES = 150  # of metrics: three levels of fifty validations


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The command of a study of a map, without its folder."""
    rng = np.random.default_rng(0)
    items = {
        split: list(
            zip(
                rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8),
                rng.integers(0, 3, number).tolist(),
            )
        )
        for split, number in (("train", 230), ("test", 50))
    }
    folder = maps.write(items, tmp_path_factory.mktemp("maps") / "made", side=8)
    return (
        f"mnist1d --data {folder} --validation 30 --model mlp-8 --batch-size 20 "
        "--steps 200it --rewind-step 2it --validate-every 4 --levels 2 --replicas 2 "
        "--arms ticket reinit small_dense --level-optimizer rewind --schedule cosine "
        "--checkpoint-seconds 0 --window-steps 3"
    )


@pytest.fixture(scope="module")
def undisturbed(environment, study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(environment, study, folder)
    assert lines(folder) == LINES
    return folder


def test_killed_at_random_instants_it_ends_in_the_same_bits(
    environment, study, undisturbed, tmp_path
):
    # Once more, now that all is compiled: when does it begin, and how long does it take?
    timed = tmp_path / "timed"
    first = time.monotonic()
    process = start(environment, study, timed)
    while not lines(timed):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    begin = time.monotonic() - first
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    length = time.monotonic() - first - begin
    same(timed, undisturbed)

    rng = np.random.default_rng(19)
    seen, folders = [], 0
    while len(seen) < KILLS:
        # Whatever ends before it is killed is compared as well; another one begins.
        folder, folders = tmp_path / f"run-{folders}", folders + 1
        while len(seen) < KILLS:
            left = 1 - lines(folder) / LINES
            process = start(environment, study, folder)
            wait = begin + rng.uniform(-0.1 * begin, left * length)
            try:
                process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                seen.append(lines(folder))
            else:
                break
        finish(environment, study, folder)
        same(folder, undisturbed)
    # Not all of them at the start.
    assert any(0 < number < LINES for number in seen), seen


def test_it_ends_in_the_bits_of_examples_in_memory(
    environment, settings, study, undisturbed
):
    from experiments import imp as command

    cfg = command.EXPERIMENT.parse(study.split()).config
    setup = command.prepare(cfg)
    away = streams.streamed(setup.task.data)
    assert set(away) == {"train", "validation", "test"}
    arrays = {
        split: streams.read(own, np.arange(len(own))) for split, own in away.items()
    }
    task = setup.task._replace(data=arrays)
    own = imp.run(task, setup.tx, setup.plan, levels=2, replicas=2)
    found, stored = own.dataset(), records.load(undisturbed / "results.nc")
    # What the command adds, pictures of masks, is no result of the study.
    assert set(stored) - set(found) == {*pictures.NAMES}
    assert_same(bits(found), bits(stored[[*found]]))


def test_results_say_what_was_read(undisturbed):
    stored = records.load(undisturbed / "results.nc")
    said = stored.attrs
    # The validation split, 30 examples, for each of them; and what is trained on.
    assert said["examples_read"] > 30 * LINES
    assert 0 < said["seconds_waiting"] <= said["seconds_windows"]
