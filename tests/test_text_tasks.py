"""Tasks on texts: what is asked, what is said of it, and what does not fit."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import text_toys
import toys
from text_toys import KERNELS, LENGTH, SHAPE, VOCABULARY

import lottery_jax as lj
from lottery_jax import imp, keys, masks, transfer, trees
from lottery_jax.data.text import Texts
from lottery_jax.execution import Execution
from lottery_jax.models import Bert
from lottery_jax.types import Network

masked = importlib.import_module("lottery_jax.tasks.masked_lm")

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MAKE = {
    "masked_lm": text_toys.masked_lm,
    "classes": text_toys.sentences,
    "three classes": functools.partial(text_toys.sentences, 3),
    "numbers": functools.partial(text_toys.sentences, None),
    "spans": text_toys.spans,
}

# Three classes compute what two do, but for their metrics.
kinds = pytest.mark.parametrize("kind", [k for k in MAKE if k != "three classes"])


@functools.cache
def made(kind):
    """A task whose last batch is padded, and params of a network that says something."""
    task = MAKE[kind](drop_last=False)
    return task, text_toys.wide(task)


@functools.cache
def said(kind):
    """The jitted loss with its gradient, evaluation and outputs of such a task."""
    task, _ = made(kind)

    def loss(params, batch, key):
        value, (_, _, metrics) = task.loss(params, {}, (), batch, key)
        return value, metrics

    def evaluate(params, data, key, split):
        return task.evaluate(params, {}, data, key, split)

    def outputs(params, batch):
        return task.outputs(params, {}, batch)

    return (
        jax.jit(jax.value_and_grad(loss, has_aux=True)),
        jax.jit(evaluate, static_argnums=3),
        jax.jit(outputs),
    )


def measured(kind, params, data, split="test", key=0):
    """The metrics of a split."""
    return said(kind)[1](params, data, keys.of_seed(key), split)


def evaluated(kind, split="test"):
    task, params = made(kind)
    return {
        name: float(x) for name, x in measured(kind, params, task.data, split).items()
    }


def whole(kind, split="test"):
    """All examples of a split as one batch, and what the network says of them."""
    task, params = made(kind)
    arrays = task.data[split]
    batch = dict(arrays) | {"weight": np.ones(len(arrays["ids"]), np.float32)}
    if kind == "masked_lm":
        batch |= hidden(arrays["ids"], seed=masked._EVALUATION)._asdict()
    return batch, np.asarray(said(kind)[2](params, batch), np.float64)


def cross_entropy(logits, labels):
    """In nats, of logits `[..., C]` and labels `[...]`."""
    most = logits.max(-1)
    normal = most + np.log(np.exp(logits - most[..., None]).sum(-1))
    return normal - np.take_along_axis(logits, labels[..., None], -1)[..., 0]


# --- which tokens are hidden ----------------------------------------------------------


def hidden(ids, number=3, seed=0):
    return masked.hide(keys.of_seed(seed), ids, VOCABULARY, number)


def test_as_many_tokens_of_every_window_are_hidden_and_none_that_is_no_word():
    rng = text_toys.random()
    ids = rng.integers(0, VOCABULARY.size, (500, LENGTH), np.int32)
    ids[:, :4] = text_toys.words(rng, 500, 4)  # there are enough
    ids = rng.permuted(ids, axis=1)
    found = hidden(ids)
    at = np.asarray(found.positions)
    assert found.positions.shape == (500, 3) and (found.counts == 1).all()
    assert all(len(set(row)) == 3 for row in at.tolist())
    labels = np.take_along_axis(ids, at, 1)
    np.testing.assert_array_equal(found.labels, labels)
    assert not np.isin(labels, [*VOCABULARY.special, VOCABULARY.unknown]).any()
    elsewhere = np.ones(ids.shape, bool)
    np.put_along_axis(elsewhere, at, False, 1)
    np.testing.assert_array_equal(np.asarray(found.ids)[elsewhere], ids[elsewhere])
    assert {x.dtype.name for x in found} == {"int32", "float32"}


def test_of_ten_hidden_tokens_eight_become_the_mask_one_another_and_one_stays():
    number, size = 12_000, VOCABULARY.size
    ids = text_toys.words(text_toys.random(), number // 3, LENGTH)
    found = hidden(ids)
    put = np.take_along_axis(np.asarray(found.ids), np.asarray(found.positions), 1)
    labels = np.asarray(found.labels)

    def is_close(count, share):
        assert abs(count - share * number) < 5 * np.sqrt(number * share * (1 - share))

    is_close((put == VOCABULARY.mask).sum(), 0.8 + 0.1 / size)
    is_close((put == labels).sum(), 0.1 + 0.1 / size)
    other = put[(put != labels) & (put != VOCABULARY.mask)]
    is_close(len(other), 0.1 * (1 - 2 / size))
    # Any token may come instead, each as often.
    seen = np.bincount(other, minlength=size)
    expected = len(other) / (size - 1)
    assert (seen > 0).sum() == size - 1 and seen.max() < expected + 5 * expected**0.5
    # Every position of a window is chosen as often.
    places = np.bincount(np.asarray(found.positions).ravel(), minlength=LENGTH)
    share = 1 / LENGTH
    assert (abs(places - number * share) < 5 * (number * share) ** 0.5).all()


@pytest.mark.parametrize("words", [0, 1, 2])
def test_of_a_window_with_fewer_words_all_are_hidden_and_nothing_else(words):
    ids = np.full((400, LENGTH), VOCABULARY.unknown, np.int32)
    ids[:, 0], ids[:, -1] = VOCABULARY.first, VOCABULARY.separator
    ids[:, 4 : 4 + words] = text_toys.words(text_toys.random(), 400, words)
    found = hidden(ids)
    assert (np.asarray(found.counts) == [1] * words + [0] * (3 - words)).all()
    at = np.asarray(found.positions)[:, :words]
    assert (np.sort(at, 1) == 4 + np.arange(words)).all()
    outside = np.delete(np.arange(LENGTH), 4 + np.arange(words))
    np.testing.assert_array_equal(np.asarray(found.ids)[:, outside], ids[:, outside])


def test_the_same_tokens_are_hidden_whatever_draws_are_split_by():
    ids = text_toys.windows().arrays["train"]["ids"]
    here = hidden(ids)
    with jax.threefry_partitionable(False):
        toys.assert_equal(hidden(ids), here)
    task, _ = made("masked_lm")
    batch = text_toys.last_batch(task)
    with jax.threefry_partitionable(False):
        toys.assert_equal(text_toys.last_batch(task), batch)


def test_every_step_and_every_noise_hides_other_tokens_and_the_same_ones_again():
    task, _ = made("masked_lm")

    def at(seed, step):
        rows, key = jnp.arange(6), keys.of_seed(seed)
        return task.batch(task.data, rows, key, jnp.int32(step))

    first = at(0, 3)
    toys.assert_equal(at(0, 3), first)
    for other in (at(0, 4), at(1, 3), at(0, 3 + task.steps_per_epoch)):
        assert (other["positions"] != first["positions"]).any()


# --- losses and metrics, written out --------------------------------------------------


def losses_of(kind, batch, outputs):
    """The loss of every example, and how much each counts."""
    weight = np.asarray(batch["weight"], np.float64)
    if kind == "masked_lm":
        counts = np.asarray(batch["counts"]) * weight[:, None]
        return cross_entropy(outputs, np.asarray(batch["labels"])), counts
    if kind == "spans":
        present = np.asarray(batch["ids"]) != VOCABULARY.pad
        scores = np.where(present[..., None], outputs, -1e30)
        first = np.asarray(batch["answers"])[:, 0]
        both = [cross_entropy(scores[..., i], first[:, i]) for i in (0, 1)]
        return np.mean(both, 0), weight
    if kind == "numbers":
        return (outputs[:, 0] - np.asarray(batch["label"])) ** 2, weight
    return cross_entropy(outputs, np.asarray(batch["label"])), weight


def wrong_of(kind, batch, outputs):
    """Whether each guess is wrong."""
    label = batch["labels" if kind == "masked_lm" else "label"]
    return outputs.argmax(-1) != np.asarray(label)


def mean(values, counts):
    return (values * counts).sum() / counts.sum()


@kinds
def test_the_loss_of_a_batch_is_the_mean_over_what_is_there(kind):
    task, params = made(kind)
    batch = text_toys.last_batch(task)
    assert batch["weight"].tolist() == [1, 1, 1, 1, 0, 0]
    outputs = np.asarray(said(kind)[2](params, batch), np.float64)
    (loss, metrics), _ = said(kind)[0](params, batch, keys.of_seed(0))
    values, counts = losses_of(kind, batch, outputs)
    np.testing.assert_allclose(loss, mean(values, counts), rtol=2e-5)
    expected = {"loss": mean(values, counts)}
    if kind not in ("numbers", "spans"):
        expected["error"] = mean(wrong_of(kind, batch, outputs), counts)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("masked_lm", "test"),
        ("classes", "train"),
        ("classes", "test"),
        ("spans", "test"),
    ],
)
def test_evaluation_counts_every_example_once(kind, split):
    found = evaluated(kind, split)
    batch, outputs = whole(kind, split)
    values, counts = losses_of(kind, batch, outputs)
    np.testing.assert_allclose(found["loss"], mean(values, counts), rtol=2e-5)
    if kind != "spans":
        error = mean(wrong_of(kind, batch, outputs), counts)
        np.testing.assert_allclose(found["error"], error, rtol=1e-6)
        assert 0 < found["error"] < 1 or kind == "masked_lm"


def test_the_perplexity_of_guessed_tokens_is_that_of_all_of_them_together():
    found = evaluated("masked_lm")
    assert found.keys() == {"loss", "error", "perplexity"}
    batch, outputs = whole("masked_lm")
    values, counts = losses_of("masked_lm", batch, outputs)
    perplexity = np.exp(mean(values, counts))
    np.testing.assert_allclose(found["perplexity"], perplexity, rtol=1e-4)


@kinds
def test_evaluation_knows_no_noise(kind):
    task, params = made(kind)
    one, other = (measured(kind, params, task.data, key=key) for key in (0, 1))
    toys.assert_equal(one, other)


@pytest.mark.parametrize("kind", ["classes", "three classes"])
def test_metrics_of_classes_are_those_of_scikit_learn(kind):
    sklearn = pytest.importorskip("sklearn.metrics")
    task, params = made(kind)
    batch, outputs = whole(kind)
    # Of a drawn network one class may be said of everything; of this one not.
    middle = outputs.mean(0)
    params = jax.tree.map(lambda x: x, params)
    params["head"]["output"]["bias"] -= np.float32(middle)
    found = measured(kind, params, task.data)
    guessed, label = (outputs - middle).argmax(-1), batch["label"]
    names = {"loss", "error", "matthews"} | ({"f1"} if kind == "classes" else set())
    assert found.keys() == names
    expected = {
        "error": 1 - sklearn.accuracy_score(label, guessed),
        "matthews": sklearn.matthews_corrcoef(label, guessed),
    }
    if kind == "classes":
        expected["f1"] = sklearn.f1_score(label, guessed)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert 0 < found["error"] < 1 and found["matthews"] != 0


def test_metrics_of_numbers_are_those_of_scipy():
    import scipy.stats

    found = evaluated("numbers")
    batch, outputs = whole("numbers")
    number, label = outputs[:, 0], batch["label"]
    expected = {
        "loss": np.mean((number - label) ** 2),
        "pearson": scipy.stats.pearsonr(number, label)[0],
        "spearman": scipy.stats.spearmanr(number, label)[0],
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    assert made("numbers")[0].predict is None


def spans_of(batch, scores, longest=2):
    """The best spans within the context, by trying all of them."""
    found = []
    for ids, types, own in zip(batch["ids"], batch["types"], scores):
        allowed = (types == 1) & (ids != VOCABULARY.pad) & (ids != VOCABULARY.separator)
        tried = {
            (first, last): own[first, 0] + own[last, 1]
            for first in range(LENGTH)
            for last in range(first, min(first + longest, LENGTH))
            if allowed[first] and allowed[last]
        }
        found.append(max(tried, key=tried.get))
    return found


def test_answers_are_the_best_spans_of_the_context_and_the_best_answer_counts():
    found = evaluated("spans")
    batch, scores = whole("spans")
    spans = spans_of(batch, scores)
    f1, exact = [], []
    for (first, last), answers in zip(spans, batch["answers"]):
        mine, overlaps = set(range(first, last + 1)), []
        for begin, end in answers[answers[:, 0] >= 0]:
            theirs = set(range(begin, end + 1))
            overlaps.append(2 * len(mine & theirs) / (len(mine) + len(theirs)))
        f1.append(max(overlaps))
        exact.append(max(overlaps) == 1)
    assert found.keys() == {"loss", "error", "f1", "exact_match"}
    np.testing.assert_allclose(found["f1"], np.mean(f1), rtol=1e-6)
    np.testing.assert_allclose(found["exact_match"], np.mean(exact), rtol=1e-6)
    np.testing.assert_allclose(found["error"], 1 - np.mean(exact), rtol=1e-6)
    assert 0 < np.mean(exact) < np.mean(f1) < 1
    # What scores best anywhere is not what scores best in the context.
    anywhere = scores[..., 0].argmax(1)
    assert (anywhere != [first for first, _ in spans]).any()


@pytest.mark.parametrize("kind", ["masked_lm", "classes", "spans"])
def test_predictions_are_one_of_each_example_in_their_order(kind):
    task, params = made(kind)
    predict = jax.jit(task.predict, static_argnums=4)
    found = predict(params, {}, task.data, keys.of_seed(0), "test")
    batch, outputs = whole(kind)
    if kind == "spans":
        expected = [first * LENGTH + last for first, last in spans_of(batch, outputs)]
    else:
        expected = outputs.argmax(-1).ravel()
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


# --- padding --------------------------------------------------------------------------


@pytest.mark.slow
@kinds
def test_examples_that_fill_up_a_batch_change_nothing(kind):
    task, params = made(kind)
    batch = text_toys.last_batch(task)
    real = int(batch["weight"].sum())
    full = text_toys.last_batch(MAKE[kind](batch_size=real, drop_last=True), noise=2)
    other = {
        name: x if name == "weight" else jnp.concatenate([x[:real], full[name][:2]])
        for name, x in batch.items()
    }
    assert (other["ids"] != batch["ids"]).any()
    loss, key = said(kind)[0], keys.of_seed(0)
    toys.assert_equal(loss(params, other, key), loss(params, batch, key))
    short = {name: x[:real] for name, x in batch.items()}
    toys.assert_close(loss(params, short, key), loss(params, batch, key))


@pytest.mark.parametrize("kind", ["classes", "numbers", "spans"])
def test_tokens_that_fill_up_a_sequence_change_nothing(kind):
    task, params = made(kind)
    batch = text_toys.last_batch(task)
    present = batch["ids"] != VOCABULARY.pad
    assert not present.all()
    other = batch | {"types": jnp.where(present, batch["types"], 1 - batch["types"])}
    loss, key = said(kind)[0], keys.of_seed(0)
    toys.assert_equal(loss(params, other, key), loss(params, batch, key))

    def longer(array, fill):
        return np.pad(array, ((0, 0), (0, 2)), constant_values=fill)

    def padded(arrays):
        ids, types = arrays["ids"], arrays["types"]
        return arrays | {"ids": longer(ids, VOCABULARY.pad), "types": longer(types, 0)}

    there = loss(params, padded(batch), key)
    toys.assert_close(there, loss(params, batch, key))
    data = {split: padded(arrays) for split, arrays in task.data.items()}
    longer_ones = measured(kind, params, data)
    toys.assert_close(longer_ones, measured(kind, params, task.data))


# --- models ---------------------------------------------------------------------------


def functions_of(module, vocabulary=VOCABULARY):
    """A Linen module as two functions that know of no library."""
    row = jnp.full((1, LENGTH), vocabulary.first)
    at = jnp.zeros((1, 3), jnp.int32)
    tokens = lj.data.text.Tokens(row, jnp.zeros_like(row), row > 0, at)

    def init(key):
        return module.init(key, tokens)["params"]

    def apply(params, tokens, *, train, key):
        rngs = {"dropout": key} if train else None
        return module.apply({"params": params}, tokens, train, rngs=rngs)

    return {"init": init, "apply": apply}


DROPPING = lj.models.BertShape(
    **vars(SHAPE) | {"dropout": 0.2, "attention_dropout": 0.2}
)
MODELS = {
    "masked_lm": Bert(DROPPING, head="masked_lm"),
    "classes": Bert(DROPPING, head="classes", outputs=2),
    "spans": Bert(DROPPING, head="span"),
}


def task_of(kind, model, **options):
    """One of three tasks with a model of one's own."""
    if isinstance(model, nn.Module):
        return MAKE[kind](model=model, **options)
    texts = {
        "masked_lm": text_toys.windows,
        "classes": text_toys.labelled,
        "spans": text_toys.questions,
    }[kind]()
    make = {
        "masked_lm": functools.partial(lj.tasks.masked_lm, rate=0.3),
        "classes": lj.tasks.sentences,
        "spans": functools.partial(lj.tasks.spans, longest=2),
    }[kind]
    sizes = {"batch_size": text_toys.BATCH, "evaluation_batch": 5}
    return make(texts, **sizes, **model, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_functions_give_the_numbers_of_the_module_that_they_call(kind):
    module = MODELS[kind]
    one = task_of(kind, module, drop_last=True)
    two = task_of(kind, functions_of(module), drop_last=True)
    for task in (one, two):
        shapes = jax.tree.map(lambda x: x.shape, task.shapes)
        assert shapes == jax.tree.map(lambda x: x.shape, one.shapes)
    params = text_toys.wide(one)
    found = []
    for task in (one, two):

        @jax.jit
        def numbers(params, key, task=task):
            batch = text_toys.last_batch(task)
            loss = jax.value_and_grad(task.loss, has_aux=True)
            own = loss(params, {}, (), batch, key)
            return own, task.evaluate(params, {}, task.data, key, "test")

        found.append([numbers(params, keys.of_seed(seed)) for seed in (0, 0, 1)])
    toys.assert_equal(*found)
    again, other = found[0][1:]
    toys.assert_equal(found[0][0], again)
    # Dropout draws from the key in training alone.
    assert again[0][0][0] != other[0][0][0]
    toys.assert_equal(again[1], other[1])


def prunable(task, **given):
    """The key paths of what counts as prunable, and how many weights they have."""
    shapes = trees.by_path(task.shapes[0])
    flags = masks.resolve(task.shapes[0], given.get("of", masks.of_task(task)))
    paths = [path for path, counts in zip(shapes, flags) if counts]
    return paths, sum(shapes[path].size for path in paths)


DENSE = [
    *(f"layer_0/attention/{name}/kernel" for name in ("query", "key", "value")),
    "layer_0/attention/output/kernel",
    "layer_0/inner/kernel",
    "layer_0/outer/kernel",
]


@kinds
def test_what_counts_are_the_kernels_of_the_layers(kind):
    paths, number = prunable(made(kind)[0])
    assert sorted(paths) == sorted(DENSE)
    assert number == KERNELS


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (text_toys.masked_lm, {"head": "masked_lm"}),
        (text_toys.sentences, {"head": "classes"}),
        (text_toys.spans, {"head": "span"}),
    ],
)
def test_a_pooler_counts_where_it_is_asked_for(make, head):
    task = make(model=Bert(SHAPE, pooler="pruned", **head))
    paths, number = prunable(task)
    assert sorted(paths) == sorted([*DENSE, "pooler/kernel"])
    assert number == KERNELS + SHAPE.width**2


