"""Checkpoints: bits come back, damage is noticed, and a kill at any instant is harmless."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lottery_jax
from lottery_jax import disk
from lottery_jax.storage import checkpoints


class State(NamedTuple):
    params: dict
    opt_state: tuple
    mask: dict
    key: jax.Array
    empty: tuple = ()


def data(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    return jax.random.key_data(leaf) if is_key else leaf


def bits(leaf):
    array = np.asarray(data(leaf))
    return type(leaf), array.dtype.name, array.shape, array.tobytes()


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
        assert bits(a) == bits(b)


def some_state():
    params = {
        "w": jnp.array([[1.5, -0.0], [jnp.nan, jnp.inf]]),
        "b": jnp.array([1e-45, -1.0], jnp.bfloat16),
        "none": jnp.zeros((0, 3)),
    }
    mask = jax.tree.map(lambda p: p > 1, params)
    opt_state = optax.adam(1e-3).init(params)
    return State(params, opt_state, mask, jax.random.key(3))


def small(index):
    return {"w": np.full((4, 5), index, np.float32), "n": np.arange(index)[:0]}


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def restore_without_a_warning(folder, like):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return checkpoints.restore(folder, like)


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


# Round trips


def test_training_state_comes_back_to_the_bit(tmp_path):
    state = some_state()
    metadata = {"chunk": 4, "devices": [1, 2], "precision": None}
    checkpoints.save(tmp_path, state, metadata, index=3)
    tree, found = checkpoints.restore(tmp_path, state)
    assert_same(tree, state)
    assert found == metadata
    assert checkpoints.latest(tmp_path) == 3


@pytest.mark.parametrize(
    "dtype",
    [
        *("bool", "int8", "uint16", "int64", "float16", "bfloat16", "float64"),
        *("complex64", "float8_e4m3fn", "int4"),
    ],
)
def test_numpy_leaves_of_any_dtype(tmp_path, dtype):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2, (3, 5, 2)).astype(
        np.dtype(getattr(ml_dtypes, dtype, dtype))
    )
    tree = {
        "x": array,
        "transposed": array.T,
        "scalar": array[0, 0, 0],
        "flat": array[0],
    }
    checkpoints.save(tmp_path, tree)
    found, metadata = checkpoints.restore(tmp_path, tree)
    assert_same(found, tree)
    assert metadata == {}


def test_arbitrary_bits(tmp_path):
    words = np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32)
    tree = {"x": words.view(np.float32), "y": jnp.asarray(words.view(np.float32))}
    checkpoints.save(tmp_path, tree)
    assert_same(checkpoints.restore(tmp_path, tree)[0], tree)


@pytest.mark.parametrize("tree", [(), {}, None, {"a": None}, [np.zeros((0, 2))], 1.5])
def test_trees_with_little_in_them(tmp_path, tree):
    checkpoints.save(tmp_path, tree)
    assert_same(checkpoints.restore(tmp_path, tree)[0], tree)


def test_python_numbers_and_batched_keys(tmp_path):
    tree = {
        "step": 7,
        "lr": 0.1,
        "done": True,
        "keys": jax.random.split(jax.random.key(0, impl="rbg"), (2, 3)),
    }
    checkpoints.save(tmp_path, tree)
    found, _ = checkpoints.restore(tmp_path, tree)
    assert_same(found, tree)
    assert [type(found[k]) for k in ("step", "lr", "done")] == [int, float, bool]
    assert jax.random.key_impl(found["keys"]) == "rbg"


def test_the_template_decides_the_kind_of_leaf(tmp_path):
    checkpoints.save(tmp_path, {"x": jnp.arange(3.0), "k": jax.random.key(1)})
    like = {"x": np.zeros(3, np.float32), "k": jax.random.key(0)}
    assert type(checkpoints.restore(tmp_path, like)[0]["x"]) is np.ndarray
    shapes = jax.eval_shape(lambda: {"x": jnp.zeros(3), "k": jax.random.key(0)})
    tree, _ = checkpoints.restore(tmp_path, shapes)
    assert_same(tree, {"x": jnp.arange(3.0), "k": jax.random.key(1)})


def test_sharded_over_two_devices_and_back_to_one(tmp_path):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("r",))
    two = NamedSharding(mesh, PartitionSpec("r"))
    state = {
        "w": jnp.arange(12.0).reshape(4, 3),
        "k": jax.random.split(jax.random.key(0), 4),
    }
    sharded = jax.device_put(state, two)
    checkpoints.save(tmp_path, sharded)
    for like in (sharded, jax.device_put(state, jax.devices()[1]), state):
        found, _ = checkpoints.restore(tmp_path, like)
        assert_same(found, state)
        for leaf, template in zip(jax.tree.leaves(found), jax.tree.leaves(like)):
            assert leaf.sharding == template.sharding
            assert leaf.committed == template.committed


def test_restoring_does_not_need_the_templates_values(tmp_path):
    state = {"w": jnp.arange(3.0)}
    checkpoints.save(tmp_path, state)
    state["w"].delete()
    assert_same(checkpoints.restore(tmp_path, state)[0], {"w": jnp.arange(3.0)})


# What is kept


def test_nothing_yet(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert checkpoints.restore(folder, small(0)) is None
        assert checkpoints.latest(folder) is None


def test_the_newest_two_are_kept(tmp_path):
    for index in (0, 1, 5, 6, 100):
        path = checkpoints.save(tmp_path, small(index), {"index": index}, index=index)
        assert path.name == f"{index:08d}"
        tree, metadata = checkpoints.restore(tmp_path, small(0))
        assert_same(tree, small(index))
        assert metadata == {"index": index}
    assert sorted(os.listdir(tmp_path)) == ["00000006", "00000100"]


@pytest.mark.parametrize("index", [4, 5])
def test_going_back_is_refused(tmp_path, index):
    checkpoints.save(tmp_path, small(5), index=5)
    with pytest.raises(
        ValueError, match=f"index={index}; it must be 6 or more: .*ete checkpoint 5"
    ):
        checkpoints.save(tmp_path, small(index), index=index)


def test_a_run_that_fell_back_replaces_what_was_damaged(tmp_path):
    for index in (0, 1, 2, 3):
        checkpoints.save(tmp_path, small(index), index=index)
    flip(tmp_path / "00000003" / "metadata.json", 5)
    checkpoints.save(tmp_path, small(33), index=3)
    assert sorted(os.listdir(tmp_path)) == ["00000002", "00000003"]
    assert_same(checkpoints.restore(tmp_path, small(0))[0], small(33))


def test_a_damaged_one_does_not_count_as_kept(tmp_path):
    for index in (0, 1, 2):
        checkpoints.save(tmp_path, small(index), index=index)
    flip(tmp_path / "00000002" / "metadata.json", 5)
    checkpoints.save(tmp_path, small(3), index=3)
    flip(tmp_path / "00000003" / "metadata.json", 5)
    with pytest.warns(RuntimeWarning, match="00000003"):
        assert_same(checkpoints.restore(tmp_path, small(0))[0], small(1))


def test_without_an_index_it_is_the_next_one_and_nothing_old_is_read(
    tmp_path, monkeypatch
):
    names = [checkpoints.save(tmp_path, small(i)).name for i in range(3)]
    assert names == ["00000001", "00000002", "00000003"]
    flip(tmp_path / "00000003" / "metadata.json", 5)
    read = []
    problems = checkpoints._problems
    monkeypatch.setattr(
        checkpoints, "_problems", lambda path: read.append(path.name) or problems(path)
    )
    assert checkpoints.save(tmp_path, small(9)).name == "00000004"
    assert read == ["00000003", "00000002"]  # which one to keep beside the new
    assert_same(checkpoints.restore(tmp_path, small(0))[0], small(9))


def test_temporary_folders_of_the_dead_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    names = {
        f".tmp-{dead.pid}-0123abcd-{host}": False,
        f".tmp-{os.getpid()}-0123abcd-{host}": False,
        f".tmp-{os.getppid()}-0123abcd-{host}": True,
        ".tmp-1-0123abcd-another-host": True,
        ".tmp-1-4567abcd-another-host": False,
        "notes.txt": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    week_ago = time.time() - 7 * 24 * 3600
    os.utime(tmp_path / ".tmp-1-4567abcd-another-host", (week_ago, week_ago))
    checkpoints.save(tmp_path, small(0), index=0)
    expected = {name for name, stays in names.items() if stays} | {"00000000"}
    assert set(os.listdir(tmp_path)) == expected


# Damage


def damages(path):
    size = path.stat().st_size
    yield "missing", path.unlink
    for length in (0, size // 2, size - 1):
        yield f"cut to {length}", lambda n=length: os.truncate(path, n)
    for position in (0, size // 3, size // 2, size - 1):
        yield f"flipped at {position}", lambda i=position: flip(path, i)
    yield "longer", lambda: path.write_bytes(path.read_bytes() + b" ")


def test_every_damage_to_every_file_is_noticed(tmp_path):
    folder = tmp_path / "run"
    for index in (0, 1):
        checkpoints.save(folder, small(index), {"index": index}, index=index)
    shutil.copytree(folder, tmp_path / "whole")
    names = [p.relative_to(folder) for p in files_of(folder / "00000001")]
    assert {p.name for p in names} == {"leaves.bin", "metadata.json", "manifest.json"}
    for name in names:
        for kind, damage in damages(folder / name):
            damage()
            with pytest.warns(RuntimeWarning) as caught:
                tree, metadata = checkpoints.restore(folder, small(0))
            assert str(name) in str(caught[0].message), kind
            assert metadata == {"index": 0}
            assert_same(tree, small(0))
            shutil.copy(tmp_path / "whole" / name, folder / name)
    assert checkpoints.restore(folder, small(0))[1] == {"index": 1}


def test_if_all_are_damaged_nothing_starts_anew(tmp_path):
    for index in (0, 1):
        checkpoints.save(tmp_path, small(index), index=index)
    flip(tmp_path / "00000000" / "leaves.bin", 3)
    (tmp_path / "00000001" / "manifest.json").unlink()
    for call in (
        lambda: checkpoints.restore(tmp_path, small(0)),
        lambda: checkpoints.latest(tmp_path),
    ):
        with pytest.raises(checkpoints.CorruptCheckpointError) as caught:
            call()
        message = str(caught.value)
        assert "00000000/leaves.bin" in message
        assert "00000001/manifest.json" in message
        assert "delete" in message


# Kills and full disks


class Killed(BaseException):
    """What a process does after it was killed: nothing."""


def test_a_kill_at_any_step_leaves_the_one_before(tmp_path, monkeypatch):
    """Every change to the disk, in turn, is the last one."""

    def attempt(folder, allowed):
        done = 0

        def dying(function):
            def call(*args, **kwargs):
                nonlocal done
                if done == allowed:
                    raise Killed
                done += 1
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync_folder", dying(disk.sync_folder))
            patch.setattr(disk, "_delete", dying(disk._delete))
            patch.setattr(checkpoints, "_write", dying(checkpoints._write))
            patch.setattr(os, "fsync", dying(os.fsync))
            patch.setattr(os, "rename", dying(os.rename))
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                checkpoints.save(folder, small(2), {"index": 2}, index=2)
            except Killed:
                return False
        return True

    results = []
    for allowed in range(100):
        folder = tmp_path / str(allowed)
        for index in (0, 1):
            checkpoints.save(folder, small(index), {"index": index}, index=index)
        survived = attempt(folder, allowed)
        monkeypatch.setattr(disk, "_OURS", f"{allowed:08x}")  # as in a new process
        tree, metadata = restore_without_a_warning(folder, small(0))
        assert_same(tree, small(metadata["index"]))
        results.append(metadata["index"])
        next_index = metadata["index"] + 1
        checkpoints.save(
            folder, small(next_index), {"index": next_index}, index=next_index
        )
        assert len(os.listdir(folder)) == checkpoints.KEEP
        if survived:
            break
    assert survived
    assert results == sorted(results) and set(results) == {1, 2}


SCRIPT = """
import itertools, sys
import numpy as np
from lottery_jax import checkpoints
for i in itertools.count():
    tree = {"w": np.full(200_000, i, np.float32), "i": np.array(i)}
    checkpoints.save(sys.argv[1], tree, {"index": i}, index=i)
    print(i, flush=True)
