"""Next-token prediction: a text in order, what is carried along, and windows that are not."""

import functools
import itertools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import lottery_jax as lj
from lottery_jax import connectivity, imp, keys, training, trees
from lottery_jax.data.text import Texts, Vocabulary, markov
from lottery_jax.execution import Execution
from lottery_jax.models import Decoder, Recurrent
from lottery_jax.tasks.language_model import in_columns, in_windows

pytestmark = pytest.mark.usefixtures("compiled_quickly")

VOCABULARY, BATCH, WINDOW, COLUMNS = 6, 4, 5, 3
TEXTS = markov(tokens=400, vocabulary=VOCABULARY)
LSTM = Recurrent(VOCABULARY, 5, 1, "lstm")
DEEP = Recurrent(VOCABULARY, 5, 2, "gru", dropout=0.4)
DECODER = Decoder(VOCABULARY, 8, 1, 2, WINDOW, dropout=0.1)
TX = optax.adam(0.02)
ONE, TWO = Execution(1, 1), Execution(2, 1)


@functools.cache
def of(model, **options):
    defaults = {"batch_size": BATCH, "window": WINDOW, "evaluation_batch": COLUMNS}
    return lj.tasks.language_model(TEXTS, model, **defaults | options)


@functools.cache
def params_of(model):
    return of(model).init(jax.random.key(0))[0]


def ids_of(split):
    return TEXTS.arrays[split]["ids"]


def measured(logits, following):
    """Loss, perplexity and error of all tokens, in float64."""
    logits = np.asarray(logits, np.float64)
    chosen = np.take_along_axis(logits, following[..., None], -1)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - chosen).mean()
    return loss, np.exp(loss), (logits.argmax(-1) != following).mean()


def evaluated(task, params, split):
    run = jax.jit(task.evaluate, static_argnums=4)
    return run(params, {}, task.data, jax.random.key(0), split)


# --- how a text is laid out -----------------------------------------------------------


def test_windows_have_every_token_once_and_its_successor():
    found = in_windows(np.arange(23), 5)
    assert found.shape == (4, 6)  # 22 tokens have a successor
    np.testing.assert_array_equal(found[:, :-1].reshape(-1), np.arange(20))
    np.testing.assert_array_equal(found[:, 1:], found[:, :-1] + 1)


def test_columns_go_on_where_the_one_before_ends():
    found = in_columns(np.arange(24), 2, 5)
    assert found.shape == (2, 2, 6)  # 11 tokens of each column, of which 10 are used
    np.testing.assert_array_equal(found[:, :, 1:], found[:, :, :-1] + 1)
    np.testing.assert_array_equal(found[:, :, 0], [[0, 11], [5, 16]])


