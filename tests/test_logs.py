"""What TensorBoard and Weights & Biases get of a run, and what happens when they fail."""

import json
import struct
import sys
import types

import numpy as np
import pytest

import lottery_jax as lj
from experiments import display, identity, imp, launch, logs
from lottery_jax.execution import Progress
from lottery_jax.types import Curves

NAMES = ["ticket of replica 0", "reinit of replica 0"]


def told(level, done, resumed=False, stage="training", rows=2):
    """A study of 100 steps a level, validated every 50: errors are level, row and step."""
    steps = np.array([50, 100], np.int32)
    error = np.full((rows, 2), np.nan, np.float32)
    for column, step in enumerate(steps):
        if step <= done:
            error[:, column] = (level or 0) + np.arange(rows) / 4 + step / 1000
    values = {"validation_error": error, "train_loss": 2 * error}
    curves = Curves(steps, values, np.full(rows, np.nan, np.float32))
    return Progress(stage, done, 100, rows, 0, level, resumed, curves)


def run(folder, services, events, names=NAMES, what=""):
    """What is written of some events, by a process of its own."""
    made = logs.Logs(services, folder, {"seed": 3})
    with display.watched(
        lj.Where(folder=folder, watch=made), what, names=names
    ) as where:
        for at in events:
            where.tell(at)
    return made


def level(number, first=0, resumed=False):
    return [
        told(number, first, resumed),
        *[told(number, s) for s in (50, 100) if s > first],
    ]


# --- TensorBoard ----------------------------------------------------------------------


def events(path):
    """The events of a file, by the format of TFRecord files."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


def scalars(folder):
    """(step, tag, value) of a run as TensorBoard shows them: what is begun anew goes."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:])):
        for event in events(path):
            if event.session_log.status == event.session_log.START:
                found = [one for one in found if one[0] < event.step]
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value))
    return found


def test_each_network_is_a_run_whose_steps_go_on_over_levels(tmp_path):
    run(tmp_path, ["tensorboard"], [*level(0), *level(1)])
    root = tmp_path / "tensorboard" / "levels"
    runs = {str(path.parent.relative_to(root)) for path in root.rglob("events*")}
    assert runs == {"ticket/replica0", "reinit/replica0"}
    found = scalars(root / "reinit/replica0")
    errors = [(step, x) for step, tag, x in found if tag == "validation_error"]
    assert errors == [
        (50, pytest.approx(0.3)),
        (100, pytest.approx(0.35)),
        (150, pytest.approx(1.3)),
        (200, pytest.approx(1.35)),
    ]
    losses = [x for _, tag, x in found if tag == "train_loss"]
    np.testing.assert_allclose(losses, [0.6, 0.7, 2.6, 2.7], rtol=1e-6)


def test_a_run_that_was_killed_has_every_step_once(tmp_path):
    # Killed after step 50 of level 1; the checkpoint was of the beginning of the level.
    run(tmp_path, ["tensorboard"], [*level(0), *level(1)[:-1]])
    run(tmp_path, ["tensorboard"], [*level(1, resumed=True), *level(2)])
    found = scalars(tmp_path / "tensorboard/levels/ticket/replica0")
    steps = [step for step, tag, _ in found if tag == "validation_error"]
    assert steps == [50, 100, 150, 200, 250, 300]
    # And where there was no checkpoint yet, so that nothing is taken up.
    run(tmp_path, ["tensorboard"], level(0))
    found = scalars(tmp_path / "tensorboard/levels/ticket/replica0")
    assert [step for step, tag, _ in found if tag == "train_loss"] == [50, 100]


def test_what_is_told_is_on_the_disk_at_once(tmp_path):
    made = logs.Logs(["tensorboard"], tmp_path, {})
    with made.watching(tmp_path, "", NAMES) as watch:
        for at in level(0)[:2]:
            watch(at)
        found = scalars(tmp_path / "tensorboard/levels/ticket/replica0")
        assert [step for step, *_ in found] == [50, 50]


