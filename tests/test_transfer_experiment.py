"""Tickets on other tasks as experiments: what trains there, and what is concluded."""

import contextlib
import dataclasses
import itertools
import types

import numpy as np
import pytest

import lottery_jax as lj
from experiments import recipes, transfer
from experiments.experiment import Outcome
from experiments.kinds import images
from experiments.transfer import compared, config, matrix, pairs
from lottery_jax import imp, keys, masks, tickets, trees
from lottery_jax.execution import Where

pytestmark = pytest.mark.usefixtures("compiled_quickly")

xr = pytest.importorskip("xarray")

SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "usps": (16, 16, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "svhn": (32, 32, 3),
}
SETS = ("digits-a", "digits-b")


def small(**changes):
    """The demo, on an MLP of a few weights."""
    own = dict(
        datasets=SETS,
        model="mlp-4",
        subset=200,
        steps="4it",
        rewind_step="2it",
        every=4,
        levels=(1, 3),
        replicas=2,
        chunk=1,
        devices=1,
    )
    return dataclasses.replace(config.PRESETS["digits"].config, **(own | changes))


def where(folder):
    return Where(lj.Execution(devices=1, chunk=1), folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All that can be carried, of two sources to both: (folder, setups, results)."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small(carried=("ticket", "structure", "dense"))
    setups = pairs.prepare(matrix.design, cfg)
    return folder, setups, pairs.one(matrix.design, setups, [0, 1], where(folder))


@pytest.fixture
def fake_data(monkeypatch):
    """Random images in the shapes of sets that would have to be prepared."""

    def fake(name, *, validation=None, **_):
        random = np.random.default_rng(0)

        def split(number):
            images = random.integers(0, 256, (number, *SHAPES[name]), np.uint8)
            return {"image": images, "label": np.zeros(number, np.int32)}

        parts = {"train": split(300), "test": split(10)}
        one = (0.5,) * SHAPES[name][-1]
        classes = 100 if name == "cifar100" else 10
        return lj.data.Dataset(parts, classes, SHAPES[name], one, one, name)

    images._load_data.cache_clear()
    real = lj.data.load
    monkeypatch.setattr(
        lj.data, "load", lambda n, **o: (fake if n in SHAPES else real)(n, **o)
    )
    yield
    images._load_data.cache_clear()


def ticket(folder, setup, name, level, replica):
    path = imp.ticket_path(folder / "native" / name, "imp", level, replica)
    return tickets.load(path, setup.task.shapes[:2])


# --- what is run ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", config.PRESETS)
def test_every_preset_makes_networks_that_fit_each_other(name, fake_data):
    cfg = config.PRESETS[name].config
    several = any(name in images.STREAMED for name in cfg.datasets)
    with recipes.by_size() if several else contextlib.nullcontext():
        setups = transfer.EXPERIMENT.of(cfg).prepare(cfg)
    assert len(setups) > 1
    for setup in setups.values():
        assert setup.plan.steps > setup.plan.rewind_step > 0
        assert not setup.task.validates


def test_sets_and_their_parts_are_named():
    cfg = small()
    named = {
        "mnist1d": {},
        "digits-b": {"half": "b"},
        "digits-3classes": {"classes": 3},
    }
    for name, fields in named.items():
        expected = dataclasses.replace(cfg, data=name.split("-")[0], **fields)
        assert matrix.part(cfg, name) == expected


BAD = [
    ({"levels": (3, 1)}, "levels=(3, 1); there must be some, and they must rise"),
    ({"levels": (0, 1)}, "levels=0; it must be 1 or more"),
    (
        {"carried": ("structure",)},
        "carried=('structure',); 'ticket' must be among them",
    ),
    (
        {"datasets": ("digits", "digits")},
        "datasets=('digits', 'digits'); there must be",
    ),
    ({"datasets": ("digits-c",)}, "datasets='digits-c'; it must be SET, SET-a, SET-b"),
    (
        {"datasets": ("digits", "mnist1d")},
        "from digits to mnist1d: ticket.mask must fit",
    ),
    ({"rewind_step": "4it"}, "rewind_step=4 lies beyond the run"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_makes_no_sense_is_refused_by_its_name(changes, message):
    with pytest.raises(ValueError) as refused:
        pairs.prepare(matrix.design, small(**changes))
    assert message in str(refused.value)


@pytest.mark.slow
def test_networks_of_all_sources_are_equally_dense_whatever_their_heads(run):
    folder, setups, results = run
    cfg = small(datasets=("digits", "digits-5classes"))
    kept = []
    for setup in pairs.prepare(matrix.design, cfg).values():
        shapes, flags = setup.task.shapes[0], masks.of_task(setup.task)
        assert not flags["head"]["kernel"]
        (chain,) = setup.plan.chains
        kept.append([imp.keep_counts(chain, shapes, n, flags)[0] for n in (1, 3)])
    assert kept[0] == kept[1]
    for level, number in zip((1, 3), kept[0]):
        for name in SETS:
            mask = ticket(folder, setups[name], name, level, 0).mask
            assert (
                mask["head"]["kernel"].all()
                and mask["dense_0"]["kernel"].sum() == number
            )
        np.testing.assert_array_equal(
            results["density"].sel(level=level), number / (64 * 4)
        )


def test_native_tickets_train_on_the_noise_of_the_study_that_found_them(run):
    folder, setups, results = run
    for name in SETS:
        _, task, tx, plan = setups[name]
        at = where(folder / "native" / name)  # finished: nothing is trained
        study = imp.run(task, tx, plan, levels=3, replicas=[0, 1], where=at)
        error = study.records["test_error"][1][0, 0]
        found = results["native_test_error"].sel(target=name)
        np.testing.assert_array_equal(found, error[:, [1, 3]].T)
        dense = results["dense_test_error"].sel(target=name)
        np.testing.assert_array_equal(dense, error[:, 0])


def test_what_is_fine_tuned_is_the_end_of_level_0(run):
    folder, setups, results = run
    name = SETS[0]
    setup = setups[name]
    done = pairs.trained_dense(name, setup, [0, 1], where(folder / "dense" / name))
    for one, error in zip(done, results["dense_test_error"].sel(target=name).values):
        assert all(leaf.all() for leaf in trees.by_path(one.mask).values())
        network = lj.Network(one.params, one.model_state)
        network = trees.stack([network])
        found = lj.training.evaluate(setup.task, network, "test")["error"]
        np.testing.assert_allclose(found, error, rtol=1e-6)


def test_chains_of_a_target_share_the_noise_of_each_replica(run):
    # The same tickets under two names, among others, end alike to the bit.
    folder, setups, _ = run
    setup = setups[SETS[0]]
    one, other = (
        [ticket(folder, setup, SETS[0], level, r) for r in (0, 1)] for level in (1, 3)
    )
    named = {"first": one, "between": other, "again": one}
    found = pairs.again(setup, named, ("ticket",), [0, 1], where(None))
    loss = found["test_loss"][:, 0]
    np.testing.assert_array_equal(loss[0], loss[2])
    assert (loss[0] != loss[1]).all() and loss[0, 0] != loss[0, 1]


def test_a_head_that_stays_is_that_of_the_ticket(run):
    folder, setups, results = run
    name = SETS[0]
    setup, own = (
        setups[name],
        [[ticket(folder, setups[name], name, 1, r) for r in (0, 1)]],
    )
    study = imp.run(
        *setup[1:], levels=3, replicas=[0, 1], where=where(folder / "native" / name)
    )
    found = {name: pairs.Found(study, {level: own[0] for level in (1, 3)})}
    for stays in (True, False):
        design = pairs.Design({}, (name,), (name,), same_head=stays)
        ready = pairs.Sources(design, found, {}, [0, 1])
        out = pairs.on_target(name, setup, ready, where(None))
        at_home, native = out["test_error"][1][0, 0, 0], out["native_test_error"][1][0]
        np.testing.assert_array_equal(
            native, results["native_test_error"].sel(target=name, level=1)
        )
        # With its own head a ticket is the native one, to the bit.
        assert (at_home == native).all() == stays


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(
    run, tmp_path, monkeypatch
):
    _, setups, expected = run
    real, seen = pairs.on_target, []

    def stop(target, *rest):
        seen.append(target)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(target, *rest)

    monkeypatch.setattr(pairs, "on_target", stop)
    with pytest.raises(KeyboardInterrupt):
        pairs.one(matrix.design, setups, [0, 1], where(tmp_path))
    trained = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")
    }
    found = pairs.one(matrix.design, setups, [0, 1], where(tmp_path))
    assert seen == [SETS[0], SETS[1], *SETS]
    # What was trained before is not trained again.
    assert any("targets" in path.parts for path in trained)
    assert all(path.stat().st_mtime_ns == time for path, time in trained.items())
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# --- masks ----------------------------------------------------------------------------


def test_overlaps_are_shares_of_the_surviving_weights(run):
    folder, setups, results = run
    for level, replica in itertools.product((1, 3), (0, 1)):
        flat = [
            ticket(folder, setups[s], s, level, replica)
            .mask["dense_0"]["kernel"]
            .ravel()
            for s in SETS
        ]
        at = {"level": level, "replica": replica}
        shared = results["overlap"].sel(source=SETS[0], other=SETS[1], **at)
        assert float(shared) == (flat[0] & flat[1]).sum() / flat[0].sum()
        # One layer travels: by chance a weight survives with its density.
        chance = results["overlap_by_chance"].sel(source=SETS[0], other=SETS[1], **at)
        np.testing.assert_allclose(chance, flat[1].mean(), rtol=1e-12)
        assert float(results["overlap"].sel(source=SETS[0], other=SETS[0], **at)) == 1


def test_overlap_by_chance_knows_the_density_of_each_layer():
    cfg = small(model="mlp-4-3")
    setup = pairs.prepare(matrix.design, cfg)[SETS[0]]
    params, state, _ = setup.task.init(keys.of_seed(0))
    full = trees.host(masks.ones_like(params))
    random = np.random.default_rng(0)

    def with_densities(*shares):
        mask = {name: dict(layer) for name, layer in full.items()}
        for layer, share in zip(("dense_0", "dense_1"), shares):
            mask[layer]["kernel"] = random.random(mask[layer]["kernel"].shape) < share
        return tickets.Ticket(mask, params, state, {})

    a, b = with_densities(0.9, 0.2), with_densities(0.3, 0.8)

    def found(one, diverged):
        flags = np.full((1, 1, 1, 2), diverged, np.int8)  # chain, arm, replica, level
        study = types.SimpleNamespace(records={"diverged": ((), flags)})
        return pairs.Found(study, {1: [one]})

    both_set_up = {"a": setup, "b": setup}
    sound = {"a": found(a, 0), "b": found(b, 0)}
    shared, chance = pairs.overlaps(sound, both_set_up)
    parts = [
        (a.mask[layer]["kernel"], b.mask[layer]["kernel"])
        for layer in ("dense_0", "dense_1")
    ]
    alive = sum(x.sum() for x, _ in parts)
    expected = sum(x.sum() * y.sum() / y.size for x, y in parts) / alive
    np.testing.assert_allclose(chance[0, 1, 0, 0], expected, rtol=1e-12)
    both = sum((x & y).sum() for x, y in parts)
    np.testing.assert_allclose(shared[0, 1, 0, 0], both / alive, rtol=1e-12)
    # A mask of weights that diverged has nothing in common with another.
    broken = pairs.overlaps(sound | {"b": found(b, 1)}, both_set_up)
    for values in broken:
        assert np.isnan(values[:, :, 0, 0]).tolist() == [[False, True], [True, True]]


# --- what is concluded ----------------------------------------------------------------


def made_up(random=0.3, **changes):
    """Results of two sets, three replicas and two levels, whose numbers are known."""
    axes = {"target": list("ab"), "carried": ["ticket"], "source": list("ab")}
    axes |= {"level": [1, 2], "replica": [0, 1, 2]}
    shape = tuple(len(values) for values in axes.values())
    wobble = np.array([-0.01, 0.0, 0.01])
    own = np.full((2, 2, 3), 0.2) + wobble
    away = own[:, None, None] + np.zeros(shape)
    away[0, 0, 1] += np.array([0.05, 0.051, 0.049])  # b to a is worse
    away[1, 0, 0] -= np.array([0.02, 0.021, 0.019])  # a to b is better
    arrays = {
        "test_error": (tuple(axes), away),
        "diverged": (tuple(axes), np.zeros(shape, np.int8)),
        "native_test_error": (("target", "level", "replica"), own),
        "random_test_error": (("target", "level", "replica"), own - 0.2 + random),
        "dense_test_error": (("target", "replica"), own[:, 0]),
        "density": (("target", "source", "level", "replica"), np.zeros((2, 2, 2, 3))),
        "overlap": (("source", "other", "level", "replica"), np.ones((2, 2, 2, 3))),
    }
    arrays["density"][1][:] = np.array([0.5, 0.25])[:, None]
    arrays["overlap_by_chance"] = arrays["overlap"]
    for of in ("native_", "random_", "dense_"):
        dims, values = arrays[f"{of}test_error"]
        arrays[f"{of}diverged"] = (dims, np.zeros(values.shape, np.int8))
    results = xr.Dataset(arrays, {**axes, "other": list("ab")})
    return results.assign(changes)


def answer(judged, claim, **where):
    (found,) = (
        one.verdict for one in judged if one.claim == claim and one.where == where
    )
    return found


def test_verdicts_are_on_paired_differences_to_what_is_the_targets_own():
    judged = compared.judge(made_up(), small())
    at = {"level": 1, "density": 0.5}
    worse = answer(judged, "ticket transfers", source="b", target="a", **at)
    assert worse.answer == "no" and worse.n == 3
    np.testing.assert_allclose(worse.estimate, 0.05, rtol=1e-6)
    # Of the differences alone: the replicas themselves are ten times as far apart.
    assert worse.high - worse.low < 0.006
    better = answer(judged, "ticket transfers", source="a", target="b", **at)
    assert better.answer == "yes"
    mean = "ticket transfers, mean of densities"
    found = answer(judged, mean, source="b", target="a")
    np.testing.assert_allclose(found.estimate, 0.05, rtol=1e-6)
    home = "native ticket with a new head matches the native ticket"
    assert answer(judged, home, source="a", target="a", **at).answer == "yes"
    claims = {one.claim for one in judged}
    for control in ("random ticket", "dense"):
        verb = "matches" if control == "dense" else "better than"
        assert {f"ticket {verb} {control}", f"native ticket {verb} {control}"} <= claims
    beats = [one for one in judged if one.claim.endswith("better than random ticket")]
    assert {one.verdict.answer for one in beats} == {"yes"}
    judged = compared.judge(made_up(random=0.1), small())
    beats = [one for one in judged if one.claim.endswith("better than random ticket")]
    assert {one.verdict.answer for one in beats} == {"no"}


def test_what_diverged_is_left_out_by_name_and_said():
    results = made_up()
    results["diverged"].loc[dict(target="a", source="b", level=2, replica=1)] = 1
    judged = compared.judge(results, small())
    at = {"source": "b", "target": "a"}
    found = answer(judged, "ticket transfers", level=2, density=0.25, **at)
    assert found.excluded == ("replica 1",) and found.n == 2
    mean = answer(judged, "ticket transfers, mean of densities", **at)
    assert mean.excluded == ("replica 1",)
    lines = compared.conclusions(Outcome(results, small(), "made up", judged))
    assert sum("1 transferred networks" in line for line in lines) == 1


def test_a_mask_from_weights_that_diverged_counts_as_diverged():
    diverged = np.zeros((1, 1, 2, 4), np.int8)
    diverged[0, 0, 1, 2] = (
        1  # level 2 of the second replica: it made the mask of level 3
    )
    study = type("Study", (), {"records": {"diverged": ((), diverged)}})
    found = pairs.broken(pairs.Found(study, {}), (2, 3))
    assert found.tolist() == [[0, 0], [0, 1]]


def test_figures_show_the_differences_and_mark_the_sure_ones():
    pytest.importorskip("matplotlib")
    results = made_up()
    outcome = Outcome(results, small(), "made up", compared.judge(results, small()))
    drawn = {name: (figure, about) for name, figure, about in compared.figures(outcome)}
    assert list(drawn) == ["accuracy", "difference"]
    figure, about = drawn["difference"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    # Rows are sources, columns targets; in points of accuracy.
    assert texts == ["+0.0", "+2.0*", "-5.0*", "+0.0"]
    assert {one.where.get("source") for one in about} == {"a", "b"}
    panel = drawn["accuracy"][0].axes[0]
    lines = {c.get_label(): c.lines[0].get_ydata() for c in panel.containers}
    np.testing.assert_allclose(lines["from b"], [75, 75])
    np.testing.assert_allclose(lines["native"], [80, 80])
    everything = [one for _, about in drawn.values() for one in about]
    assert len(everything) == len(outcome.judged)
    assert all(any(one is other for other in everything) for one in outcome.judged)


def test_tables_have_a_row_for_each_target_and_density():
    results = made_up()
    outcome = Outcome(results, small(), "made up", compared.judge(results, small()))
    accuracy, differences, overlap = compared.tables(outcome)
    assert [row[:2] for row in accuracy.rows] == [
        [target, share] for target in "ab" for share in ("dense", "50.0", "25.0")
    ]
    assert differences.rows[1][1].startswith("+5.00 ± ")
    assert [row[1:] for row in overlap.rows] == [["100.0", "100.0"]] * 2
