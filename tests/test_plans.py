"""What a run takes, said before it starts: counts are those of runs, bytes of states."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from experiments import cost, edge_popup, imp, instability, launch, plans, recipes
from experiments.all import EXPERIMENTS
from experiments.kinds import images
from lottery_jax import streams, training, trees
from lottery_jax.execution import Execution
from lottery_jax.training import runs

pytestmark = pytest.mark.usefixtures("compiled_quickly", "made_texts")

pytest.importorskip("xarray")

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
QUICK = ("imp lenet-fashion", "imp resnet20-cifar10-rewind", "transfer optimizers")
"""Presets that are set up in seconds, beside the default one of each experiment."""


def counted(experiment, cfg):
    with recipes.by_size():
        this = experiment.of(cfg)
        return this.work(this.prepare(cfg))


def tiny(experiment):
    return experiment.parse(experiment.tiny.split()).config


PRESETS = [
    pytest.param(
        experiment,
        name,
        marks=[]
        if f"{experiment.name} {name}" in QUICK or name == experiment.default
        else pytest.mark.slow,
        id=f"{experiment.name} {name}",
    )
    for experiment in EXPERIMENTS
    for name in experiment.presets
]


@pytest.fixture
def nothing_there(monkeypatch, tmp_path_factory, made_texts):
    """No images are prepared; texts are the made-up ones."""
    images._load_data.cache_clear()
    monkeypatch.setattr("lottery_jax.data.available", lambda: ("mnist1d", "digits"))
    yield
    images._load_data.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "name"), PRESETS)
def test_every_preset_is_counted_without_its_images(experiment, name, nothing_there):
    cfg = experiment.presets[name].config
    if (
        cfg.data == "wikitext2"
    ):  # the made-up text is shorter than a part of the real one
        cfg = dataclasses.replace(cfg, subset=None, rewind_step="1it")
    try:
        work = counted(experiment, cfg)
    except (FileNotFoundError, ImportError, ValueError) as error:
        if not getattr(cfg, "pretrained", ""):
            raise
        pytest.skip(f"an encoder is needed: {error}")
    assert work.training > 0 and work.total >= work.training
    assert work.evaluation + work.paths > 0 or experiment.name == "strong_lth"
    for one in work.trainings:
        assert one.networks > 0 and 0 <= one.first < one.last and one.times > 0
        assert 0 < one.orders <= one.networks
        assert one.of.setup is not None and one.of.train > 0
    names = [one.name for one in work.trainings]
    assert len(set(names)) == len(names)


# --- the count is what is trained -----------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """Replica-steps of all that is trained, as it is."""
    found, real = [], runs.train

    def train(task, tx, runs, stop, **how):
        number = runs.noise.shape[0]
        first = int(np.min(np.broadcast_to(runs.joins, number)))
        found.append(number * (stop - first))
        return real(task, tx, runs, stop, **how)

    for where in (runs, training):
        monkeypatch.setattr(where, "train", train)
    return found


RUN = [
    pytest.param(
        experiment,
        marks=[] if experiment.name == "imp" else pytest.mark.slow,
        id=experiment.name,
    )
    for experiment in EXPERIMENTS
    if experiment.name != "bert_tickets"
]


@pytest.mark.parametrize("experiment", RUN)
def test_what_is_counted_is_what_is_trained_and_stored(experiment, trained, tmp_path):
    cfg = tiny(experiment)
    this = experiment.of(cfg)
    setup = this.prepare(cfg)
    work = this.work(setup)
    ids = list(range(cfg.replicas))
    this.one(setup, ids, launch.where(cfg, tmp_path))
    assert sum(trained) == work.training
    files = [*tmp_path.rglob("leaves.bin"), *tmp_path.rglob("*.safetensors")]
    stored = sum(path.stat().st_size for path in files)
    # Curves and records are small, and are not counted.
    assert 0 < stored <= plans.disk(work) + 64 * 1024 * max(len(files), 1)


def test_two_conditions_of_a_study_are_counted_by_hand():
    """imp: 2 chains x 3 replicas x 3 arms, k = 2 of 6 steps, two levels, no validation."""
    flags = "--model mlp-4 --subset 200 --steps 6it --rewind-step 2it --levels 2 "
    flags += "--validation 0 --replicas 3 --schedules geometric one_shot"
    cfg = imp.EXPERIMENT.parse(flags.split()).config
    work = counted(imp.EXPERIMENT, cfg)
    dense, pruned = work.trainings
    assert (dense.networks, dense.first, dense.last, dense.times) == (18, 0, 6, 1)
    assert (pruned.networks, pruned.first, pruned.last, pruned.times) == (18, 2, 6, 2)
    assert work.training == 18 * 6 + 2 * 18 * 4
    # The ticket and the random mask share their replica's order; reinit has its own.
    assert dense.orders == pruned.orders == 6
    assert pruned.read == 6 * 8 * 100
    assert dense.tickets + pruned.tickets == 3 * 2 * 3
    assert dense.evaluated == pruned.evaluated == dense.of.test


# --- bytes ----------------------------------------------------------------------------


def test_the_bytes_of_a_network_are_those_of_its_state():
    setup = imp.prepare(tiny(imp.EXPERIMENT))
    drawn = training.fresh(setup.task, setup.tx, *_keys(2))
    state = trees.rows(trees.host(drawn.state), 0)
    own = plans.bytes_of(setup)
    assert own.state == sum(x.nbytes for x in jax.tree.leaves(state))
    assert own.network == sum(x.nbytes for x in jax.tree.leaves(state.network))
    weights = sum(x.size for x in jax.tree.leaves(state.mask))
    assert own.mask == -(-weights // 8)


def _keys(number):
    from lottery_jax import keys

    own = keys.of_replicas(0, np.arange(number))
    return own.init, own.noise


def test_device_memory_has_the_data_and_the_states_of_all_networks():
    setup = imp.prepare(tiny(imp.EXPERIMENT))
    one, *_ = imp.work(setup).trainings
    execution = Execution(1, 0)
    few, many = (plans.device(one._replace(networks=n), execution) for n in (2, 20))
    data = sum(x.nbytes for x in jax.tree.leaves(setup.task.data))
    assert few.data == many.data == data
    state = plans.bytes_of(setup).state
    assert many.fixed - few.fixed >= 18 * state
    assert many.temporary > few.temporary > 0


def test_a_group_of_replicas_is_what_trains_together():
    cfg = dataclasses.replace(tiny(imp.EXPERIMENT), replicas=6, group_size=2)
    one, *_ = counted(imp.EXPERIMENT, cfg).trainings
    assert (one.networks, plans.together(one)) == (18, 6)


# --- the command ----------------------------------------------------------------------


def command(module, flags, capsys):
    status = module.main(flags.split())
    return status, capsys.readouterr()


@pytest.mark.parametrize("module", [imp, instability, edge_popup])
def test_a_plan_is_printed_and_nothing_is_written(
    module, capsys, tmp_path, monkeypatch, trained
):
    monkeypatch.chdir(tmp_path)
    flags = f"{module.EXPERIMENT.tiny} --plan --rate 50"
    status, shown = command(module, flags, capsys)
    assert status == 0, shown.err
    work = counted(module.EXPERIMENT, tiny(module.EXPERIMENT))
    assert f"{work.training:,} replica-steps" in shown.out
    for begin in (
        "Examples: none are streamed",
        "Device memory: ",
        "Kept on the host: ",
    ):
        assert f"\n{begin}" in shown.out
    assert f"\nHours: {work.total / 50 / 3600:.2f} at 50 replica-steps/s" in shown.out
    assert not trained and not list(tmp_path.iterdir())


def test_a_rate_is_measured_where_it_takes_a_moment(capsys):
    status, shown = command(imp, f"{imp.EXPERIMENT.tiny} --plan", capsys)
    assert status == 0, shown.err
    assert "of some steps, just now, on this machine" in shown.out


def test_a_known_rate_is_that_of_help():
    preset = imp.PRESETS["resnet20-cifar10-rewind"]
    work = imp.work_of(preset.config)
    known = plans.rate(preset.config, work, None, None)
    assert known.steps == pytest.approx(cost.RATES["resnet-20", "float32"].steps)
    assert plans.rate(preset.config, work, None, 7.0) == (7.0, "as stated")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rate 5", "--rate goes with --plan"),
        ("--plan --rate fast", "--rate fast: it must be a number above 0"),
        ("--plan --rate 0", "--rate 0: it must be a number above 0"),
        ("--plan --from somewhere --level 1", "--plan: it says what one process does"),
        ("--plan --distributed", "--plan: it says what one process does"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        imp.main(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_field_that_makes_no_sense_is_named(capsys):
    status, shown = command(imp, f"{imp.EXPERIMENT.tiny} --plan --levels -1", capsys)
    assert status == 2 and "levels=-1" in shown.err


# --- streamed -------------------------------------------------------------------------


class Zeros(streams.Examples):
    """Examples without content."""

    def __init__(self, number):
        self.number = number

    @property
    def fields(self):
        image = jax.ShapeDtypeStruct((40,), np.float32)
        return {"image": image, "label": jax.ShapeDtypeStruct((), np.int32)}

    @property
    def digest(self):
        return f"zeros {self.number}"

    def __len__(self):
        return self.number

    def read(self, indices, into):
        raise AssertionError("a plan reads nothing")


def test_streamed_examples_are_counted_and_a_window_lies_on_the_device():
    cfg = tiny(imp.EXPERIMENT)
    setup = imp.prepare(cfg)
    data = dict(setup.task.data)
    data["train"] = streams.columns(Zeros(len(data["train"]["label"])))
    away = setup._replace(task=setup.task._replace(data=data))
    work = imp.work(away)
    assert work == imp.work(setup)._replace(trainings=work.trainings)
    read = sum(one.read + one.times * one.evaluated for one in work.trainings)
    assert f"{read:,} are read" in plans._reading(work, None)
    assert plans._reading(work, 10.0).endswith(f"{read / 10:,.0f} a second")
    window = plans.placed(data, 7)
    assert window["train"]["image"].shape == (7, 40)
    assert window["test"]["image"].shape == data["test"]["image"].shape
    shared = dataclasses.replace(cfg, shared_order=True)
    work = imp.work(away._replace(cfg=shared))
    fewer = sum(
        one.read // one.orders + one.times * one.evaluated for one in work.trainings
    )
    assert f"{fewer:,} are read" in plans._reading(work, None)


def test_a_folder_of_a_plan_is_not_made(tmp_path, capsys):
    out = pathlib.Path(tmp_path) / "run"
    status, _ = command(
        imp, f"{imp.EXPERIMENT.tiny} --plan --rate 1 --out {out}", capsys
    )
    assert status == 0 and not out.exists()
