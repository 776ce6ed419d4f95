"""The benchmark of an accelerator: its cells, its arithmetic, and how it gets there."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import lottery_jax as lj
from benchmarks import pack, run, unpack
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cells, ours, page
from benchmarks.gpu.cells import OURS, PEERS, Cell
from lottery_jax.data import prepared

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ONE = Cell("ours", "LeNet-300-100", 1, "", "tf32")


# --- what is measured and compared ----------------------------------------------------


def test_cells_are_told_apart_by_name_and_can_be_built():
    every = [*OURS, *PEERS]
    assert len({cell.name for cell in every}) == len(every)
    for cell in every:
        for quick in (False, True):
            sizes = cells.sizes_of(cell, quick)
            lj.models.make(sizes.model, 10)
            assert sizes.convolution in (None, *lj.convolution.METHODS, *_streams(cell))
            assert sizes.replicas <= cell.replicas


def _streams(cell):
    return (cell.way,) if cell.side == "PyTorch" else ()


def test_every_goal_compares_cells_that_are_measured():
    goals = cells.goals()
    assert len({goal.label for goal in goals}) == len(goals)
    for goal in goals:
        assert goal.of and goal.to
        assert {*goal.of, *goal.to} <= {*OURS, *PEERS}
    assert sum(goal.target is not None for goal in goals) == 7


def _rates(rates):
    return {cell.name: {"rate": rate} for cell, rate in rates.items()}


def test_the_best_of_a_side_is_compared_and_what_is_missing_is_left_out():
    nine = [
        Cell("ours", "ResNet-20", 9, way, "bf16 activations")
        for way in ("tiles", "grouped")
    ]
    wide = Cell("ours", "ResNet-20", 1, "loop", "bf16 activations", cells.WIDE)
    graph = Cell("PyTorch", "ResNet-20", 1, "graph", "bf16 activations")
    streams = Cell("PyTorch", "ResNet-20", 9, "9 streams", "bf16 activations")
    rates = {nine[0]: 1800.0, nine[1]: 400.0, wide: 150.0, graph: 450.0, streams: 1e3}
    found = {one.label: one for one in cells.compare(_rates(rates))}
    peer = found[
        "ResNet-20, 9 replicas, bf16 activations, against PyTorch's best arrangement"
    ]
    assert (peer.of, peer.to) == (nine[0].name, streams.name)
    assert peer.value == 1.8 and peer.reached is True and peer.target == ">= 1.5"
    # One step at nine times the batch is the work of nine.
    (label,) = (label for label in found if "batch 1,152" in label)
    assert label.endswith("plain convolutions")
    assert found[label].value == pytest.approx(1800 / (9 * 150))
    assert not [label for label in found if "LeNet" in label or "tf32" in label]


def test_the_floor_grows_with_replicas_and_shrinks_with_activations():
    one = cells.sizes_of(Cell("ours", "ResNet-20", 1, "", "tf32"), quick=True)
    narrow = one._replace(activations="bfloat16")
    assert ours.floor(one._replace(replicas=9, convolution="loop")) == (
        9 * ours.floor(one)
    )
    # Weights and their optimizer stay as wide as they are.
    assert 0.5 < ours.floor(narrow) / ours.floor(one) < 0.6


def test_kernels_are_told_apart():
    kinds = {
        "sm80_xmma_fprop_implicit_gemm_tf32": "convolutions",
        "nvjet_tst_128x64": "products",
        "input_transpose_fusion_3": "transposes",
        "input_reduce_fusion": "reductions",
        "loop_gather_fusion": "gathers",
        "loop_add_fusion": "other fusions",
        "MemcpyD2D": "copies",
        "xyz": "other",
    }
    assert {name: ours.kind(name) for name in kinds} == kinds


# --- our process ----------------------------------------------------------------------


class Lowered:
    """A program that is not there; what happens to it is written down."""

    def __init__(self, sizes, events):
        self.sizes, self.events = sizes, events
        assert threading.current_thread() is threading.main_thread()
        events.append("traced")

    def compile(self):
        assert threading.current_thread() is not threading.main_thread()
        self.events.append("compiling")
        time.sleep(0.05)
        self.events.append("compiled")
        if self.sizes.replicas == 3:
            raise ValueError("no")
        return "program"


@pytest.fixture
def events(monkeypatch):
    """What happens, in turn, to programs that are not there."""
    found = []

    def timed(sizes, program, reference, quick):
        found.append("timed")
        if sizes.activations == "bfloat16":
            raise RuntimeError("RESOURCE_EXHAUSTED: of memory")
        return {"rate": sizes.replicas, "reference": reference}

    monkeypatch.setattr(ours, "lower", lambda sizes: Lowered(sizes, found))
    monkeypatch.setattr(ours, "timed", timed)
    monkeypatch.setattr(ours, "floor", lambda sizes: 1.0)
    return found


def test_a_cell_that_fails_says_so_and_the_others_go_on(events, monkeypatch):
    asked = [ONE, ONE._replace(replicas=16), ONE._replace(numbers="bf16 activations")]
    asked.append(ONE._replace(numbers="bf16 operands"))
    found = list(ours.waves(asked, 60, quick=True, size=8))
    assert [cell for cell, _ in found] == asked
    good, bad, full, last = (result for _, result in found)
    assert good["rate"] == 1 and "error text" not in good
    assert bad["error text"] == "ValueError: no" and "rate" not in bad
    assert full["error text"] == "out of memory" and last["rate"] == 1

    def lower(sizes):
        raise ValueError("nor here")

    monkeypatch.setattr(ours, "lower", lower)
    ((_, untraced),) = ours.waves(asked[:1], 60, quick=True, size=8)
    assert untraced["error text"] == "ValueError: nor here"
    late = list(ours.waves(asked, -1, quick=True, size=8))
    assert {own["error text"] for _, own in late} == {"no time was left"}


def test_cells_are_traced_in_turn_compiled_beside_that_and_timed_alone(
    events, monkeypatch
):
    numbers = ("tf32", "bf16 operands", "float32")
    asked = [ONE._replace(numbers=own) for own in numbers]
    found = list(ours.waves(asked, 60, quick=True, size=2))
    assert [cell for cell, _ in found] == asked
    # One in float32 is what all are compared with: it is made once, and is a cell here.
    assert all(own["reference"] == "program" for _, own in found)
    first = events.index("timed")
    assert [events.count(what) for what in ("traced", "compiled", "timed")] == [3] * 3
    assert events[first:] == ["timed"] * 3
    # A wave is full when tracing has taken its time.
    events.clear()
    monkeypatch.setattr(ours, "TRACING", -1.0)
    list(ours.waves(asked, 60, quick=True, size=3))
    assert [e for e in events if e in ("traced", "timed")] == [
        *("traced", "traced", "timed"),
        *("traced", "timed", "timed"),
    ]


def test_rounding_shows_in_the_gradient_and_batching_does_not():
    float32 = ONE._replace(replicas=2, numbers="float32")
    programs = {
        cell: ours.lower(cells.sizes_of(cell, True)).compile()
        for cell in (float32, ours.reference_of(float32), ONE)
    }
    errors = {
        cell: ours.timed(
            cells.sizes_of(cell, True),
            programs[cell],
            programs[ours.reference_of(cell)],
            quick=True,
        )
        for cell in (float32, ONE)
    }
    assert errors[float32]["error"] < 1e-6
    assert 1e-5 < errors[ONE]["error"] < 1e-2
    assert errors[float32]["rate"] > 0


# --- the command ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_measures_stores_and_prints(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu", "--quick", "--minutes", "5"),
            *("--out", str(tmp_path), "--only", "LeNet,1 replica,tf32"),
        ],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["quick"] and found["rulers"]["copied bytes per second"] > 0
    own = found["cells"][ONE.name]
    assert own["rate"] > 0 and 0 < own["error"] < 1e-2 and own["bytes"] > own["floor"]
    (why,) = found["remarks"]
    assert why.startswith("peers: PyTorch")
    assert page.markdown(found) in done.stdout
    assert "Quick mode" in done.stdout and why in done.stdout


def test_a_process_that_dies_is_started_again_behind_what_it_answered(
    tmp_path, monkeypatch
):
    asked = []

    def answers(side, seconds, limit, options, log):
        skip, wave = (options[options.index(o) + 1] for o in STARTED)
        asked.append((skip, wave))
        done = {"cell": "", "rate": 1.0, "ms": 1.0, "compiling": 1.0}
        if not skip:
            yield done | {"cell": OURS[2].name}
            yield done | {"cell": OURS[0].name}
        if skip != "0,1,2":
            yield {"failed": "ours: it ended with -11", "died": True}
        else:
            yield done | {"cell": OURS[3].name}

    monkeypatch.setattr(command, "answers", answers)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    found = command.measure(60, True, "", tmp_path)
    # The second cell is what it dies of: alone it is left out.
    assert asked == [("", "8"), ("0,2", "2"), ("0,2", "1"), ("0,1,2", "1")]
    assert list(found["cells"]) == [OURS[i].name for i in (2, 0, 3)]
    assert json.loads((tmp_path / "gpu.json").read_text()) == found


STARTED = ("--skip", "--wave")


def test_a_process_that_says_nothing_is_ended(tmp_path, monkeypatch):
    script = "import sys, time; print('[1]'); print('x', flush=True); time.sleep(60)"
    monkeypatch.setattr(command, "PATIENCE", 0.1)
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{script}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(fake))
    found = list(command.answers("ours", 1, 60, [], tmp_path / "log"))
    assert found[0] == [1] and found[1]["died"]
    assert found[1]["failed"].startswith("ours: it ended with -9")


FOUND = {
    "date": "2026-01-02T03:04:05+00:00",
    "driver": "a device",
    "versions": {"jax": "1"},
    "quick": False,
    "seconds": 300.0,
    "rulers": {"copied bytes per second": 4e12, "bf16 operations per second": 7e14},
    "cells": {
        OURS[0].name: {
            "rate": 900.0,
            "ms": 10.0,
            "busy": 9.5,
            "kernels": 400,
            "bytes": 26e9,
            "floor": 13e9,
            "error": 2e-4,
            "compiling": 12.3,
            "kinds": {"products": 6.0, "gathers": 3.5},
        },
        OURS[1].name: {"error text": "out of memory"},
        PEERS[0].name: {"rate": 450.0, "ms": 20.0, "compiling": 2.0},
    },
    "remarks": ["ours: it ended with -9\nmore"],
}


def test_the_page_shows_cells_goals_and_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "new.json").write_text(json.dumps(FOUND))
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.main(["--render", str(tmp_path / "new.json")]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "against PyTorch's best arrangement | **2** | >= 1.5 | yes |" in text
    row = "| 9 | tiles | tf32 | 900 | 10 | 9.5 | 400 | 26 | 13 | 3.25 | 2.0e-04 | 12 |"
    assert row in text
    assert "| 9 | PyTorch: 9 streams | tf32 | 450 | 20 | - |" in text
    assert f"- out of memory: {OURS[1].name}\n" in text
    assert "- ours: it ended with -9\n" in text
    assert "copies 4 TB/s" in text and "a device; jax 1; took 300 s." in text
    assert f"- not asked for: {OURS[2].name}; " in text
    assert "Measured in several calls" not in text
    assert "Open, because" in text


def test_calls_on_one_device_become_one_result(tmp_path, monkeypatch, capsys):
    added = {
        OURS[0].name: {"error text": "no time was left"},
        OURS[1].name: {"rate": 1200.0, "ms": 7.5, "compiling": 9.0},
    }
    later = FOUND | {"date": "2026-01-02T04:00:00+00:00", "cells": added}
    found = command.join([FOUND, later | {"remarks": []}])
    assert found["cells"][OURS[0].name] == FOUND["cells"][OURS[0].name] | {
        "date": FOUND["date"]
    }
    assert found["cells"][OURS[1].name] == added[OURS[1].name] | {"date": later["date"]}
    assert found["seconds"] == 600 and found["remarks"] == FOUND["remarks"]
    # What was joined can be joined again.
    assert command.join([found, FOUND])["cells"] == found["cells"]
    text = page.markdown(found)
    assert f"- {later['date']}: 1 cells (ours ResNet-20)" in text
    assert f"- {FOUND['date']}: 2 cells (ours ResNet-20, PyTorch ResNet-20)" in text
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, own in zip(paths, (FOUND, later | {"driver": "another device"})):
        path.write_text(json.dumps(own))
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        command.main(["--render", *map(str, paths)])
    assert "driver='another device'" in capsys.readouterr().err
    other = later | {"rulers": {"device": "a TPU"}}
    with pytest.raises(ValueError, match="device='a TPU' in .*; it must be None"):
        command.join([FOUND, other])
    with pytest.raises(ValueError, match="versions=.*it must be"):
        command.join([FOUND, later | {"versions": {"jax": "2"}}])
    assert not (tmp_path / "docs").exists()


# --- the peers ------------------------------------------------------------------------


def _peers():
    pytest.importorskip("torch")
    from benchmarks.gpu import peers

    return peers


@pytest.mark.parametrize("way", ["graph", "batched", "2 streams"])
def test_a_peer_trains_its_masks_and_is_timed(way):
    peers = _peers()
    cell = Cell("PyTorch", "LeNet-300-100", 2, way, "bf16 activations")
    sizes = cells.sizes_of(cell, quick=True)
    data = peers.Vectors(sizes)
    found = peers.measure(cell, sizes, data, quick=True)
    assert found["rate"] > 0 and 1e-3 < found["error"] < 0.2
    trained = peers.make(sizes, data, way)
    assert len(trained) == (1 if way == "batched" else 2)
    before = [kernel.detach().clone() for kernel in trained[0].kernels]
    trained[0].step()
    for kernel, mask, old in zip(trained[0].kernels, trained[0].masks, before):
        assert not kernel[mask == 0].any()
        assert (kernel != old)[mask == 1].any()


def test_a_peer_with_convolutions_is_the_network_of_ours():
    peers = _peers()
    for name in ("resnet-8-4", "vgg-11-4", "resnet-20", "vgg-16"):
        theirs = sum(p.numel() for p in peers.network(name).parameters())
        network = lj.models.make(name, 10)
        shapes = ours.jax.eval_shape(
            network.init, ours.jax.random.key(0), np.zeros((1, 32, 32, 3), "f4")
        )
        own = sum(p.size for p in ours.jax.tree.leaves(shapes["params"]))
        assert theirs == own


def test_stacked_perceptrons_are_several_of_them():
    peers = _peers()
    sizes = cells.sizes_of(ONE, quick=True)._replace(examples=1)
    data = peers.Vectors(sizes)  # one example: all batches are the same
    one, three = (peers.Stacked(sizes, data, number) for number in (1, 3))
    for single, stack in zip(one.params, three.params):
        stack.data.copy_(single.data.expand(stack.shape))
    assert three.new_loss().item() == pytest.approx(3 * one.new_loss().item(), rel=1e-5)


# --- a machine without a network ------------------------------------------------------


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Where a packed folder lies: noise as code, and a data set of two images."""

    def code(folder):
        folder.mkdir(parents=True)
        (folder / "noise").write_bytes(np.random.default_rng(0).bytes(5 * 2**19))

    description = json.dumps({"fileFormat": "array_record", "name": "tiny"})
    there = tmp_path / "tfds" / "tiny" / "1.0.0"
    there.mkdir(parents=True)
    (there / "dataset_info.json").write_text(description)
    (there / "NOTE.txt").write_text("two images")
    (there / "tiny-train.array_record-00000-of-00001").write_bytes(b"records")
    arrays = {
        f"{split}_{what}": np.arange(i, i + 4, dtype=np.uint8)
        for i, (split, what) in enumerate(
            (s, w) for s in ("train", "test") for w in ("image", "label")
        )
    }
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("LOTTERY_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pack, "code", code)
    monkeypatch.setattr(prepared, "_decode", lambda folder: arrays)
    out = tmp_path / "packed"
    manifest = pack.pack(out, ["tiny"], 1, python=None)
    assert len(manifest["code"]) == 3 and len(manifest["tiny"]) == 1
    assert all((out / part).stat().st_size <= 2**20 for part in manifest["code"])
    return out, arrays


def test_parts_arrive_one_after_another_and_are_unpacked_when_all_are_there(
    packed, tmp_path, monkeypatch
):
    (out, arrays), target = packed, tmp_path / "there"
    later = (out / "code-01").read_bytes()
    (out / "code-01").unlink()
    command = [sys.executable, str(out / "unpack.py"), str(target)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "unpacked: tiny" in said and "code waits for code-01" in said
    assert not (target / "code").exists()
    for part in out.glob("*-0*"):
        part.unlink()
    (out / "code-01").write_bytes(later)
    complete, missing = unpack.receive(out, target)
    assert set(complete) == {"code", "tiny"} and not missing
    noise = np.random.default_rng(0).bytes(5 * 2**19)
    assert (target / "code" / "noise").read_bytes() == noise
    # The set is read there as it is here, without its files.
    script = f". {target}/environment.sh; echo $TFDS_DATA_DIR $LOTTERY_JAX_CACHE"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout
    for name, folder in zip(("TFDS_DATA_DIR", "LOTTERY_JAX_CACHE"), shown.split()):
        monkeypatch.setenv(name, folder)

    def decode(folder):
        raise AssertionError("there is nothing to decode")

    monkeypatch.setattr(prepared, "_decode", decode)
    found = prepared.find("tiny", prepared.data_dir())
    assert target in found.parents and prepared.note(found) == "two images"
    read = prepared.read(found)
    assert {name: x.tolist() for name, x in read.items()} == {
        name: x.tolist() for name, x in arrays.items()
    }


def test_a_damaged_part_is_refused(packed, tmp_path):
    out, _ = packed
    part = out / "code-00"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="code-00 is damaged"):
        unpack.receive(out, tmp_path / "there")


def test_a_set_that_is_not_prepared_cannot_be_packed(packed, tmp_path):
    with pytest.raises(ValueError, match="data='other'; it must be"):
        pack.data("other", tmp_path / "x")


def test_wheels_have_the_versions_of_the_lock():
    found = pack.locked(pack.WHEELS)
    assert all(one.count("==") == 1 for one in found)
