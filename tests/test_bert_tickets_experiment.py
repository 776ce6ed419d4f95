"""Tickets of an encoder, as a user meets them: what is found, moved, said and refused."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
from segments import watched

import lottery_jax as lj
from experiments import bert_tickets
from experiments.bert_tickets import compared, found
from experiments.bert_tickets.config import recipe_of
from experiments.display import Judged
from experiments.experiment import Outcome
from experiments.kinds import encoders
from lottery_jax import verdicts
from lottery_jax.verdicts import ERROR, MATTHEWS, PEARSON, Verdict

xr = pytest.importorskip("xarray")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

EXPERIMENT = bert_tickets.EXPERIMENT
WORDS = EXPERIMENT.tiny.split()
TASKS, SOURCES = ["mlm", "rte"], ["mlm", "rte", "pre-trained"]

pytestmark = pytest.mark.usefixtures("compiled_quickly", "made_texts")


def config(**changes):
    return dataclasses.replace(EXPERIMENT.parse(WORDS).config, **changes)


def load(folder):
    with xr.open_dataset(folder / "results.nc", engine="h5netcdf") as results:
        return results.load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compiled_quickly, made_texts):
    """The folder of a small run, its results, and what was trained in it."""
    folder, seen = tmp_path_factory.mktemp("bert") / "run", []
    with watched(folder, seen):
        assert EXPERIMENT.main([*WORDS, "--out", str(folder)]) == 0
    return folder, load(folder), seen


# --- a small run ----------------------------------------------------------------------


@pytest.mark.slow
def test_results_name_tasks_levels_arms_and_replicas(tiny):
    _, results, _ = tiny
    coordinates = {
        "task": TASKS,
        "target": TASKS,
        "source": SOURCES,
        "other": SOURCES,
        "level": [0, 1],
        "control_level": [1],
        "arm": ["random_mask", "reinit", "shuffled_weights"],
        "replica": [0, 1],
    }
    assert {k: results[k].values.tolist() for k in results.coords} == coordinates
    axes = {
        "ticket": {"task", "replica", "level"},
        "control": {"task", "control_level", "arm", "replica"},
        "transferred": {"target", "source", "replica"},
        "density": {"task", "level", "replica"},
        "overlap": {"source", "other", "replica"},
    }
    assert {name: set(results[name].dims) for name in results} == axes
    for name in results:
        assert np.isfinite(results[name]).all()
    metrics = compared.metrics_of(results)
    assert metrics == {"mlm": ERROR, "rte": ERROR}
    assert "rte: " in results.attrs["note"]  # not as many examples as published
    np.testing.assert_allclose(results["density"].sel(level=1), 0.9, atol=1e-3)


@pytest.mark.slow
def test_a_ticket_that_stays_at_home_is_the_ticket_itself(tiny):
    _, results, _ = tiny
    for task in TASKS:
        moved = results["transferred"].sel(target=task, source=task)
        own = results["ticket"].sel(task=task, level=1)
        np.testing.assert_array_equal(moved, own)


@pytest.mark.slow
def test_masks_overlap_with_themselves_whole_and_by_chance_at_least(tiny):
    _, results, _ = tiny
    overlap = results["overlap"]
    for name in SOURCES:
        assert (overlap.sel(source=name, other=name) == 1).all()
    assert (overlap > 0.88).all()
    # As many weights survive in each, so it is the same seen from either.
    np.testing.assert_allclose(
        overlap.transpose("source", "other", "replica"),
        overlap.transpose("other", "source", "replica"),
        atol=1e-3,
    )


@pytest.mark.slow
def test_interrupted_again_and_again_it_does_nothing_else_twice(tiny, tmp_path):
    _, results, whole = tiny
    folder, seen = tmp_path / "run", []
    words = [*WORDS, "--checkpoint-seconds", "0", "--out", str(folder)]
    # The repair, two levels of each task, controls and transfer of each.
    assert len(set(whole)) == len(whole) == 1 + 2 * (2 + 1 + 1)
    stops = whole[::2]
    with watched(folder, seen, stops):
        for _ in stops:
            assert EXPERIMENT.main(words) == 130
        assert EXPERIMENT.main(words) == 0
    assert sorted(seen, key=whole.index) == sorted([*whole, *stops], key=whole.index)
    resumed = load(folder)
    for name in results.variables:
        np.testing.assert_array_equal(results[name], resumed[name], err_msg=name)


@pytest.mark.slow
def test_the_repaired_encoder_is_stored_and_is_what_tasks_start_from(tiny):
    folder, _, _ = tiny
    (own,) = folder.rglob("encoder/model.safetensors")
    given = encoders.weights(config())
    repaired = lj.pretrained.load(own.parent)
    assert repaired.shape == given.shape
    one, two = (lj.trees.by_path(x.params) for x in (repaired, given))
    assert one.keys() == two.keys()
    assert any((one[path] != two[path]).any() for path in one)
    assert (own.parent / "vocab.txt").read_bytes() == (
        given.folder / "vocab.txt"
    ).read_bytes()


@pytest.mark.slow
def test_an_encoder_of_the_hub_is_repaired_and_keeps_its_pooler(
    made_texts, tmp_path, monkeypatch
):
    given = encoders.weights(config())
    width, folder = given.shape.width, tmp_path / "copy"
    rng = np.random.default_rng(0)
    pooler = {
        "kernel": rng.normal(size=(width, width)).astype(np.float32),
        "bias": np.zeros(width, np.float32),
    }
    params = given.params | {"pooler": pooler}
    lj.pretrained.save(folder, given.shape, params, tokenizer=given.folder)
    hub = types.SimpleNamespace(snapshot_download=lambda name, **_: str(folder))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    cfg = config(tasks=("rte",), pretrained="somebody/with-a-pooler")
    setups = bert_tickets.prepare(cfg)
    own = setups["rte"].task.data["test"]["ids"]
    like = bert_tickets.prepare(config(tasks=("rte",), repair_steps="0it"))
    np.testing.assert_array_equal(own, like["rte"].task.data["test"]["ids"])
    with watched(tmp_path / "run", []):
        repaired = found.repaired(setups, cfg, lj.Where(folder=tmp_path / "run"))
    assert repaired.heads == ("masked_lm", "pooler")
    np.testing.assert_array_equal(repaired.params["pooler"]["kernel"], pooler["kernel"])
    taken = lj.pretrained.fit(repaired, setups["rte"].task).taken
    assert taken["head/pooler/kernel"] == "pooler/kernel"
    word = "embeddings/word/embedding"
    one, two = (lj.trees.by_path(x.params)[word] for x in (repaired, given))
    assert (one != two).any()


def test_without_a_repair_the_corpus_is_not_needed():
    cfg = config(tasks=("rte",), repair_steps="0ep", corpus="nowhere")
    assert list(bert_tickets.prepare(cfg)) == ["rte"]


# --- what is refused ------------------------------------------------------------------

REFUSED = [
    ({"tasks": ("mlm", "sst")}, "tasks='sst'; it must be one of mlm, squad, cola"),
    ({"tasks": ()}, r"tasks=\(\); there must be some"),
    ({"tasks": ("rte", "rte")}, "tasks=.*all different"),
    ({"levels": 10}, "levels=10; it must be between 1 and 9"),
    ({"transfer_level": 2}, "transfer_level=2; it must be between 1 and 1"),
    ({"controls": (1, 2)}, "controls=2; it must be between 1 and 1"),
    ({"controls": ()}, r"controls=\(\); there must be some"),
    ({"arms": ()}, r"arms=\(\); there must be some"),
    ({"lengths": (("cola", 8),)}, r"lengths=\['cola'\]; it must be of .*'rte'"),
    ({"lengths": (("mlm", 8),)}, r"lengths=\['mlm'\]; it must be of .*'rte'"),
    ({"task": "spans"}, "task='spans'; it must be 'classification': what is trained"),
    ({"data": "cola"}, "data='cola'; it must be 'mnist1d': what is trained"),
    ({"pretrained": ""}, "pretrained=''; it must be a folder with config.json"),
    ({"model": "mlp-4"}, "model='mlp-4'; it must be 'bert'"),
    ({"corpus": "rte"}, "data='rte'; it must be one of wikitext2"),
    ({"mlm_length": 2}, "length=2; it must be"),
    ({"mlm_length": 40}, "length=40; it must be at most 32"),
    ({"subset": 1000}, "subset=1000; it must be between 1 and"),
    ({"evaluated": 0}, "evaluated=0; it must be"),
    ({"label_noise": 0.1}, "label_noise=0.1; it must be 0.0: task=.*does not use it"),
    ({"augment": ("flip",)}, "augment=.*does not use it"),
    ({"sweep_learning_rate": (0.1, 0.2)}, "sweep_learning_rate=.*no sweep"),
    ({"exclude": ("^nothing/",)}, r"exclude=\('\^nothing/',\)"),
    ({"steps": "soon"}, "steps: 'soon' is no step"),
    ({"mlm_steps": "0it"}, "steps=0"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_fields_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        bert_tickets.prepare(config(**changes))


def test_texts_that_are_not_there_are_named_with_what_puts_them_there(
    monkeypatch, tmp_path, made_texts
):
    (tmp_path / "models").symlink_to(made_texts / "models")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data.prepare glue --from FOLDER"):
        bert_tickets.prepare(config(tasks=("rte",), repair_steps="0it"))


def test_every_task_has_a_recipe_with_its_own_fields():
    cfg = config(
        tasks=("mlm", "squad", "rte", "cola"),
        mlm_steps="3it",
        squad_steps="4it",
        squad_length=20,
        squad_batch_size=5,
        mlm_evaluated=7,
    )
    mlm, squad, rte, cola = (recipe_of(cfg, name) for name in cfg.tasks)
    assert (mlm.task, mlm.data) == ("masked_lm", "tiny_shakespeare")
    assert (mlm.steps, mlm.length, mlm.evaluated) == ("3it", 16, 7)
    assert (squad.task, squad.data, squad.steps) == ("spans", "squad", "4it")
    assert (squad.length, squad.batch_size, squad.evaluated) == (20, 5, 20)
    assert (rte.task, rte.data, rte.length) == ("sentences", "rte", 12)
    assert (cola.data, cola.length, cola.steps) == ("cola", cfg.length, cfg.steps)
    assert encoders.metric(cola) == MATTHEWS and encoders.metric(mlm) == ERROR


# --- what is said of results ----------------------------------------------------------

METRICS = {"mlm": ERROR, "cola": MATTHEWS, "stsb": PEARSON}


def made_up():
    """Results in which by design tickets of level 1 match, and those of level 2 do not.

    Masks of cola are better than those of a task itself, masks of any other are worse.
    """
    tasks, rng = list(METRICS), np.random.default_rng(0)
    # What is added makes a network worse: errors rise, correlations fall.
    worse = np.array([1 if METRICS[t].better == "lower" else -1 for t in tasks])
    noise = 1e-4 * rng.normal(size=(3, 3, 3))
    steps = np.array([0.0, -0.01, 0.05])
    ticket = 0.5 + worse[:, None, None] * (steps + noise)
    arms = np.array([0.1, -0.1])  # worse than the ticket, and better
    control = ticket[:, None, None, :, 1] + (worse[:, None] * arms)[:, None, :, None]
    control = control + 1e-4 * rng.normal(size=control.shape)
    sources = [*tasks, "pre-trained"]
    transferred = np.empty((3, 4, 3))
    for i in range(3):
        for j, source in enumerate(sources):
            away = 0.0 if source == tasks[i] else -0.02 if source == "cola" else 0.03
            transferred[i, j] = ticket[i, :, 2] + worse[i] * away
    overlap = np.full((4, 4, 3), 0.9)
    return xr.Dataset(
        {
            "ticket": (("task", "replica", "level"), ticket),
            "control": (("task", "control_level", "arm", "replica"), control),
            "transferred": (("target", "source", "replica"), transferred),
            "overlap": (("source", "other", "replica"), overlap),
        },
        {
            "task": tasks,
            "target": tasks,
            "source": sources,
            "other": sources,
            "level": [0, 1, 2],
            "control_level": [1],
            "arm": ["random_mask", "reinit"],
            "replica": [0, 1, 2],
        },
        {"metrics": json.dumps({task: m.name for task, m in METRICS.items()})},
    )


def of_made_up(results=None):
    cfg = config(tasks=tuple(METRICS), levels=2, transfer_level=2, tolerance=0.005)
    results = made_up() if results is None else results
    return results, cfg, compared.judge(results, cfg)


def test_verdicts_follow_the_direction_of_each_metric():
    _, _, judged = of_made_up()
    answers = {(one.claim, *one.where.values()): one.verdict.answer for one in judged}

    def answer(*claim):
        return answers[claim]

    for task in METRICS:
        assert answer("ticket matches dense", task, 1, 10) == "yes"
        assert answer("ticket matches dense", task, 2, 20) == "no"
        assert answer("ticket better than random mask", task, 1, 10) == "yes"
        assert answer("ticket better than random weights", task, 1, 10) == "no"
        claim = "transferred at least as good as the same-task ticket"
        for source in (*METRICS, "pre-trained"):
            if source == task:
                assert (claim, source, task) not in answers
                continue
            expected = "yes" if source == "cola" else "no"
            assert answer(claim, source, task) == expected
            assert answer("transferred matches dense", source, task) == "no"
    assert len(judged) == 3 * (2 + 2) + 2 * 3 * 3
    assert {one.verdict.n for one in judged} == {3}


def test_a_network_that_diverged_is_left_out_by_name():
    results = made_up()
    results["transferred"][1, 0, 2] = np.nan  # of mlm on cola
    _, _, judged = of_made_up(results)
    (verdict,) = (
        one.verdict
        for one in judged
        if one.where == {"source": "mlm", "target": "cola"}
        and one.claim.startswith("transferred at least")
    )
    assert verdict.excluded == ("replica 2",) and verdict.n == 2


def test_how_often_each_source_is_as_good_is_counted():
    _, _, judged = of_made_up()
    counted = {
        source: compared.as_good(judged, source) for source in (*METRICS, "pre-trained")
    }
    assert counted == {
        "mlm": (0, 0, 2),
        "cola": (2, 2, 2),
        "stsb": (0, 0, 2),
        "pre-trained": (0, 0, 3),
    }
    for task in METRICS:
        assert compared.matching_sparsity(judged, task) == {"mean": 10, "surely": 10}


def verdict(estimate, answer, metric=ERROR, tolerance=0.002):
    lower = metric.better == "lower"
    return Verdict(
        "",
        answer,
        estimate if lower else -estimate,
        -1,
        1,
        tolerance if lower else -tolerance,
        3,
        "<=" if lower else ">=",
        metric,
    )


@pytest.mark.parametrize("metric", [ERROR, MATTHEWS])
@pytest.mark.parametrize(
    ("levels", "mean", "surely"),
    [
        ([(0.001, "yes"), (0.002, "undecided"), (0.003, "no"), (0, "yes")], 20, 10),
        ([(-0.1, "yes"), (-0.1, "yes"), (0, "yes"), (0.002, "yes")], 40, 40),
        ([(0.001, "undecided"), (0, "yes")], 20, None),
        ([(0.0021, "no"), (0, "yes")], None, None),
        ([(np.nan, "undecided"), (0, "yes")], None, None),
    ],
)
def test_the_highest_matching_sparsity_is_that_before_the_first_that_fails(
    metric, levels, mean, surely
):
    judged = [
        Judged(
            {"task": "a", "level": level, "sparsity": 10 * level},
            "ticket matches dense",
            verdict(*each, metric),
        )
        for level, each in enumerate(levels, 1)
    ]
    of_another = [one._replace(where=one.where | {"task": "b"}) for one in judged[:1]]
    mixed = [*of_another, *judged[::-1]]
    found_ = compared.matching_sparsity(mixed, "a")
    assert found_ == {"mean": mean, "surely": surely}


@pytest.mark.parametrize("metric", [ERROR, PEARSON])
def test_equal_in_the_mean_is_no_worse_and_what_diverged_is(metric):
    claim = "transferred at least as good as the same-task ticket"
    each = [(0, "undecided"), (0.0001, "yes"), (-0.1, "yes"), (np.nan, "undecided")]
    judged = [
        Judged({"source": "a", "target": str(i)}, claim, verdict(*one, metric))
        for i, one in enumerate(each)
    ]
    judged.append(Judged({"source": "b", "target": "0"}, claim, judged[0].verdict))
    assert compared.as_good(judged, "a") == (2, 2, 4)
    assert compared.as_good(judged, "b") == (1, 0, 1)


def test_tables_show_every_task_and_level():
    results, cfg, judged = of_made_up()
    outcome = Outcome(results, cfg, "bert-tiny", judged)
    levels, matching, matrix, overlap = compared.tables(outcome)
    assert [row[:3] for row in levels.rows[:3]] == [
        ["mlm", "accuracy", "0"],
        ["mlm", "accuracy", "10"],
        ["mlm", "accuracy", "20"],
    ]
    assert len(levels.rows) == 9
    assert all((row[-1] == "-") == (row[2] != "10") for row in levels.rows)
    assert [row[2:] for row in matching.rows] == [["10", "10"]] * 3
    assert [row[0] for row in matrix.rows] == [*METRICS, "pre-trained", "dense"]
    assert matrix.rows[1][-2:] == ["2 of 2", "2 of 2"]
    assert [row[0] for row in overlap.rows] == [*METRICS, "pre-trained"]
    assert all(cell == "90.0" for row in overlap.rows for cell in row[1:])
    lines = compared.conclusions(outcome)
    assert any(line.startswith("Masks of cola: no worse") for line in lines)


def test_overlaps_are_shares_of_what_the_source_keeps():
    one = {"a": np.array([[True, True, False, False]]), "b": np.array([[True]])}
    two = {"a": np.array([[True, False, True, True]]), "c": np.array([[True]])}
    shares = found.overlaps([one, two], ["a"])
    np.testing.assert_allclose(shares[..., 0], [[1, 1 / 2], [1 / 3, 1]])


def test_what_diverged_is_nan():
    axes = ("chain", "arm", "replica", "level")
    error = np.array([[[[0.1, 0.2]]]])
    records = {
        "test_error": (axes, error),
        "diverged": (axes, np.array([[[[False, True]]]])),
    }
    study = lj.imp.Study(*[None] * len(lj.imp.Study._fields))._replace(records=records)
    values = found.measured(study, "error")
    np.testing.assert_array_equal(values, [[[[0.1, np.nan]]]])


def test_claims_are_in_the_words_of_verdicts():
    assert set(METRICS.values()) <= set(verdicts.METRICS.values())
    assert set(compared.CONTROLS) >= set(config().arms)