def test_the_steps_of_an_epoch_are_the_windows_of_a_column():
    task, number = of(LSTM), len(ids_of("train"))
    assert task.steps_per_epoch == (number - 1) // BATCH // WINDOW
    orders = [task.order(jax.random.key(seed), jnp.int32(17)) for seed in (0, 1)]
    np.testing.assert_array_equal(*orders)  # nothing is drawn
    assert orders[0].tolist() == [17 % task.steps_per_epoch]
    shapes = {split: own["ids"].shape for split, own in task.data.items()}
    assert shapes["test"] == ((len(ids_of("test")) - 1) // COLUMNS // WINDOW, 3, 6)


# --- evaluation -----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_recurrent_network_reads_each_column_in_one_go(split):
    task, params = of(LSTM), params_of(LSTM)
    windows = task.data[split]["ids"]
    number = windows.shape[1]
    assert number == (BATCH if split == "train" else COLUMNS)
    whole = np.concatenate([windows[:, :, :-1][i] for i in range(len(windows))], axis=1)
    following = np.concatenate(list(windows[:, :, 1:]), axis=1)
    logits, _ = LSTM.apply({"params": params}, whole, LSTM.initial(number))
    found = evaluated(task, params, split)
    assert set(found) == {"loss", "perplexity", "error"}
    values = [found[name] for name in ("loss", "perplexity", "error")]
    np.testing.assert_allclose(values, measured(logits, following), rtol=1e-5)
    guesses = task.predict(params, {}, task.data, jax.random.key(0), split)
    assert guesses.shape == (following.size,) and guesses.dtype == jnp.int32
    at = np.moveaxis(guesses.reshape(len(windows), number, WINDOW), 0, 1)
    np.testing.assert_array_equal(at.reshape(number, -1), np.argmax(logits, -1))


def test_a_decoder_is_asked_for_each_window_alone():
    task, params = of(DECODER), params_of(DECODER)
    windows = in_windows(ids_of("test"), WINDOW)
    assert len(windows) % COLUMNS  # the last batch is padded
    logits = DECODER.apply({"params": params}, windows[:, :-1])
    found = evaluated(task, params, "test")
    values = [found[name] for name in ("loss", "perplexity", "error")]
    np.testing.assert_allclose(values, measured(logits, windows[:, 1:]), rtol=1e-5)
    guesses = task.predict(params, {}, task.data, jax.random.key(0), "test")
    np.testing.assert_array_equal(guesses, np.argmax(logits, -1).reshape(-1))


# --- training -------------------------------------------------------------------------


def batch_at(task, step, seed=0):
    key = jax.random.key(seed)
    indices = task.order(key, jnp.int32(step))
    return task.batch(task.data, indices, key, jnp.int32(step))


def test_the_carry_goes_from_step_to_step_and_is_zero_where_an_epoch_begins():
    task, params = of(LSTM), params_of(LSTM)
    loss = jax.jit(task.loss)
    carry, key = task.init(jax.random.key(0))[2], jax.random.key(1)
    toys.assert_equal(carry, LSTM.initial(BATCH))
    windows = task.data["train"]["ids"]
    for step in (0, 1, 2):
        value, (_, carry, metrics) = loss(params, {}, carry, batch_at(task, step), key)
        read = np.concatenate(list(windows[: step + 1, :, :-1]), axis=1)
        logits, after = LSTM.apply({"params": params}, read, LSTM.initial(BATCH))
        wanted = measured(logits[:, -WINDOW:], windows[step, :, 1:])
        np.testing.assert_allclose([value, metrics["error"]], wanted[::2], rtol=1e-5)
        assert metrics["loss"] == value
        toys.assert_close(carry, after, atol=1e-6)
    # Whatever is left of the epoch before does not count.
    again = batch_at(task, 2 * task.steps_per_epoch)
    begun = loss(params, {}, carry, again, key)
    toys.assert_equal(begun, loss(params, {}, LSTM.initial(BATCH), again, key))
    later = loss(params, {}, LSTM.initial(BATCH), batch_at(task, 2), key)
    assert later[0] != value


def test_gradients_end_at_the_window():
    task, params = of(LSTM), params_of(LSTM)
    batch, key = batch_at(task, 1), jax.random.key(0)
    carry = jax.tree.map(lambda x: x + 0.5, LSTM.initial(BATCH))

    def loss(params):
        return task.loss(params, {}, carry, batch, key)[0]

    def plain(params):
        logits, _ = LSTM.apply({"params": params}, batch["ids"][:, :-1], carry)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["ids"][:, 1:]
        )
        return losses.mean()

    toys.assert_close(jax.grad(loss)(params), jax.grad(plain)(params), atol=1e-7)


