"""An address is no path: it is refused wherever a folder or a file is taken."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import lottery_jax as lj
from lottery_jax import (
    checkpoints,
    data,
    errors,
    imp,
    plots,
    pytorch,
    records,
    tickets,
)
from lottery_jax.execution import processes

ADDRESSES = ("gs://bucket/run", "s3://b/run", "file:///tmp/run", "hdfs://host:9000/run")

MASK = {"w": jnp.ones(2, bool)}
TICKET = tickets.Ticket(MASK, {"w": jnp.ones(2)}, {}, {})


def meet(folder):
    with processes.meet(folder):
        pass


DOORS = {
    "Where": lambda x: lj.Where(folder=x),
    "meet": meet,
    "ticket_path": lambda x: imp.ticket_path(x, "imp", 0, 0),
    "tickets.save": lambda x: tickets.save(x, TICKET),
    "tickets.load": tickets.load,
    "pytorch.read": pytorch.read,
    "pytorch.write": lambda x: pytorch.write(x, {}),
    "tickets.contents": tickets.contents,
    "checkpoints.save": lambda x: checkpoints.save(x, {"x": np.zeros(1)}),
    "checkpoints.restore": lambda x: checkpoints.restore(x, {"x": np.zeros(1)}),
    "checkpoints.metadata": checkpoints.metadata,
    "checkpoints.latest": checkpoints.latest,
    "claim_folder": lambda x: records.claim_folder(x, {}, ()),
    "read_config": records.read_config,
    "write_text": lambda x: records.write_text(x, ""),
    "resume_stream": lambda x: records.resume_stream(x, 0, 0),
    "append_stream": lambda x: records.append_stream(x, {}),
    "intact": records.intact,
    "plots.save": lambda x: plots.save(None, x),
    "data_dir": data.prepared.data_dir,
    "class_folders": data.folders.class_folders,
    "folders.splits": data.folders.splits,
    "maps.description": data.maps.description,
    "maps.open": lambda x: data.maps.open(x, "train"),
    "maps.check": data.maps.check,
    "maps.write": lambda x: data.maps.write({}, x, side=8),
}
"""Everything public that is given a path."""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("address", [*ADDRESSES, pathlib.Path(ADDRESSES[0])], ids=str)
def test_an_address_is_refused_and_nothing_is_made(
    door, address, tmp_path, monkeypatch
):
    if door.startswith("tickets."):
        pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        DOORS[door](address)
    said = f"={str(address)!r}; it must be a path on a mounted file system"
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["LOTTERY_JAX_CACHE", "TFDS_DATA_DIR"])
def test_so_is_one_in_the_environment(name, monkeypatch):
    monkeypatch.setenv(name, "gs://bucket")
    ask = {"LOTTERY_JAX_CACHE": data.cache.cache_dir}.get(name, data.prepared.data_dir)
    with pytest.raises(ValueError, match="='gs://bucket'; it must be a path on a"):
        ask()


def test_paths_are_taken():
    for path in (
        "run",
        "/tmp/run",
        "./gs:/run",
        "C:/run",
        "a:b",
        "results/x=1,y:2/run",
    ):
        assert errors.on_disk("folder", path) == pathlib.Path(path)


@pytest.mark.parametrize("flags", [["--out"], ["--level", "1", "--from"]])
def test_the_command_line_refuses_it(flags, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")
    pytest.importorskip("xarray")
    from experiments.all import EXPERIMENTS

    monkeypatch.chdir(tmp_path)
    for experiment in EXPERIMENTS:
        try:
            status = experiment.main([*flags, "gs://bucket/run"])
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        assert "='gs://bucket/run'; it must be a path on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_made_is_refused_first(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("tyro")
    pytest.importorskip("xarray")
    from experiments import imp

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for out in ("file", "file/run", "file/run/deeper"):
        assert imp.main(["--out", out]) == 2
        said = f"out='{out}'; it must be a folder that can be written; file is a file"
        assert said in capsys.readouterr().err
    # Asked of the system: root may write to whatever is not mounted read-only.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert imp.main(["--out", "new/run"]) == 2
    assert "written; . is read-only" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