def test_other_leaves_may_count_and_some_are_never_cut():
    def kernels(params):
        return masks.prunable(params, include=("inner/kernel$", "outer/kernel$"))

    task = text_toys.sentences(prunable=kernels, exclude=("inner/",))
    assert prunable(task)[1] == 2 * 8 * 12
    plan = imp.Plan(steps=1, chains=(imp.Chain("imp"),), arms=("ticket",))
    imp.check_task(task, imp.check(plan), 2)
    cut = masks.cuttable(task.shapes[0], masks.of_task(task), task.exclude)
    shapes = trees.paths(task.shapes[0])
    assert [path for path, is_cut in zip(shapes, cut) if is_cut] == [
        "layer_0/outer/kernel"
    ]
    whole = text_toys.sentences(exclude=("^layer_0/",))
    with pytest.raises(ValueError, match="exclude"):
        imp.check_task(whole, imp.check(plan), 2)


# --- tickets --------------------------------------------------------------------------

PLAN = imp.Plan(
    steps=3,
    chains=(imp.Chain("imp", imp.Linear(0.3)),),
    arms=("ticket",),
    validate_every=3,
)
ALIVE = [448, 314, 179]
"""Of 448 weights; 134.4 less each time."""


def study(ids, folder=None, watch=None):
    """Tickets of masked language modelling; all replicas start from one network."""
    task = text_toys.masked_lm()
    where = lj.Where(Execution(1, 1), folder, 0, watch)
    start = Network(text_toys.wide(task, 3), {})
    tx = optax.adam(0.01)
    return imp.run(task, tx, PLAN, levels=2, replicas=ids, start=start, where=where)


