"""What presets say that they cost is what they compute, and what a run does."""

import dataclasses
import pathlib
import re

import pytest

from experiments import cost, imp, instability, launch
from experiments.kinds import images
from lottery_jax import data, training
from lottery_jax.execution import Execution, Where
from lottery_jax.training import segment

pytestmark = pytest.mark.usefixtures("compiled_quickly")

pytest.importorskip("xarray")

ROOT = pathlib.Path(__file__).parent.parent
SHORT = [
    (imp, "resnet20-cifar10-warmup-short"),
    (imp, "resnet20-cifar10-rewind-short"),
    (instability, "resnet20-cifar10-short"),
]
FIGURES = [
    (imp, "resnet20-cifar10-warmup"),
    (imp, "resnet20-cifar10-rewind"),
    (instability, "resnet20-cifar10-paper"),
    *SHORT,
]


def config(module, name):
    return module.PRESETS[name].config


def work(module, name):
    return module.work_of(config(module, name))


def needed(module, name):
    return cost.minutes(config(module, name), work(module, name))


# --- the count ------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Replica-steps of all segments that are trained, as they are."""
    found, real = [], segment.Work.segment

    def segment_(self, moment, a, b, window):
        found.append(len(self.runs.joins) * (b - a))
        return real(self, moment, a, b, window)

    monkeypatch.setattr(segment.Work, "segment", segment_)
    examples = {
        split: len(x["label"]) for split, x in data.load("mnist1d").arrays.items()
    }
    whole = examples["train"] + examples["validation"]
    sizes = (whole, examples["validation"], examples["test"])
    known = {"mnist1d": images.Size(*sizes, 10, (40,))}
    monkeypatch.setattr(images, "SIZES", known)
    return found


TINY = "mnist1d --model mlp-4 --subset 200"


STUDY = "--steps 6it --rewind-step 2it --validate-every 3 --levels 1 --replicas 2"
NARROW = "--steps 2ep --levels 1 --replicas 1 --arms ticket small_dense"
PATHS = "--steps 6it --rewind-steps 1it 3it --branches 2 --replicas 1 --alphas 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (imp, STUDY),
        pytest.param(imp, NARROW, marks=pytest.mark.slow),
        pytest.param(instability, PATHS, marks=pytest.mark.slow),
    ],
)
def test_the_training_that_is_counted_is_what_is_trained(counted, module, flags):
    cfg = module.EXPERIMENT.parse(f"{TINY} {flags}".split()).config
    place = Where(Execution(1, 0))
    module.one(module.prepare(cfg), list(range(cfg.replicas)), place)
    assert sum(counted) == module.work_of(cfg).training


def test_an_evaluation_is_a_third_of_the_steps_of_its_examples():
    """By hand: 3 replicas of 3 arms, levels 0 to 12."""
    found = work(imp, "resnet20-cifar10-rewind")
    # 30 validations of 5,000 at level 0, 29 above it; two tests of 10,000 at each level.
    examples = 9 * ((30 + 12 * 29) * 5000 + 13 * 2 * 10_000)
    assert found.evaluation == pytest.approx(examples / 128 / 3)
    assert found.training == 9 * (15_000 + 12 * 14_500) and found.paths == 0


def test_paths_are_counted_point_by_point():
    """By hand: 8 k x 3 inits x 3 pairs x 30 points, by two policies for BatchNorm."""
    found = work(instability, "resnet20-cifar10-paper")
    points = 8 * 3 * 3 * 30
    examples = 2 * points * 20_000 + points * 16 * 128
    assert found.paths == pytest.approx(examples / 128 / 3)
    assert found.training == 3 * 8000 + 72 * 63_000


def test_the_sizes_of_data_sets_are_those_of_the_sets():
    for name, known in images.SIZES.items():
        if name not in images.STREAMED:
            own = data.sets._SETS[name]
            assert own.validation == known.validation
            assert (own.num_classes, own.shape) == (known.num_classes, known.shape)


# --- what is said ---------------------------------------------------------------------


@pytest.mark.parametrize(("module", "name"), FIGURES)
def test_the_line_of_a_preset_says_what_it_computes(module, name):
    told = re.search(
        r"([\d.]+) million replica-steps: (\d+) min of a GPU at ([\d,]+)/s, (\d+) calls",
        module.PRESETS[name].help,
    )
    assert told is not None
    total, time, rate, calls = (float(x.replace(",", "")) for x in told.groups())
    assert total == pytest.approx(work(module, name).total / 1e6, abs=0.006)
    assert rate == cost.RATES["resnet-20", "float32"].steps
    assert time == pytest.approx(1e6 * total / rate / 60, abs=0.6)
    assert calls * (cost.CALL - cost.START) >= needed(module, name)


def test_a_larger_batch_makes_a_step_longer():
    line = imp.PRESETS["resnet20-cifar10-batch1024"].help
    rate = cost.RATES["resnet-20", "float32"].steps / 8
    assert f" at {rate:,.0f}/s" in line


def test_presets_of_unknown_speed_say_nothing():
    assert "replica-steps" not in imp.PRESETS["open-lth-vgg16"].help
    assert "replica-steps" not in imp.PRESETS["lenet-fashion"].help


@pytest.mark.parametrize(("module", "name"), SHORT)
def test_short_presets_fit_into_two_calls(module, name):
    assert cost.calls(needed(module, name)) <= 2


def test_narrow_activations_are_another_rate():
    cfg = config(imp, "resnet20-cifar10-warmup")
    narrow = dataclasses.replace(cfg, activations="bfloat16")
    ratio = cost.minutes(cfg, imp.work_of(cfg)) / cost.minutes(
        narrow, imp.work_of(narrow)
    )
    assert ratio == pytest.approx(1717 / 937)


@pytest.mark.parametrize(("module", "name"), SHORT)
def test_short_presets_are_a_third_of_the_long_ones(module, name):
    full = name.removesuffix("-short")
    full = full if full in module.PRESETS else f"{full}-paper"
    long, short = config(module, full), config(module, name)

    def steps(cfg):
        marks = (cfg.steps, *cfg.drops, cfg.warmup, getattr(cfg, "rewind_step", "0it"))
        epoch = cost.of_recipe(cfg).steps_per_epoch
        return [training.parse_step(text, epoch) for text in marks]

    assert steps(short) == [round(step / 3) for step in steps(long)]
    same = (
        "model",
        "data",
        "batch_size",
        "learning_rate",
        "replicas",
        "levels",
        "arms",
    )
    for field in same:
        assert getattr(long, field, None) == getattr(short, field, None), field


@pytest.mark.parametrize(("module", "name"), FIGURES)
def test_the_docs_say_the_same(module, name):
    text = (ROOT / "docs" / "gpu.md").read_text()
    experiment = module.EXPERIMENT.name
    (row,) = re.findall(rf"^\| `{experiment} {name}` .*$", text, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    total, time = work(module, name).total, needed(module, name)
    assert cells[-3:] == [f"{total / 1e6:.2f}", f"{time:.0f}", str(cost.calls(time))]


def test_help_shows_it(capsys):
    with pytest.raises(SystemExit) as end:
        launch.parse("imp", imp.PRESETS, "mnist1d", "About.", ["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.62 million replica-steps: 11 min of a GPU" in shown
    assert "--minutes" in shown