def test_stages_and_folders_below_are_apart(tmp_path):
    below = lj.Where(folder=tmp_path, watch=logs.Logs(["tensorboard"], tmp_path, {}))
    with display.watched(below.below("dense"), "finder: ") as where:
        for at in (told(None, 0, stage="trunk"), told(None, 50, stage="trunk")):
            where.tell(at)
        # Whoever watches a part of what is watched logs there, too.
        with display.watched(where.below("paths"), names=NAMES) as inner:
            for at in level(0):
                inner.tell(at)
    root = tmp_path / "tensorboard"
    runs = {str(path.parent.relative_to(root)) for path in root.rglob("events*")}
    assert runs == {
        "dense/finder/trunk/network0",
        "dense/finder/trunk/network1",
        "dense/paths/levels/ticket/replica0",
        "dense/paths/levels/reinit/replica0",
    }


def test_what_was_not_recorded_is_not_written(tmp_path):
    at = told(0, 50)
    at.curves.values["validation_error"][1] = np.nan
    at.curves.values["train_loss"][1] = np.inf
    run(tmp_path, ["tensorboard"], [told(0, 0), at, told(0, 60)])
    root = tmp_path / "tensorboard/levels"
    assert (root / "ticket/replica0").is_dir() and not (root / "reinit").exists()
    assert len(scalars(root / "ticket/replica0")) == 2


@pytest.mark.parametrize(
    ["name", "path"],
    [
        ("ticket of replica 0", "ticket/replica0"),
        ("one_shot: small_dense of replica 12", "one_shot/small_dense/replica12"),
        ("reinit under noise 3", "reinit_under_noise3"),
        ("a/b: c", "a_b/c"),
        ("../../etc", ".._.._etc"),
    ],
)
def test_names_are_paths(name, path):
    assert logs.slug(name) == path


# --- Weights & Biases -----------------------------------------------------------------


class Run:
    """What wandb would be told."""

    def __init__(self, **given):
        self.given, self.lines, self.steps, self.axes = given, [], [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, line, step):
        assert not self.steps or step > self.steps[-1]  # wandb would leave it out
        self.lines.append(line)
        self.steps.append(step)


@pytest.fixture
def wandb(monkeypatch):
    """Instead of wandb: its runs, as they were begun."""
    module = types.ModuleType("wandb")
    module.runs, module.Settings = [], dict

    def init(**given):
        if module.broken and given["mode"] in module.broken:
            raise ConnectionError("no service")
        module.runs.append(Run(**given))
        return module.runs[-1]

    module.init, module.broken = init, ()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    return module


def test_a_folder_is_one_run_with_a_key_for_each_curve(tmp_path, wandb):
    folder = tmp_path / "mnist1d-12345678" / "replicas-000-000"
    folder.mkdir(parents=True)
    run(folder, ["wandb"], [*level(0), *level(1)])
    (made,) = wandb.runs
    assert made.given["mode"] == "offline" and made.given["config"] == {"seed": 3}
    assert made.given["name"] == "mnist1d-12345678/replicas-000-000"
    assert made.given["dir"] == str(folder)
    assert made.axes == {"levels/*": "levels/step"}
    assert [line["levels/step"] for line in made.lines] == [50, 100, 150, 200]
    last = made.lines[-1]
    assert last["levels/ticket/replica0/validation_error"] == pytest.approx(1.1)
    assert last["levels/reinit/replica0/train_loss"] == pytest.approx(2.7)


def test_a_run_that_is_taken_up_again_is_the_same_run_with_the_same_steps(
    tmp_path, wandb
):
    trunk = [told(None, step, stage="trunk") for step in (0, 50, 100)]
    run(tmp_path, ["wandb"], [*trunk, *level(0), *level(1)])
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    # Killed before level 1 was stored: it is measured again.
    run(moved, ["wandb"], [*level(1, resumed=True), *level(2)])
    first, second = wandb.runs
    assert first.given["id"] == second.given["id"] and second.given["resume"] == "allow"
    assert first.steps == [50, 100, 150, 200, 250, 300]
    assert second.steps == [250, 300, 350, 400]
    assert first.lines[4:] == second.lines[:2]
    assert second.axes == {"levels/*": "levels/step"}