@functools.cache
def straight():
    return study((0, 1))


@pytest.mark.slow
def test_replicas_share_a_start_and_hide_tokens_of_their_own():
    found = straight()
    records = {name: values for name, (_, values) in found.records.items()}
    assert (records["alive"] == ALIVE).all() and not records["diverged"].any()
    own = records["test_loss"][0, 0]
    assert own.shape == (2, 3) and (own[0] != own[1]).all()
    (tickets,) = imp.tickets_of(found)
    for path, leaf in trees.by_path(tickets[0].mask).items():
        assert leaf.all() or path in DENSE
    start = trees.by_path(text_toys.wide(text_toys.masked_lm(), 3))
    for ticket in tickets:
        alive, kept = trees.by_path(ticket.mask), trees.by_path(ticket.params)
        for path, leaf in start.items():
            own = alive[path]
            np.testing.assert_array_equal(kept[path][own], np.asarray(leaf)[own])


@pytest.mark.slow
def test_a_study_of_texts_goes_on_where_it_was_killed(tmp_path):
    def stop(moment):
        if (moment.level, moment.done) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study((0, 1), tmp_path, stop)
    resumed = study((0, 1), tmp_path)
    toys.assert_same_records(straight().records, resumed.records)
    toys.assert_equal(straight().masks, resumed.masks)