"""


@pytest.mark.slow
def test_kill_9_of_a_process_that_saves(tmp_path):
    root = str(pathlib.Path(lottery_jax.__path__[0]).parent)
    runs = []
    for name in "abc":
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name)]
        environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
    for i, (name, run) in enumerate(zip("abc", runs)):
        for _ in range(5):
            said = run.stdout.readline()
        time.sleep(0.007 * i)
        run.send_signal(signal.SIGKILL)
        said = (run.stdout.read().split() or [said])[-1]
        assert run.wait() == -signal.SIGKILL
        run.stdout.close()
        like = {"w": np.zeros(200_000, np.float32), "i": np.array(0)}
        tree, metadata = restore_without_a_warning(tmp_path / name, like)
        index = metadata["index"]
        assert index >= int(said) >= 4
        assert tree["i"] == index and (tree["w"] == index).all()
        checkpoints.save(tmp_path / name, tree, index=index + 1)
        assert sorted(os.listdir(tmp_path / name)) == [
            f"{index:08d}",
            f"{index + 1:08d}",
        ]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    large = {"w": np.random.default_rng(0).random(99_999)}
    checkpoints.save(tmp_path, large, index=0)
    before = {p: p.read_bytes() for p in files_of(tmp_path)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            OSError, match=f"cannot write checkpoint 1 to {tmp_path}"
        ) as caught:
            checkpoints.save(tmp_path, large, index=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert {p: p.read_bytes() for p in files_of(tmp_path)} == before
    assert os.listdir(tmp_path) == ["00000000"]
    assert_same(checkpoints.restore(tmp_path, large)[0], large)


# What is refused


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"w": np.zeros((4, 5), np.float32)},
            r"like lacks \[\"\['n'\]\"\] and has nothing too much",
        ),
        (
            {**small(0), "v": np.zeros(1)},
            r"lacks nothing and has .*'v'.*; it must have the leaves of .*00000000",
        ),
        (
            {**small(0), "w": np.zeros((5, 4), np.float32)},
            r"like\['w'\]=float32\[5, 4\]; it must be float32\[4, 5\], as in .*0000",
        ),
        ({**small(0), "w": np.zeros((4, 5))}, r"like\['w'\]=float64"),
        ({**small(0), "w": "text"}, r"like\['w'\]=str\[\]"),
        (
            {**small(0), "w": jax.ShapeDtypeStruct((4, 5), jnp.int32)},
            r"like\['w'\]=int32",
        ),
    ],
)
def test_a_like_that_differs_is_refused(tmp_path, like, message):
    checkpoints.save(tmp_path, small(0), index=0)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.restore(tmp_path, like)
    assert not isinstance(caught.value, checkpoints.CorruptCheckpointError)


@pytest.mark.parametrize(
    ("index", "tree", "metadata", "message"),
    [
        (-1, {}, {}, "index=-1; it must be between 0 and 99999999"),
        (10**8, {}, {}, "index=100000000"),
        (True, {}, {}, "index=True; it must be a whole number"),
        (1.0, {}, {}, "index=1.0"),
        (0, {"a": [np.zeros(1), "text"]}, {}, r"tree\['a'\]\[1\]=str of"),
        (0, {"f": print}, {}, r"tree\['f'\]=builtin_function_or_method"),
        (0, {}, {"a": {1, 2}}, r"metadata\['a'\]=\{1, 2\}; it must be what JSON"),
        (0, {}, {1: 2}, "it must be named by text"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, index, tree, metadata, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(tmp_path, tree, metadata, index=index)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", [3, 5])
def test_another_format_is_refused_by_whoever_asks(tmp_path, monkeypatch, other):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", other)
        path = checkpoints.save(tmp_path, small(0))
    for call in (
        lambda: checkpoints.restore(tmp_path, small(0)),
        lambda: checkpoints.metadata(tmp_path),
        lambda: checkpoints.latest(tmp_path),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        message = str(caught.value)
        assert f"{path}: format={other}; it must be 4" in message
        assert f"delete {tmp_path} to start anew" in message
