"""What a run leaves behind: identity, atomic files, checked results, the stream."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery_jax import disk
from lottery_jax.storage import records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(config=st.dictionaries(st.text(), JSON), data=st.data())
def test_identity_depends_on_names_and_values_alone(config, data):
    digits = records.identity(config, [])
    assert len(digits) == 8 and int(digits, 16) >= 0
    shuffled = dict(data.draw(st.permutations(list(config.items()))))
    assert records.identity(shuffled, []) == digits
    assert records.identity({**config, "ignored": 1}, {"ignored"}) == records.identity(
        config, {"ignored"}
    )
    assert records.identity({**config, "new field": 1}, []) != digits


def test_configuration_of_a_dataclass_is_what_its_json_reads_as():
    @dataclasses.dataclass(frozen=True)
    class Config:
        rates: tuple = (("head", 0.1),)
        name: str | None = None

    config = records.as_config(Config())
    assert config == {"rates": [["head", 0.1]], "name": None}
    assert json.loads(json.dumps(config)) == config


def test_a_claimed_folder_is_recognized_and_others_refused(tmp_path):
    folder = tmp_path / "a" / "run"
    records.claim_folder(folder, {"lr": 0.1, "levels": 3}, ["levels"])
    records.claim_folder(folder, {"lr": 0.1, "levels": 5}, ["levels"])
    assert records.read_config(folder) == {"lr": 0.1, "levels": 5}
    with pytest.raises(ValueError, match="lr: 0.1 there, 0.2 now") as refusal:
        records.claim_folder(folder, {"lr": 0.2, "levels": 3}, ["levels"])
    assert "levels" not in str(refusal.value)
    with pytest.raises(ValueError, match="momentum: None there, 0.9 now"):
        records.claim_folder(folder, {"lr": 0.1, "momentum": 0.9}, ["levels"])
    assert records.read_config(folder) == {"lr": 0.1, "levels": 5}


def test_a_folder_that_differs_in_everything_is_refused_in_few_lines(tmp_path):
    records.claim_folder(tmp_path, {f"old_{i}": i for i in range(20)}, [])
    with pytest.raises(ValueError) as refusal:
        records.claim_folder(tmp_path, {f"new_{i}": i for i in range(20)}, [])
    said = str(refusal.value)
    assert len(said.splitlines()) == 8 and "new_0: None there, 0 now" in said
    assert all(f"{when}_{i}" in said for when in ("old", "new") for i in range(20))


def test_one_changed_digit_of_a_configuration_is_noticed(tmp_path):
    records.claim_folder(tmp_path, {"lr": 0.1}, [])
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match=r"config.json is damaged.*choose another"):
        records.read_config(tmp_path)


def test_text_is_written_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    records.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*table.md: No space left"):
            records.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = f".tmp-{killed.pid}-0123abcd-{socket.gethostname()}"
    (tmp_path / left).write_text("half a table")
    records.write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_this_process_is_writing_is_left_alone(tmp_path):
    with disk.replacing(tmp_path / "a") as temporary:
        temporary.write_text("a")
        records.write_text(tmp_path / "b", "b")
        (tmp_path / "b").unlink()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a"]


def test_results_keep_bits_names_and_attributes(tmp_path):
    xarray = pytest.importorskip("xarray")
    random = np.random.default_rng(0)
    error = random.standard_normal((2, 3)).astype(np.float32)
    error[0, 1] = np.nan
    error[1, 2] = -0.0
    results = records.dataset(
        {
            "error": (("arm", "step"), error),
            "alive": (("arm",), np.array([1, 2**31 - 1], np.int32)),
            "step": (("step",), np.array([5, 10, 15], np.int32)),
        },
        {"arm": ["ticket", "reinit"]},
        {"versions": {"jax": "1"}, "exact": True, "note": "text", "steps": 15},
    )
    path = tmp_path / "deep" / "results.nc"
    records.save(path, results)
    found = records.load(path)
    assert found["error"].values.tobytes() == error.tobytes()
    assert found["alive"].dtype == np.int32
    assert found["step"].dims == ("step",) and "step" in found.coords
    assert found["arm"].values.tolist() == ["ticket", "reinit"]
    assert found.attrs["note"] == "text" and found.attrs["steps"] == 15
    assert json.loads(found.attrs["versions"]) == {"jax": "1"}
    assert json.loads(found.attrs["exact"]) is True
    with xarray.open_dataset(path, engine="h5netcdf") as plain:
        assert plain.load().identical(found)


def test_results_that_are_not_what_was_written_are_refused(tmp_path):
    pytest.importorskip("xarray")
    path = tmp_path / "results.nc"
    with pytest.raises(FileNotFoundError, match="no results at"):
        records.load(path)
    records.save(path, records.dataset({"x": (("a",), np.arange(9.0))}, {}, {}))
    assert records.intact(path)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + b"\0\0", b""):
        path.write_bytes(damaged)
        assert not records.intact(path)
        with pytest.raises(ValueError, match=r"results.nc is damaged"):
            records.load(path)
    path.write_bytes(content)
    assert records.intact(path)
    (tmp_path / "results.nc.sha256").unlink()
    assert not records.intact(path)


def test_environment_is_json_and_names_versions_commit_and_device():
    found = records.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"jax", "numpy", "python"} <= set(found["versions"])
    assert "cpu" in found["device"] or "gpu" in found["device"]
    assert found["git_commit"]


def test_stream_is_cut_at_a_moment_and_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.resume_stream(path, 0, 0)  # nothing there yet
    assert not path.exists()
    for level in range(3):
        for step in (10, 20):
            loss = np.array([step, np.nan], np.float32)
            records.append_stream(path, {"level": level, "step": step, "loss": loss})
    with open(path, "a") as file:
        file.write('{"level": 2, "st')  # cut off by a kill
    records.resume_stream(path, 1, 10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["level"], x["step"]) for x in lines] == [(0, 10), (0, 20), (1, 10)]
    assert lines[0]["loss"] == [10.0, None]
    records.append_stream(path, {"level": 1, "step": 20, "loss": np.inf})
    last = path.read_text().splitlines()[-1]
    assert json.loads(last) == {"level": 1, "step": 20, "loss": None}