@pytest.mark.slow
def test_a_replica_alone_has_the_numbers_that_it_has_among_others():
    alone = study((1,))
    among = np.s_[:, :, 1:2]
    toys.assert_same_records(straight().records, alone.records, among)


@pytest.mark.slow
def test_masks_of_an_encoder_go_to_another_task_and_leave_its_head_whole():
    task = text_toys.sentences(3)
    tickets = imp.tickets_of(straight())[0]
    there = [transfer.mask_onto(one.mask, task) for one in tickets]
    for mask, ticket in zip(there, tickets):
        assert jax.tree.structure(mask) == jax.tree.structure(task.shapes[0])
        theirs = trees.by_path(ticket.mask)
        for path, leaf in trees.by_path(mask).items():
            assert leaf.dtype == bool
            if path.startswith("head/"):
                assert leaf.all()
            else:
                np.testing.assert_array_equal(leaf, theirs[path])
    whole = trees.stack([trees.host(text_toys.wide(task, seed)) for seed in (0, 1)])
    networks = Network(whole, {})
    found = imp.retrain(
        task,
        optax.adam(0.01),
        PLAN,
        imp.tickets_from([trees.stack(there)], networks),
        level=2,
        replicas=2,
        dense=networks,
    )
    records = {name: values[..., 0] for name, (_, values) in found.records.items()}
    assert (records["alive"] == ALIVE[2]).all() and not records["diverged"].any()
    assert np.isfinite(records["test_matthews"]).all()