def test_windows_of_a_decoder_come_once_an_epoch_in_the_order_of_the_noise():
    task = of(DECODER)
    number = len(in_windows(ids_of("train"), WINDOW))
    assert number % BATCH and task.steps_per_epoch == -(-number // BATCH)
    orders = [np.asarray(toys.order_of(task, jax.random.key(seed))) for seed in (0, 1)]
    for order in orders:
        assert sorted(order[order >= 0]) == list(range(number))
    assert (orders[0] != orders[1]).any()


def test_the_padding_of_a_last_batch_does_not_count():
    task, params = of(DECODER, batch_size=8), params_of(DECODER)
    indices = toys.order_of(task, jax.random.key(3))[-1]
    batch = task.batch(task.data, indices, jax.random.key(0), jnp.int32(0))
    real = int(batch["weight"].sum())
    assert 0 < real < 8
    still = of(DECODER.clone(dropout=0.0), batch_size=8)
    value, (state, stream, metrics) = still.loss(
        params, {}, (), batch, jax.random.key(0)
    )
    logits = DECODER.apply({"params": params}, batch["ids"][:real, :-1])
    wanted = measured(logits, batch["ids"][:real, 1:])
    np.testing.assert_allclose([value, metrics["error"]], wanted[::2], rtol=1e-5)
    assert (state, stream) == ({}, ())


@pytest.mark.parametrize("model", [DEEP, DECODER], ids=["gru", "transformer"])
def test_dropout_is_a_function_of_the_noise(model):
    task = of(model)
    params, state, stream = task.init(jax.random.key(0))
    loss, batch = jax.jit(task.loss), batch_at(task, 0)
    values = [loss(params, state, stream, batch, jax.random.key(i)) for i in (0, 0, 1)]
    toys.assert_equal(values[0], values[1])
    assert values[0][0] != values[2][0]


# --- what the runner makes of it ------------------------------------------------------

STEPS, K = 8, 3

BOTH = pytest.mark.parametrize(
    "model", [LSTM, pytest.param(DECODER, marks=pytest.mark.slow)], ids=["lstm", "gpt"]
)


@functools.cache
def watched(model):
    plan = imp.Plan(
        steps=STEPS,
        rewind_step=K,
        chains=(imp.Chain("late"), imp.Chain("from_0", rewind_step=0)),
        arms=("ticket", "reinit", "random_mask"),
        validate_every=STEPS,
    )
    return toys.watched(of(model), TX, plan, (0, 1), TWO, levels=1)


def test_rewinding_restores_what_is_carried():
    found = watched(DEEP)
    carry = found.at("late", 1, "ticket", 0, K).stream_state
    assert all(np.asarray(x).any() for x in carry)
    for arm in ("ticket", "random_mask"):
        toys.assert_equal(found.start("late", 1, arm, 1).stream_state, carry)
    own = found.at("late", 1, "reinit", 0, K).stream_state
    toys.assert_equal(found.start("late", 1, "reinit", 1).stream_state, own)
    for x in found.start("from_0", 0, "ticket", 1).stream_state:
        assert not np.asarray(x).any()


def test_all_leaves_of_a_recurrent_network_are_pruned_together():
    found = watched(DEEP)
    mask = found.start("late", 0, "ticket", 1).mask
    total = sum(x.size for x in jax.tree.leaves(mask))
    kept = sum(int(x.sum()) for x in jax.tree.leaves(mask))
    assert kept == total - round(0.2 * total)
    assert {name for name, x in trees.by_path(mask).items() if not x.all()} > {
        "embedding/embedding",
        "layer_0/hidden/bias",
        "head/kernel",
    }


class Killed(BaseException):
    """Not an error that anybody would catch."""


def killer(at):
    told = itertools.count()

    def watch(progress):
        if next(told) == at:
            raise Killed

    return watch


@functools.cache
def runs(model, number=3):
    own = keys.of_replicas(0, range(number))
    found = training.fresh(of(model), TX, own.init, own.noise, where=lj.Where(ONE))
    return found._replace(state=trees.host(found.state))


def trained(model, of_runs, where):
    return training.train(of(model), TX, of_runs, STEPS, every=2, where=where)


@BOTH
def test_a_killed_run_ends_in_the_same_bits(model, tmp_path):
    whole = trained(model, runs(model), lj.Where(ONE))
    for at in (2, 3):
        where = lj.Where(ONE, tmp_path / str(at), 0, killer(at))
        with pytest.raises(Killed):
            trained(model, runs(model), where)
        seen = []
        where = lj.Where(ONE, tmp_path / str(at), 0, seen.append)
        done = trained(model, runs(model), where)
        assert seen[0].resumed and 0 < seen[0].done < STEPS
        toys.assert_equal(done.state, whole.state)
        toys.assert_equal(done.curves, whole.curves)
    if model is LSTM:
        assert all(np.asarray(x).any() for x in whole.state.stream_state)


@BOTH
def test_a_replica_alone_is_itself_among_others(model):
    together = trained(model, runs(model), lj.Where(ONE))
    all_of_them, at = runs(model), np.array([2])
    alone = training.Runs(
        trees.rows(all_of_them.state, at),
        all_of_them.noise[at],
        all_of_them.joins[at],
        all_of_them.offset[at],
    )
    toys.assert_equal(
        trained(model, alone, lj.Where(ONE)).state, trees.rows(together.state, at)
    )


@pytest.mark.slow
def test_branches_that_draw_nothing_are_said():
    plan = connectivity.analysis.Plan(
        steps=4, rewind_steps=(0,), branches=2, alphas=3, every=4
    )
    with pytest.warns(RuntimeWarning, match="branches of every state are equal"):
        found = connectivity.run(of(LSTM), TX, plan, replicas=1, where=lj.Where(ONE))
    assert (found.records["l2"][1] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = connectivity.run(of(DEEP), TX, plan, replicas=1, where=lj.Where(ONE))
    assert (found.records["l2"][1] > 0).all()


# --- models of any library ------------------------------------------------------------


def test_pure_functions_are_as_good_as_a_module():
    def init(key):
        return DEEP.init(key, jnp.zeros((1, 1), jnp.int32), DEEP.initial(1))["params"]

    def apply(params, carry, ids, *, train, key):
        rngs = {} if key is None else {"dropout": key}
        return DEEP.apply({"params": params}, ids, carry, train, rngs=rngs)

    task = lj.tasks.language_model(
        TEXTS,
        init=init,
        apply=apply,
        initial=DEEP.initial,
        batch_size=BATCH,
        window=WINDOW,
        evaluation_batch=COLUMNS,
        prunable=lambda params: lj.masks.prunable(params, include="kernel"),
    )
    own = of(DEEP)
    given, wanted = task.init(jax.random.key(0)), own.init(jax.random.key(0))
    toys.assert_equal(given, wanted)
    batch, key = batch_at(task, 0), jax.random.key(5)
    toys.assert_equal(
        jax.jit(task.loss)(*given, batch, key), jax.jit(own.loss)(*given, batch, key)
    )
    toys.assert_equal(
        evaluated(task, given[0], "test"), evaluated(own, given[0], "test")
    )
    assert task.head == own.head == ("(^|/)head/",)


def test_a_table_of_pairs_is_a_model_too():
    def init(key):
        return {"pairs": {"kernel": jax.random.normal(key, (VOCABULARY, VOCABULARY))}}

    def apply(params, ids):
        return jnp.take(params["pairs"]["kernel"], ids, axis=0)

    task = lj.tasks.language_model(
        TEXTS, init=init, apply=apply, batch_size=BATCH, window=WINDOW
    )
    params = task.init(jax.random.key(0))[0]
    windows = in_windows(ids_of("test"), WINDOW)
    logits = np.asarray(params["pairs"]["kernel"])[windows[:, :-1]]
    found = evaluated(task, params, "test")["loss"]
    np.testing.assert_allclose(found, measured(logits, windows[:, 1:])[0], rtol=1e-5)
    assert task.head == ()  # it has no layer of that name


def test_a_tied_decoder_has_no_head_of_its_own():
    assert of(DECODER).head == ()
    assert of(DECODER.clone(tied=False)).head == ("(^|/)head/",)


# --- bad input ------------------------------------------------------------------------


def texts(**splits):
    arrays = {
        split: {"ids": np.asarray(ids, np.int32)} for split, ids in splits.items()
    }
    return Texts(arrays, Vocabulary(VOCABULARY), "ours")


FINE = np.arange(40) % VOCABULARY


class Normed(nn.Module):
    """A recurrent network with another state than its carry."""

    vocabulary: int
    units: int

    @nn.nowrap
    def initial(self, batch):
        return (jnp.zeros((batch, self.units)),)

    @nn.compact
    def __call__(self, ids, carry, train=False):
        x = nn.Embed(self.vocabulary, self.units)(ids)
        x = lj.models.BatchNorm()(x, train)
        return nn.Dense(self.vocabulary)(x + carry[0][:, None]), (carry[0] + x.mean(1),)


@pytest.mark.parametrize(
    "given, options, message",
    [
        (
            texts(train=FINE[:20], test=FINE),
            {},
            r"ours: tokens of 'train'=20; .* 21 or",
        ),
        (texts(train=FINE, test=FINE[:15]), {}, r"ours: tokens of 'test'=15; .* 16 or"),
        (
            texts(train=FINE, test=[0, 6] * 9),
            {},
            r"'test'\]\['ids'\]\[1\]=6; .*\[0, 6\)",
        ),
        (texts(train=FINE, test=[-1] * 20), {}, r"\['ids'\]\[0\]=-1; it must be in"),
        (texts(train=FINE), {}, "ours: splits=.*'test' among them"),
        (
            texts(train=FINE.reshape(4, 10), test=FINE.reshape(4, 10)),
            {},
            "ours: arrays of 'train'=.*one long text",
        ),
        (TEXTS, {"window": 0}, "window=0; it must be 1 or more"),
        (TEXTS, {"batch_size": 0}, "batch_size=0; it must be 1 or more"),
        (TEXTS, {"evaluation_batch": 0}, "evaluation_batch=0; it must be 1 or more"),
        (TEXTS, {"model": DECODER, "window": 6}, "window=6; it must be at most 5"),
        (TEXTS, {"model": Recurrent(5)}, r"shape \(4, 5, 5\); it must be \(4, 5, 6\)"),
        (TEXTS, {"model": Decoder(5)}, r"shape \(4, 5, 5\); it must be \(4, 5, 6\)"),
        (TEXTS, {"model": None}, r"given are \[\]; it must be either model, or init"),
        (TEXTS, {"init": len}, r"given are \['model', 'init'\]; it must be either"),
        (TEXTS, {"model": 3}, "model=3; it must be a Linen module"),
        (TEXTS, {"exclude": ("nothing",)}, "exclude=.*'nothing'"),
        (TEXTS, {"head": ("nothing",)}, "head=.*'nothing'"),
        (TEXTS, {"prunable": 3}, "prunable=3; it must be a function of params"),
        (
            TEXTS,
            {"model": None, "init": len, "apply": lambda p, x: x, "initial": len},
            r"apply=.*; it must be apply\(params, carry, ids\)",
        ),
        (
            TEXTS._replace(metric="f1"),
            {},
            "markov: metric='f1'; it must be one of loss, perplexity, error",
        ),
        ("a text", {}, "texts='a text'; it must be"),
    ],
)
def test_what_makes_no_sense_is_refused(given, options, message):
    arguments = {
        "model": LSTM,
        "batch_size": BATCH,
        "window": WINDOW,
        "evaluation_batch": COLUMNS,
    }
    with pytest.raises(ValueError, match=message):
        lj.tasks.language_model(given, **arguments | options)


def test_a_carry_that_changes_its_form_is_refused():
    def apply(params, carry, ids):
        logits, (hidden, cell) = LSTM.apply({"params": params}, ids, carry)
        return logits, (hidden, cell[:1, :1])

    def init(key):
        return LSTM.init(key, jnp.zeros((1, 1), jnp.int32), LSTM.initial(1))["params"]

    with pytest.raises(ValueError, match=r"leaf '1' has shape \(1, 4, 5\)"):
        lj.tasks.language_model(
            TEXTS,
            init=init,
            apply=apply,
            initial=LSTM.initial,
            batch_size=BATCH,
            window=WINDOW,
            evaluation_batch=COLUMNS,
        )


def test_a_recurrent_module_has_no_other_state_than_its_carry():
    with pytest.raises(ValueError, match=r"collections=\['batch_stats'\]; it must be"):
        of(Normed(VOCABULARY, 5))


# --- the generated text ---------------------------------------------------------------


def test_two_tokens_mostly_settle_the_next_of_a_generated_text():
    found = markov(tokens=6000, vocabulary=5, share=0.7, seed=3)
    train, test = (found.arrays[split]["ids"] for split in ("train", "test"))
    assert {s: len(x["ids"]) for s, x in found.arrays.items()} == {
        "train": 4800,
        "validation": 600,
        "test": 600,
    }
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, (train[:-2], train[1:-1], train[2:]), 1)
    law = counts.argmax(-1)
    right = (law[test[:-2], test[1:-1]] == test[2:]).mean()
    share = 0.7 + 0.3 / 5
    assert abs(right - share) < 4 * np.sqrt(share * (1 - share) / 598)
    again = markov(tokens=6000, vocabulary=5, share=0.7, seed=3)
    np.testing.assert_array_equal(again.arrays["test"]["ids"], test)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokens": 10}, "tokens=10; it must be 100 or more"),
        ({"vocabulary": 1}, "vocabulary=1; it must be 2 or more"),
        ({"share": 1.0}, r"share=1.0; it must be in \(0, 1\)"),
    ],
)
def test_texts_that_cannot_be_generated_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        markov(**options)