def test_what_a_grown_study_adds_lies_behind_all_other_parts(tmp_path, wandb):
    """Level 2 comes after a part that was written once level 1 had ended."""
    beside = [told(None, step, stage="beside") for step in (0, 50, 100)]
    run(tmp_path, ["wandb"], [*level(0), *level(1), *beside])
    run(tmp_path, ["wandb"], [*level(2, resumed=True), *beside])
    run(tmp_path, ["wandb"], [*level(1, resumed=True), *level(2), *level(3)])
    rows = [
        (step, name)
        for made in wandb.runs
        for step, line in zip(made.steps, made.lines)
        for name in [(key, line[key]) for key in line if key.endswith("/step")]
    ]
    # A row has one step however often it is written, and a step has one row.
    assert len({step for step, _ in rows}) == len({row for _, row in rows})
    assert len(set(rows)) == len({row for _, row in rows}) == 10


def test_what_is_known_of_a_run_may_be_damaged(tmp_path, wandb):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "lottery_jax.json").write_text('{"id": "cut')
    run(tmp_path, ["wandb"], level(0))
    assert wandb.runs[0].steps == [50, 100] and len(wandb.runs[0].given["id"]) == 8


def test_nothing_is_begun_where_nothing_is_measured(tmp_path, wandb):
    run(tmp_path, ["wandb"], [told(0, 0), told(0, 25)])
    assert wandb.runs == [] and not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("given", ["wandb", "tensorboard"])
def test_a_log_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path, wandb, capsys, given
):
    wandb.broken = ("offline", "online")
    if given == "tensorboard":
        (tmp_path / "tensorboard").write_text("no folder")
    made = run(tmp_path, [given], [*level(0), *level(1)])
    assert made.services == {}
    said = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert len(said) == 1 and said[0].startswith(f"log={given} has failed: ")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_without_a_network_a_run_of_someone_logged_in_is_offline(
    tmp_path, wandb, monkeypatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.broken = ("online",)
    run(tmp_path, ["wandb"], level(0))
    (made,) = wandb.runs
    assert made.given["mode"] == "offline" and len(made.lines) == 2


def test_runs_are_sent_by_who_is_logged_in_and_nobody_is_asked(tmp_path):
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    file.chmod(0o600)
    alone, known = {"NETRC": "/nowhere"}, {"NETRC": str(file)}
    assert logs.wandb_mode(alone) == "offline"
    assert logs.wandb_mode(alone | {"WANDB_MODE": "online"}) == "offline"
    assert logs.wandb_mode(known) == "online"
    assert logs.wandb_mode(known | {"WANDB_MODE": "offline"}) == "offline"
    assert logs.wandb_mode(known | {"WANDB_MODE": "disabled"}) == "disabled"
    other = known | {"WANDB_BASE_URL": "https://wandb.here.org"}
    assert logs.wandb_mode(other) == "offline"
    assert logs.wandb_mode(alone | {"WANDB_API_KEY": "0" * 40}) == "online"


@pytest.mark.slow
def test_wandb_itself_takes_it_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = run(tmp_path, ["wandb"], [*level(0), *level(1)])
    wandb = sys.modules["wandb"]
    run_id = made.services["wandb"]._run.id
    wandb.teardown()  # as at the end of the process
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    about = json.loads((tmp_path / "wandb/lottery_jax.json").read_text())
    assert about == {"id": run_id, "pieces": {"levels": [[0, 200]]}}
    assert run_id in written.name
    assert b"levels/ticket/replica0/validation_error" in written.read_bytes()


# --- the field ------------------------------------------------------------------------


def test_the_field_reaches_whoever_watches_and_belongs_to_no_run(tmp_path, wandb):
    cfg = imp.PRESETS["mnist1d"].config
    command = imp.EXPERIMENT.parse(["mnist1d", "--log", "tensorboard", "wandb"])
    assert command.config.log == ("tensorboard", "wandb")
    assert identity.digits(command.config) == identity.digits(cfg)
    assert "log" not in identity.as_config(command.config)
    assert "--log" not in launch.written("imp", imp.PRESETS, command)
    found = logs.of(launch.where(command.config, tmp_path).watch)
    assert set(found.services) == {"tensorboard", "wandb"}
    assert found.folder == tmp_path and not list(tmp_path.iterdir())
    assert launch.where(cfg, tmp_path).watch is None


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_anything_is_done(
    tmp_path, monkeypatch, capsys, service
):
    monkeypatch.setitem(sys.modules, logs.PACKAGES[service], None)
    out = tmp_path / "run"
    assert imp.main(["mnist1d", "--log", service, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'lottery-jax[{service}]'") and not out.exists()