def broken(change):
    mask = trees.host(imp.tickets_of(straight())[0][0].mask)
    leaves = {path: np.array(leaf) for path, leaf in trees.by_path(mask).items()}
    change(leaves)
    nested = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        node = nested
        for name in outer:
            node = node.setdefault(name, {})
        node[last] = leaf
    return nested


def without_a_word(leaves):
    leaves["embeddings/word/embedding"][3, 0] = False


def without_a_layer(leaves):
    del leaves["layer_0/inner/kernel"]


def with_a_layer(leaves):
    leaves["layer_1/inner/kernel"] = leaves["layer_0/inner/kernel"]


def of_another_shape(leaves):
    leaves["layer_0/inner/kernel"] = np.ones((8, 4), bool)


def of_numbers(leaves):
    leaves["layer_0/inner/kernel"] = np.ones((8, 12), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_word, "leaf 'embeddings/word/embedding' is pruned, and does not"),
        (without_a_layer, "'layer_0/inner/kernel' is missing"),
        (with_a_layer, "'layer_1/inner/kernel' is no leaf of the task"),
        (of_another_shape, r"'layer_0/inner/kernel' has shape \(8, 4\); .* \(8, 12\)"),
        (of_numbers, "'layer_0/inner/kernel' has dtype float32; .* bool"),
    ],
)
def test_a_mask_that_does_not_fit_a_task_is_refused_by_leaf(change, message):
    with pytest.raises(ValueError, match=message):
        transfer.mask_onto(broken(change), made("classes")[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKE)
def test_texts_may_name_whatever_their_task_measures(kind):
    task = made(kind)[0]
    texts = {
        "masked_lm": text_toys.windows,
        "classes": text_toys.labelled,
        "three classes": lambda: text_toys.labelled(3),
        "numbers": lambda: text_toys.labelled(None),
        "spans": text_toys.questions,
    }[kind]()
    for name in lj.training.measured.metrics(task, "test"):
        MAKE[kind](texts=named(texts, name))


# --- what does not fit ----------------------------------------------------------------


class Normed(nn.Module):
    """An encoder with BatchNorm, whose statistics are a state."""

    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(40, 4)(tokens.ids).mean(1)
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


def without(texts, name):
    arrays = {
        split: {field: x for field, x in own.items() if field != name}
        for split, own in texts.arrays.items()
    }
    return texts._replace(arrays=arrays)


def long_text():
    ids = text_toys.words(text_toys.random(), 300)
    return Texts({"train": {"ids": ids}, "test": {"ids": ids}}, VOCABULARY, "long")


def named(texts, metric):
    return texts._replace(metric=metric)


def unmasked():
    return text_toys.windows()._replace(vocabulary=VOCABULARY._replace(mask=None))


def larger(texts):
    return texts._replace(vocabulary=VOCABULARY._replace(size=41))


def shape(**changes):
    return lj.models.BertShape(**vars(SHAPE) | changes)


REFUSED = {
    "labels for spans": (
        lambda: text_toys.spans(texts=text_toys.labelled()),
        "labels-2: arrays of 'train'=.*; it must be .*'answers'",
    ),
    "answers for sentences": (
        lambda: text_toys.sentences(texts=text_toys.questions()),
        "questions: arrays of 'train'=.*; it must be .*'label'",
    ),
    "windows for sentences": (
        lambda: text_toys.sentences(texts=text_toys.windows()),
        "windows: arrays of 'train'=.*; it must be .*'label'",
    ),
    "sentences for windows": (
        lambda: text_toys.masked_lm(text_toys.labelled()),
        "labels-2: arrays of 'train'=.*; it must be ids alone, of whole windows",
    ),
    "a long text": (
        lambda: text_toys.masked_lm(long_text()),
        r"long: ids.shape=\(300,\); it must be .*windows",
    ),
    "no texts": (
        lambda: text_toys.sentences(texts=toys.dataset()),
        "texts=a Dataset; it must be a lottery_jax.data.text.Texts",
    ),
    "a missing split": (
        lambda: text_toys.spans(texts=without(text_toys.questions(), "types")),
        "arrays",
    ),
    "a metric of numbers for classes": (
        lambda: text_toys.sentences(texts=named(text_toys.labelled(), "pearson")),
        "labels-2: metric='pearson'; it must be one of loss, error, matthews, f1",
    ),
    "a metric of two classes for three": (
        lambda: text_toys.sentences(3, texts=named(text_toys.labelled(3), "f1")),
        "labels-3: metric='f1'; it must be one of loss, error, matthews$",
    ),
    "a metric of classes for numbers": (
        lambda: text_toys.sentences(
            None, texts=named(text_toys.labelled(None), "error")
        ),
        "metric='error'; it must be one of loss, pearson, spearman",
    ),
    "a metric of classes for spans": (
        lambda: text_toys.spans(texts=named(text_toys.questions(), "matthews")),
        "questions: metric='matthews'; it must be one of loss, error, exact_match, f1",
    ),
    "a metric of classes for windows": (
        lambda: text_toys.masked_lm(named(text_toys.windows(), "f1")),
        "windows: metric='f1'; it must be one of loss, error, perplexity",
    ),
    "no mask": (
        lambda: text_toys.masked_lm(unmasked()),
        r"texts.vocabulary.mask=None; it must be the id of \[MASK\]",
    ),
    "a larger vocabulary": (
        lambda: text_toys.sentences(texts=larger(text_toys.labelled())),
        "vocabulary of labels-2=41; it must be 40 at most",
    ),
    "too few positions": (
        lambda: text_toys.spans(model=Bert(shape(positions=9), head="span")),
        "length=10; it must be at most 9",
    ),
    "too few types": (
        lambda: text_toys.sentences(model=Bert(shape(types=1), head="classes")),
        "types of labels-2=2; it must be 1 at most",
    ),
    "other classes": (
        lambda: text_toys.sentences(3, Bert(SHAPE, head="classes", outputs=2)),
        r"shape \(6, 2\).* \(6, 3\)",
    ),
    "classes for a number": (
        lambda: text_toys.sentences(None, Bert(SHAPE, head="classes", outputs=2)),
        r"shape \(6, 2\).* \(6, 1\)",
    ),
    "another head": (
        lambda: text_toys.spans(model=Bert(SHAPE, head="none")),
        r"shape \(6, 10, 8\).* \(6, 10, 2\)",
    ),
    "an unknown head": (
        lambda: text_toys.spans(model=Bert(SHAPE, head="spans")),  # type: ignore[arg-type]
        "head='spans'; it must be one of masked_lm",
    ),
    "an unknown pooler": (
        lambda: text_toys.spans(model=Bert(SHAPE, head="span", pooler="kept")),  # type: ignore[arg-type]
        "pooler='kept'; it must be one of head, pruned",
    ),
    "a state": (
        lambda: text_toys.sentences(model=Normed(), drop_last=True),
        "model=Normed: it has a model state; a task on texts carries none",
    ),
    "a model and functions": (
        lambda: text_toys.spans(**functions_of(MODELS["spans"])),
        "model",
    ),
    "no model": (lambda: lj.tasks.spans(text_toys.questions(), batch_size=6), "model"),
    "no longest": (lambda: text_toys.spans(longest=0), "longest=0; it must be"),
    "no prunable": (
        lambda: text_toys.spans(prunable=("kernel",)),
        "prunable=.*; it must be a function of params, or None",
    ),
    **{
        f"rate {rate}": (
            lambda rate=rate: text_toys.masked_lm(rate=rate),
            f"rate={rate}; it must be",
        )
        for rate in (0.0, 0.04, 1.0, float("nan"))
    },
    **{
        f"{field} of {kind}": (
            lambda make=make, field=field: make(**{field: ("^nothing/",)}),
            rf"{field}=\('\^nothing/',\): .*'\^nothing/'",
        )
        for field, kind, make in (
            ("exclude", "masked_lm", text_toys.masked_lm),
            ("head", "spans", text_toys.spans),
        )
    },
    **{
        f"batches of {size}": (
            lambda size=size: text_toys.spans(batch_size=size),
            f"batch_size={size}; it must be .* 22",
        )
        for size in (0, 23)
    },
    "evaluation batches": (
        lambda: text_toys.masked_lm(evaluation_batch=0),
        "evaluation_batch=0; it must be",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_by_name(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make()
