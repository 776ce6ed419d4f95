"""What results say of themselves is read back, and a command is written as it was given."""

import dataclasses
import shlex

import pytest
import xarray as xr

from experiments import launch, provenance
from experiments.all import EXPERIMENTS


def again(experiment, command):
    """The command that is parsed from what is written of another."""
    words = shlex.split(launch.written(experiment.name, experiment.presets, command))
    assert words[:3] == ["python", "-m", f"experiments.{experiment.name}"]
    return experiment.parse(words[3:])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_a_written_command_is_the_one_that_was_given(experiment):
    for name, preset in list(experiment.presets.items())[:2]:
        plain = launch.Command(preset.config, name)
        words = f"python -m experiments.{experiment.name} {name}"
        assert launch.written(experiment.name, experiment.presets, plain) == words
        changed = dataclasses.replace(
            preset.config,
            replicas=7,
            augment=("flip", "crop"),
            skip_corrupt=True,
            validation=11,
            learning_rate=0.25,
            chunk=3,
        )
        assert again(experiment, launch.Command(changed, name)).config == changed


def test_where_a_run_lies_and_how_long_it_may_take_is_not_written():
    (imp,) = (one for one in EXPERIMENTS if one.name == "imp")
    own = dataclasses.replace(
        imp.presets["digits"].config, out="elsewhere", minutes=3.0, augment=()
    )
    written = launch.written("imp", imp.presets, launch.Command(own, "digits"))
    assert written == "python -m experiments.imp digits"


def test_every_preset_with_nested_or_empty_fields_is_written_from_the_default():
    """Values of every kind that presets have come back from a command line."""
    for experiment in EXPERIMENTS:
        default = experiment.presets[experiment.default].config
        for preset in experiment.presets.values():
            given = dataclasses.replace(
                preset.config, out=None, minutes=None, group_size=None
            )
            if type(given) is not type(default):
                continue
            command = launch.Command(given, experiment.default)
            assert again(experiment, command).config == given


def test_attributes_are_read_back():
    said = provenance.attributes(
        experiment="imp",
        preset="mnist1d",
        shows="the demo",
        command="python -m experiments.imp mnist1d",
        figures=["accuracy", "layer_density"],
        verdicts=[{"level": 1, "claim": "matching", "verdict": {"answer": "yes"}}],
        claims=["matching: yes"],
    )
    assert all(isinstance(value, str) for value in said.values())
    found = provenance.read(
        xr.Dataset(attrs=said | {"seconds_last_call": 90.0, "config": '{"seed": 3}'})
    )
    assert found.title == "imp mnist1d"
    assert found.figures == ("accuracy", "layer_density")
    assert found.verdicts[0]["verdict"]["answer"] == "yes"
    assert found.minutes == 1.5 and found.config == {"seed": 3}


def test_results_that_say_nothing_are_read_and_damaged_ones_are_named():
    nothing = provenance.read(xr.Dataset())
    assert nothing.title == "" and nothing.minutes is None and nothing.claims == []
    with pytest.raises(ValueError, match="'claims' is damaged"):
        provenance.read(xr.Dataset(attrs={"claims": "[not JSON"}))


def test_a_preset_that_is_nearly_one_is_asked_for(capsys):
    (imp,) = (one for one in EXPERIMENTS if one.name == "imp")
    with pytest.raises(SystemExit):
        imp.parse(["lenet-fasion"])
    assert "'lenet-fasion' (perhaps 'lenet-fashion'?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        imp.parse(["quite-another"])
    assert "'quite-another'; choose one of" in capsys.readouterr().err
