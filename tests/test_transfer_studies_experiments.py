"""The studies beside the matrix: what travels where, and what is concluded from it."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest

from experiments import transfer
from experiments.experiment import Outcome
from experiments.transfer import (
    compared,
    few,
    halves,
    optimizers,
    pairs,
    size,
    structure,
    study,
)
from experiments.transfer.config import PRESETS, Config
from lottery_jax import keys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

xr = pytest.importorskip("xarray")
pytest.importorskip("sklearn")

TINY = dict(
    model="mlp-4", batch_size=20, steps="4it", rewind_step="2it", every=2, levels=(1, 2)
)
NUMBER = 1437  # of training examples of digits, with none held out


def config(**fields):
    return Config(**{"data": "digits", "inputs": "grey28", **TINY} | fields)


# --- what travels where ---------------------------------------------------------------


def test_optimizers_are_a_square_with_a_rate_for_each():
    found = optimizers.design(config(learning_rate=0.003, sgd_learning_rate=0.07))
    assert found.sources == found.targets == ("sgd", "adam") and found.same_head
    own = [
        (r.optimizer, r.learning_rate, r.data, r.subset) for r in found.recipes.values()
    ]
    assert own == [("sgd", 0.07, "digits", None), ("adam", 0.003, "digits", None)]


def test_halves_go_from_one_to_the_other():
    found = halves.design(config())
    assert (found.sources, found.targets) == (("digits-a",), ("digits-b",))
    assert found.same_head
    assert [r.half for r in found.recipes.values()] == ["a", "b"]


def test_few_examples_are_shares_of_the_set_and_all_of_it_a_source():
    found = few.design(config(datasets=("mnist",), shares=(0.1, 0.01)))
    assert found.sources == ("digits", "mnist")
    assert found.targets == ("digits-14", "digits-144") and not found.same_head
    subsets = {name: recipe.subset for name, recipe in found.recipes.items()}
    expected = {"digits": None, "mnist": None, "digits-14": 14, "digits-144": 144}
    assert subsets == expected
    assert found.recipes["digits-14"].data == "digits"


def test_sizes_are_shares_and_half_of_the_classes_beside_as_many_examples():
    cfg = config(datasets=("mnist", "usps"))
    found = size.design(cfg)
    assert found.targets == ("mnist", "usps")
    poor = found.recipes["digits-5classes"]
    number = study.examples(poor)
    assert poor.classes == 5 and poor.subset is None and 600 < number < 800
    names = ("digits-144", "digits-431", "digits", f"digits-{number}")
    assert found.sources == (*names, "digits-5classes")
    sizes = [study.examples(found.recipes[name]) for name in found.sources]
    assert sizes == [144, 431, NUMBER, number, number]


def test_structure_takes_all_three_things_from_others_to_the_set():
    cfg = config(datasets=("mnist", "usps"), carried=structure.ALL)
    found = structure.design(cfg)
    assert found.sources == ("mnist", "usps") and found.targets == ("digits",)
    assert {r.data for r in found.recipes.values()} == {"mnist", "usps", "digits"}


@pytest.mark.parametrize("design", [few.design, size.design, structure.design])
def test_a_set_is_not_beside_itself(design):
    cfg = config(datasets=("usps", "digits"), carried=structure.ALL)
    with pytest.raises(
        ValueError, match="^datasets=.*; it must be data sets other than"
    ):
        design(cfg)
    with pytest.raises(ValueError, match="^datasets"):
        design(dataclasses.replace(cfg, datasets=()))


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.5, 1.5), (0.5, 0.5), ()])
def test_shares_that_make_no_sense_are_refused(shares):
    with pytest.raises(ValueError, match="^shares="):
        few.design(config(datasets=("usps",), shares=shares))


def test_structure_without_one_of_its_three_is_refused():
    with pytest.raises(
        ValueError, match="^carried=.*; it must be ticket, structure, d"
    ):
        structure.design(config(datasets=("usps",)))


def test_every_study_has_a_preset_of_its_own():
    assert {p.config.study for p in PRESETS.values()} == set(transfer.STUDIES)


def test_new_fields_leave_the_identity_of_other_studies_alone():
    from experiments import identity

    stored = identity.as_config(Config())
    assert "shares" not in stored and "sgd_learning_rate" not in stored


# --- what is concluded ----------------------------------------------------------------


LEVELS, REPLICAS = (2, 4), 3


def results_of(sources, targets, error, carried=("ticket",), head="replaced", **more):
    """Results whose errors are `error(carried, source, target)` and a little noise.

    The noise of a replica is the same wherever it is paired.
    """
    noise = np.array([-0.01, 0.0, 0.013])
    deviation = np.array([1e-4, -1e-4, 2e-4])  # of differences
    shape = (len(targets), len(carried), len(sources), len(LEVELS), REPLICAS)
    values = np.empty(shape)
    for t, target in enumerate(targets):
        for c, what in enumerate(carried):
            for s, source in enumerate(sources):
                values[t, c, s] = error(what, source, target) + noise
                values[t, c, s] += deviation * (1 + s + c)
    axes = ("target", "carried", "source", "level", "replica")

    def own(level):
        return np.broadcast_to(
            level + noise, (len(targets), len(LEVELS), REPLICAS)
        ).copy()

    def flags(*names):
        sizes = dict(zip(axes, shape))
        return names, np.zeros([sizes[name] for name in names], np.int32)

    lines = ("target", "level", "replica")
    density = np.broadcast_to([[0.5], [0.25]], (*shape[:1], *shape[2:]))
    found = {
        "test_error": (axes, values),
        "diverged": flags(*axes),
        "native_test_error": (lines, own(0.10)),
        "native_diverged": flags(*lines),
        "random_test_error": (lines, own(0.30)),
        "random_diverged": flags(*lines),
        "dense_test_error": (("target", "replica"), own(0.12)[:, 0]),
        "dense_diverged": flags("target", "replica"),
        "density": (("target", "source", "level", "replica"), density),
        **more,
    }
    coordinates = {
        "carried": list(carried),
        "source": list(sources),
        "target": list(targets),
        "level": list(LEVELS),
        "replica": list(range(REPLICAS)),
        "other": list(sources),
    }
    among = ("source", "other", "level", "replica")
    half = np.full((len(sources), len(sources), len(LEVELS), REPLICAS), 0.5)
    found |= {"overlap": (among, half), "overlap_by_chance": (among, half / 2)}
    attributes = {"head": head, "config": json.dumps({})}
    return xr.Dataset(found, coords=coordinates, attrs=attributes)


def answers(judged, claim, **where):
    """The answers to a claim at places."""
    return [
        one.verdict.answer
        for one in judged
        if one.claim == claim and where.items() <= one.where.items()
    ]


SIZES = {"s-100": 0.25, "s-300": 0.2, "s": 0.15, "s-500": 0.18, "s-5classes": 0.17}


def of_sizes():
    number = np.array([100, 300, 1000, 500, 500], np.int32)
    return results_of(
        tuple(SIZES),
        ("t", "u"),
        lambda what, source, target: SIZES[source] + 0.01 * (target == "u"),
        examples=("source", number),
    )


def test_larger_sources_are_compared_pair_by_pair_and_classes_at_equal_size():
    judged = size.judge(of_sizes(), config())
    assert answers(judged, size.MORE) == ["yes"] * 12  # 6 pairs on 2 targets
    assert answers(judged, f"{size.MORE}, mean of targets") == ["yes"] * 6
    # Here five classes were better than ten.
    at = {"source": "s-500", "than": "s-5classes"}
    assert answers(judged, size.RICHER, **at) == ["no", "no"]
    assert answers(judged, f"{size.RICHER}, mean of targets") == ["no"]
    (one,) = (
        x.verdict
        for x in judged
        if x.claim == f"{size.MORE}, mean of targets"
        and x.where == {"source": "s", "than": "s-100"}
    )
    assert one.estimate == pytest.approx(-0.1, abs=1e-3) and one.n == REPLICAS


def test_the_figure_of_sizes_has_a_line_for_each_target_and_a_point_of_few_classes():
    cfg = config()
    outcome = Outcome(of_sizes(), cfg, "size", size.judge(of_sizes(), cfg))
    drawn = list(size.figures(outcome))
    assert [name for name, *_ in drawn] == ["size", "accuracy", "difference"]
    (axes,) = drawn[0][1].axes
    lines = {
        container.get_label(): container.lines[0].get_data()
        for container in axes.containers
    }
    assert set(lines) == {f"{a}on {b}" for a in ("", "5 classes, ") for b in "tu"}
    np.testing.assert_array_equal(lines["on t"][0], [100, 300, 500, 1000])
    expected = -100 * (np.array([0.25, 0.2, 0.18, 0.15]) - 0.1)
    np.testing.assert_allclose(lines["on t"][1], expected, atol=0.06)
    assert lines["5 classes, on u"][0].tolist() == [500]
    assert {one.claim.split(",")[0] for one in drawn[0][2]} == {size.MORE, size.RICHER}


def test_few_examples_are_judged_against_tickets_found_on_them():
    error = {"s": 0.05, "o": 0.14}
    found = results_of(("s", "o"), ("s-9",), lambda what, source, target: error[source])
    judged = few.judge(found, config())
    claim = "ticket better than native, mean of densities"
    assert answers(judged, claim, source="s") == ["yes"]
    assert answers(judged, claim, source="o") == ["no"]
    assert answers(judged, "ticket transfers", source="o") == ["no"] * len(LEVELS)


def of_structure():
    error = {"ticket": 0.11, "structure": 0.2}
    tuned = np.array([[[0.09, 0.1, 0.113]]])
    pair = ("target", "source", "replica")
    return results_of(
        ("o",),
        ("s",),
        lambda what, source, target: error[what],
        carried=("ticket", "structure"),
        fine_tuned_test_error=(pair, tuned),
        fine_tuned_diverged=(pair, np.zeros((1, 1, REPLICAS), np.int32)),
    )


def test_structure_and_ticket_are_judged_beside_fine_tuned_weights():
    judged = structure.judge(of_structure(), config())
    both = ["yes"] * len(LEVELS)
    assert answers(judged, "ticket better than structure") == both
    assert answers(judged, "structure better than random ticket") == both
    tuned = "dense of the source, fine-tuned"
    assert answers(judged, f"{tuned}, better than dense") == ["yes"]
    assert answers(judged, f"ticket matches {tuned}") == ["no"] * len(LEVELS)
    assert answers(judged, f"structure matches {tuned}") == ["no"] * len(LEVELS)


def test_the_figure_of_structure_draws_all_that_is_carried_side_by_side():
    cfg, found = config(), of_structure()
    outcome = Outcome(found, cfg, "structure", structure.judge(found, cfg))
    drawn = list(structure.figures(outcome))
    names = [name for name, *_ in drawn]
    assert names == ["structure"]  # a map of one pair says no more
    (axes,) = drawn[0][1].axes
    lines = {c.get_label(): c.lines[0].get_ydata() for c in axes.containers}
    tuned = lines["dense of the source, fine-tuned"]
    np.testing.assert_allclose(tuned, 100 * (1 - 0.101))
    assert set(lines) - {"dense of the source, fine-tuned"} == {
        "ticket of the source",
        "structure of the source",
        "random ticket",
        "native ticket",
    }


def test_one_source_has_no_table_of_what_masks_share():
    cfg, found = config(), of_structure()
    outcome = Outcome(found, cfg, "structure", structure.judge(found, cfg))
    titles = [table.title for table in compared.tables(outcome)]
    assert len(titles) == 2 and not any("survive" in title for title in titles)


def test_a_ticket_that_kept_its_head_is_not_compared_with_itself():
    def found(head):
        return results_of(("s", "t"), ("s", "t"), lambda *_: 0.1, head=head)

    cfg, claim = config(), "native ticket with a new head matches the native ticket"
    kept, replaced = (compared.judge(found(h), cfg) for h in ("kept", "replaced"))
    assert len(answers(replaced, claim)) == 2 * len(LEVELS)
    assert not answers(kept, claim)
    assert len(answers(kept, "ticket transfers")) == 2 * len(LEVELS)
    outcome = Outcome(found("kept"), cfg, "optimizers", kept)
    (_, table) = compared.tables(outcome)[:2]
    assert [row[1:].count("itself") for row in table.rows] == [1, 1]
    (_, panels, _), _ = compared.figures(outcome)
    drawn = [{c.get_label() for c in axes.containers} for axes in panels.axes]
    both = {"native", "random ticket"}
    assert drawn == [both | {"from t"}, both | {"from s"}]


# --- run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """The 2 x 2 of optimizers, on 8x8 scans; and its results."""
    folder = tmp_path_factory.mktemp("optimizers") / "run"
    words = "digits-optimizers --model mlp-4 --subset 60 --steps 4it --rewind-step 2it "
    words += "--every 2 --levels 1 --replicas 2 --devices 1 --out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert transfer.main([*words.split(), str(folder)]) == 0
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        yield folder, results.load()


def test_between_optimizers_a_native_ticket_is_the_grafted_one_bit_for_bit(square):
    _, results = square
    assert results.attrs["head"] == "kept"
    for name in ("sgd", "adam"):
        own = results.test_error.sel(source=name, target=name, carried="ticket")
        native = results.native_test_error.sel(target=name)
        np.testing.assert_array_equal(own.values, native.values)
        other = {"sgd": "adam", "adam": "sgd"}[name]
        assert (results.overlap.sel(source=name, other=other) < 1).all()


def test_a_run_leaves_its_figures_and_verdicts(square):
    folder, _ = square
    for name in ("figures/accuracy.png", "figures/difference.png", "table.md"):
        assert (folder / name).is_file()
    claims = {
        one["claim"] for one in json.loads((folder / "verdicts.json").read_text())
    }
    assert "ticket transfers" in claims


def test_setups_of_one_task_share_draws_and_differ_in_their_optimizer():
    setups = pairs.prepare(optimizers.design, config(datasets=()))
    sgd, adam = (setups[name] for name in ("sgd", "adam"))
    a, b = (s.task.init(keys.of_seed(1))[0] for s in (sgd, adam))
    for x, y in zip(*(sorted(t["head"].items()) for t in (a, b))):
        np.testing.assert_array_equal(x[1], y[1])
    states = [s.tx.init(a) for s in (sgd, adam)]
    assert str(states[0]) != str(states[1])
