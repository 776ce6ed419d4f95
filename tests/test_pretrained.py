"""Folders of pre-trained encoders: what they hold, what a task begins with, what is refused.

The reference is written out in NumPy, in float64, and reads tensors by their names in the
file; so it knows neither our names nor our layouts.
"""

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from real_data import raw_folder

import lottery_jax as lj
from lottery_jax import masks, pretrained
from lottery_jax.data.text import Tokens
from lottery_jax.models import Bert, BertShape
from lottery_jax.storage import state_dicts
from lottery_jax.training.checked import start as check_start
from lottery_jax.types import Task

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
SHAPE = BertShape(23, 8, 2, 2, 12, 9)
MASKED_LM, POOLER = "cls.predictions", "pooler.dense"
DECODER, WORDS = f"{MASKED_LM}.decoder.weight", "embeddings.word_embeddings.weight"


# --- files ----------------------------------------------------------------------------


def tensors(*heads, layers=2, width=8, inner=12, seed=0):
    """A random encoder by the names of today, without the prefix; heads by their names."""
    sizes = {
        WORDS: (23, width),
        "embeddings.position_embeddings.weight": (9, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
    }
    for i in range(layers):
        own = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            sizes[f"{own}.attention.{name}.weight"] = (width, width)
        sizes[f"{own}.attention.output.LayerNorm.weight"] = (width,)
        sizes[f"{own}.intermediate.dense.weight"] = (inner, width)
        sizes[f"{own}.output.dense.weight"] = (width, inner)
        sizes[f"{own}.output.LayerNorm.weight"] = (width,)
    if "masked_lm" in heads:
        sizes[f"{MASKED_LM}.transform.dense.weight"] = (width, width)
        sizes[f"{MASKED_LM}.transform.LayerNorm.weight"] = (width,)
        sizes[f"{MASKED_LM}.bias"] = (23,)
    if "pooler" in heads:
        sizes[f"{POOLER}.weight"] = (width, width)
    for name, size in list(sizes.items()):
        if name.endswith(".weight") and "embeddings.weight" not in name:
            sizes[name.removesuffix("weight") + "bias"] = size[:1]
    rng = np.random.default_rng(seed)
    found = {n: 0.4 * rng.standard_normal(s, np.float32) for n, s in sizes.items()}
    for name in found:
        if name.endswith("LayerNorm.weight"):
            found[name] += np.float32(1)
    return found


def write(folder, state, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    state_dicts.write(folder / "model.safetensors", state)
    return folder


def prefixed(state):
    return {n if n.startswith("cls.") else f"bert.{n}": x for n, x in state.items()}


def old(state):
    """LayerNorm's weights as TensorFlow called them."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in names.items():
        state = {n.replace(new, name): x for n, x in state.items()}
    return state


# --- the reference --------------------------------------------------------------------


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def hidden(w, config, ids, kinds, present):
    """The last hidden states, `[B, L, width]`."""
    epsilon, heads = config["layer_norm_eps"], config["num_attention_heads"]
    x = w[WORDS][ids] + w["embeddings.token_type_embeddings.weight"][kinds]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, "embeddings.LayerNorm", x, epsilon)
    for i in range(config["num_hidden_layers"]):
        own = f"encoder.layer.{i}"
        q, k, v = (
            dense(w, f"{own}.attention.self.{part}", x)
            .reshape(*ids.shape, heads, -1)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        scores = np.where(present[:, None, None, :], scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        y = dense(w, f"{own}.attention.output.dense", mixed)
        x = norm(w, f"{own}.attention.output.LayerNorm", x + y, epsilon)
        y = dense(
            w, f"{own}.output.dense", gelu(dense(w, f"{own}.intermediate.dense", x))
        )
        x = norm(w, f"{own}.output.LayerNorm", x + y, epsilon)
    return x


def guesses(w, config, x, decoder=None):
    """Logits of the masked-language head."""
    x = gelu(dense(w, f"{MASKED_LM}.transform.dense", x))
    x = norm(w, f"{MASKED_LM}.transform.LayerNorm", x, config["layer_norm_eps"])
    return x @ (w[WORDS] if decoder is None else decoder).T + w[f"{MASKED_LM}.bias"]


def wide(state):
    return {name: np.asarray(x, np.float64) for name, x in state.items()}


def tokens(size=23, rows=3, length=7, guessed=2):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, size, (rows, length)).astype(np.int32)
    kinds = (np.arange(length) > 3).astype(np.int32)[None].repeat(rows, 0)
    present = np.arange(length) < np.array([length, length - 3, 1])[:rows, None]
    positions = rng.integers(0, length, (rows, guessed)).astype(np.int32)
    return Tokens(ids, kinds, present, positions)


def said(model, params, batch):
    given = {"params": params}
    return np.asarray(jax.jit(model.apply)(given, jax.tree.map(jnp.asarray, batch)))


CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.mark.parametrize("form", ["plain", "prefixed", "old names"])
def test_outputs_are_those_of_the_encoder_written_out(tmp_path, form):
    state = tensors("masked_lm", "pooler")
    stored = {"plain": dict, "prefixed": prefixed, "old names": old}[form](state)
    found = pretrained.load(write(tmp_path / "own", stored))
    assert found.shape == SHAPE and found.heads == ("masked_lm", "pooler")
    assert found.unused == ()
    batch, w = tokens(), wide(state)
    x = hidden(w, CONFIG, *batch[:3])
    params = {k: v for k, v in found.params.items() if k not in ("head", "pooler")}
    ours = said(Bert(SHAPE, head="none"), params, batch)
    np.testing.assert_allclose(ours, x, **CLOSE)
    ours = said(
        Bert(SHAPE, head="masked_lm"), params | {"head": found.params["head"]}, batch
    )
    there = np.take_along_axis(x, batch.positions[..., None], 1)
    np.testing.assert_allclose(ours, guesses(w, CONFIG, there), **CLOSE)


@pytest.mark.parametrize("pooler", ["head", "pruned"])
def test_classes_and_spans_are_those_written_out(tmp_path, pooler):
    state = tensors("pooler")
    found = pretrained.load(write(tmp_path / "own", prefixed(state)))
    batch, w = tokens(), wide(state)
    x = hidden(w, CONFIG, *batch[:3])
    model = Bert(SHAPE, head="classes", outputs=3, pooler=pooler)
    with pytest.warns(RuntimeWarning) as said_of_it:
        params = pretrained.start(found, task_of(model), replicas=1).params
    assert len(said_of_it) == 1 + (pooler == "pruned")
    last = {name: leaf[0] for name, leaf in params["head"]["output"].items()}
    params = params | {"head": params["head"] | {"output": last}}
    pooled = np.tanh(dense(w, POOLER, x[:, 0]))
    expected = pooled @ np.asarray(last["kernel"], np.float64) + last["bias"]
    np.testing.assert_allclose(said(model, params, batch), expected, **CLOSE)
    spans = Bert(SHAPE, head="span")
    body = {k: v for k, v in found.params.items() if k != "pooler"}
    head = {"output": {"kernel": last["kernel"][:, :2], "bias": last["bias"][:2]}}
    expected = x @ np.asarray(last["kernel"], np.float64)[:, :2] + last["bias"][:2]
    ours = said(spans, body | {"head": head}, batch)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_a_decoder_may_be_tied_or_not(tmp_path):
    state = tensors("masked_lm")
    twice = {
        DECODER: state[WORDS],
        f"{MASKED_LM}.decoder.bias": state[f"{MASKED_LM}.bias"],
    }
    tied = pretrained.load(write(tmp_path / "tied", state | twice))
    assert tied.shape.tied and "decoder" not in tied.params["head"] and not tied.unused
    own = np.random.default_rng(3).standard_normal((23, 8), np.float32)
    with pytest.raises(ValueError, match=f"{DECODER} must be {WORDS} again"):
        pretrained.load(write(tmp_path / "tied", state | {DECODER: own}))
    config = CONFIG | {"tie_word_embeddings": False}
    with pytest.raises(ValueError, match=r"decoder.weight \(head/decoder\) is missing"):
        pretrained.load(write(tmp_path / "untied", state, config))
    found = pretrained.load(write(tmp_path / "untied", state | {DECODER: own}, config))
    assert not found.shape.tied
    batch, w = tokens(), wide(state)
    x = hidden(w, CONFIG, *batch[:3])
    x = np.take_along_axis(x, batch.positions[..., None], 1)
    ours = said(Bert(found.shape), found.params, batch)
    np.testing.assert_allclose(ours, guesses(w, CONFIG, x, own), **CLOSE)
    # The bias may be there under its second name alone.
    state[f"{MASKED_LM}.decoder.bias"] = state.pop(f"{MASKED_LM}.bias")
    again = pretrained.load(write(tmp_path / "tied", state))
    np.testing.assert_array_equal(
        again.params["head"]["bias"], tied.params["head"]["bias"]
    )


def packed(state):
    """A safetensors file, written out: NumPy has no bfloat16 to give to its writer."""
    codes = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    head, content = {}, b""
    for name, x in state.items():
        ends = [len(content), len(content) + x.nbytes]
        own = {"dtype": codes[x.dtype.name], "shape": x.shape, "data_offsets": ends}
        head[name], content = own, content + x.tobytes()
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + content


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    state = {name: x.astype(dtype) for name, x in tensors().items()}
    folder = write(tmp_path / "own", tensors())
    (folder / "model.safetensors").write_bytes(packed(state))
    leaves = lj.trees.by_path(pretrained.load(folder).params)
    assert {x.dtype for x in leaves.values()} == {np.dtype(np.float32)}
    kernel = leaves["layer_1/inner/kernel"]
    np.testing.assert_array_equal(
        kernel.T, state["encoder.layer.1.intermediate.dense.weight"].astype(np.float32)
    )


def test_buffers_are_dropped_and_tensors_of_other_heads_named(tmp_path):
    more = {
        "embeddings.position_ids": np.arange(9)[None],
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
        "classifier.weight": np.zeros((2, 8), np.float32),
    }
    stored = prefixed(tensors() | more)
    stored["classifier.weight"] = stored.pop("bert.classifier.weight")
    found = pretrained.load(write(tmp_path / "own", stored))
    assert set(found.unused) == {"cls.seq_relationship.weight", "classifier.weight"}


# --- what is refused ------------------------------------------------------------------

WRONG_CONFIGS = [
    (
        {"model_type": "roberta"},
        r"config\['model_type'\]='?roberta'?; it must be 'bert'",
    ),
    (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type.*relative_key",
    ),
    ({"hidden_act": "swish"}, "activation='swish'.*activation is hidden_act"),
    ({"is_decoder": True}, "is_decoder"),
    ({"num_attention_heads": 3}, "heads=3; it must be a divisor of width=8"),
    ({"num_hidden_layers": 3}, r"encoder.layer.2.output.dense.weight \(layer_2/outer"),
    (
        {"num_hidden_layers": 1},
        "num_hidden_layers=1.*encoder.layer.1.output.dense.bias",
    ),
    ({"vocab_size": 24}, r"word_embeddings.weight .* has shape \(23, 8\).*\(24, 8\)"),
    ({"hidden_size": None}, "width=None"),
]


@pytest.mark.parametrize("change, words", WRONG_CONFIGS, ids=lambda x: str(x)[:30])
def test_a_config_that_does_not_fit_is_refused_by_its_field(tmp_path, change, words):
    folder = write(tmp_path / "own", tensors(), CONFIG | change)
    with pytest.raises(ValueError, match=words):
        pretrained.load(folder)


def test_sizes_that_are_missing_are_named_and_others_have_defaults():
    few = {name: CONFIG[name] for name in list(CONFIG)[2:8]}
    assert pretrained.shape_of(few) == SHAPE
    with pytest.raises(
        ValueError, match=r"config lacks \['vocab_size', 'hidden_size'\]"
    ):
        pretrained.shape_of({k: v for k, v in few.items() if k[:2] not in ("vo", "hi")})
    with pytest.raises(ValueError, match="config=7; it must be"):
        pretrained.shape_of(7)


def test_missing_and_misshapen_tensors_are_all_listed(tmp_path):
    state = tensors("masked_lm", "pooler")
    del state["encoder.layer.0.attention.self.key.bias"], state[f"{POOLER}.bias"]
    del state[f"{MASKED_LM}.transform.LayerNorm.bias"]
    state["encoder.layer.1.output.dense.weight"] = np.zeros((12, 8), np.float32)
    state["embeddings.LayerNorm.bias"][2] = np.nan
    state["embeddings.LayerNorm.weight"] = np.ones(8, np.int32)
    with pytest.raises(ValueError) as error:
        pretrained.load(write(tmp_path / "own", state))
    for words in (
        "encoder.layer.0.attention.self.key.bias (layer_0/attention/key/bias) is missing",
        "pooler.dense.bias (pooler/bias) is missing",
        "cls.predictions.transform.LayerNorm.bias (head/norm/bias) is missing",
        "has shape (12, 8), and should have (8, 12)",
        "embeddings.LayerNorm.bias (embeddings/norm/bias) is not finite",
        "embeddings.LayerNorm.weight (embeddings/norm/scale) is of int32",
    ):
        assert words in str(error.value)
    both = tensors() | old(tensors())
    with pytest.raises(
        ValueError, match=r"has two tensors '\S+LayerNorm\.(weight|bias)'"
    ):
        pretrained.load(write(tmp_path / "own", both))


def test_a_folder_without_what_is_needed_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"source=\S+none: there is no such folder"
    ):
        pretrained.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        pretrained.load(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="source=3; it must be a folder"):
        pretrained.load(3)
    folder = tmp_path / "own"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        pretrained.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="a folder without weights"):
        pretrained.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin.*pickles are never loaded.*"
    ):
        pretrained.load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="in one file.*max_shard_size"):
        pretrained.load(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        pretrained.load(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match="no complete safetensors file"):
        pretrained.load(folder)


def test_a_name_is_looked_for_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, asked = write(tmp_path / "own", tensors()), []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("no network\nand more of it")
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert pretrained.load("somebody/small").folder == folder
    name, patterns = asked[0]
    assert name == "somebody/small"
    assert {"config.json", "model.safetensors", "vocab.txt"} <= set(patterns)
    with pytest.raises(FileNotFoundError, match=r"does not give it .*no network\)"):
        pretrained.load("nobody/nothing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"lottery-jax\[hub\].*into a folder"):
        pretrained.load("somebody/small")


# --- starts ---------------------------------------------------------------------------


def task_of(model, head=("^head/",)):
    """A task whose initialisation is all that counts."""

    def batch(*_):
        return jax.tree.map(jnp.asarray, tokens())

    @jax.jit
    def init(key):
        return model.init(key, batch())["params"], {}, {}

    def loss(params, *_):
        return jnp.sum(jax.tree.leaves(params)[0]), ({}, {}, {})

    def evaluate(params, *_):
        return {"loss": jnp.zeros(())}

    def prunable(tree):
        return masks.prunable(tree, include=model.prunable_patterns)

    def order(key, step):
        return jnp.zeros((3,), jnp.int32)

    functions = (init, order, batch, loss, evaluate)
    return Task({}, *functions, 1, prunable=prunable, head=head)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """An encoder with a masked-language head and a pooler."""
    state = tensors("masked_lm", "pooler")
    return pretrained.load(write(tmp_path_factory.mktemp("both") / "own", state))


@pytest.fixture(scope="module")
def neither(tmp_path_factory):
    return pretrained.load(write(tmp_path_factory.mktemp("neither") / "own", tensors()))


def test_what_a_file_has_is_shared_and_nothing_is_said(both, recwarn):
    task = task_of(Bert(SHAPE))
    start = pretrained.start(both, task, replicas=(4, 7))
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]
    check_start(start, task, 2)
    own, given = lj.trees.by_path(start.params), lj.trees.by_path(both.params)
    assert own.keys() == given.keys() - {"pooler/kernel", "pooler/bias"}
    assert all(own[path] is given[path] for path in own)


def test_a_new_head_is_the_one_that_each_replica_would_have_drawn(neither):
    task = task_of(Bert(SHAPE, head="classes", outputs=3))
    fresh = [f"head/{part}" for part in ("output/bias", "output/kernel")]
    fresh += [f"head/{part}" for part in ("pooler/bias", "pooler/kernel")]
    assert pretrained.fit(neither, task).fresh == tuple(fresh)
    with pytest.warns(RuntimeWarning) as said:
        start = pretrained.start(neither, task, seed=5, replicas=(4, 7))
    assert [str(fresh) in str(one.message) for one in said] == [True]
    check_start(start, task, 2)
    own = lj.trees.by_path(start.params)
    ids = lj.keys.of_replicas(5, (4, 7))
    runs = lj.training.fresh(task, optax.sgd(0.1), ids.init, ids.noise)
    drawn = lj.trees.by_path(runs.state.params)
    for path in fresh:
        np.testing.assert_array_max_ulp(own[path], np.asarray(drawn[path]), 2)
    assert not np.array_equal(*own["head/output/kernel"])


def test_a_pooler_of_the_file_is_that_of_the_head(both):
    task = task_of(Bert(SHAPE, head="classes"))
    with pytest.warns(RuntimeWarning, match="no .'head/output/bias'"):
        start = pretrained.start(both, task, replicas=2)
    pooler = start.params["head"]["pooler"]
    assert pooler["kernel"] is both.params["pooler"]["kernel"]
    assert pooler["bias"] is both.params["pooler"]["bias"]
    left = pretrained.fit(both, task).left
    assert set(left) == {
        p for p in lj.trees.paths(both.params) if p.startswith("head/")
    }


def test_a_pooler_that_is_pruned_warns_with_what_is_left_of_it(both, neither):
    task = task_of(Bert(SHAPE, head="classes", pooler="pruned"))
    small = both._replace(params=both.params | {"pooler": dict(both.params["pooler"])})
    small.params["pooler"]["kernel"] = both.params["pooler"]["kernel"] * np.float32(
        1e-3
    )
    with pytest.warns(RuntimeWarning) as said:
        start = pretrained.start(small, task, replicas=1)
    assert "would keep 0.00% of it" in str(said[-1].message)
    assert start.params["pooler"]["kernel"] is small.params["pooler"]["kernel"]
    with pytest.warns(RuntimeWarning) as said:
        pretrained.start(both, task, replicas=1)
    kernels = {p: x for p, x in lj.trees.by_path(both.params).items() if "kernel" in p}
    counted = [x for p, x in kernels.items() if not p.startswith("head")]
    flat = np.sort(np.concatenate([np.abs(x).ravel() for x in counted]))
    threshold = flat[-round(0.3 * flat.size)]
    kept = np.mean(np.abs(kernels["pooler/kernel"]) >= threshold)
    assert f"{kept:.2%}" in str(said[-1].message)
    with pytest.warns(RuntimeWarning) as said:
        start = pretrained.start(neither, task, replicas=3)
    assert "'pooler/kernel']: drawn afresh" in str(said[0].message)
    assert start.params["pooler"]["kernel"].shape == (3, 8, 8)


def test_what_does_not_fit_a_task_is_listed(both):
    other = BertShape(29, 8, 3, 2, 12, 9)
    with pytest.raises(ValueError) as error:
        pretrained.start(both, task_of(Bert(other)), replicas=1)
    for words in (
        "'embeddings/word/embedding' has shape (23, 8); the task's is (29, 8)",
        "'head/bias' has shape (23,); the task's is (29,)",
        "'layer_2/inner/kernel' is missing among the weights",
        "Make its model of found.shape",
    ):
        assert words in str(error.value)
    less = BertShape(23, 8, 1, 2, 12, 9)
    with pytest.raises(
        ValueError, match="'layer_1/inner/kernel' is no leaf of the task"
    ):
        pretrained.fit(both, task_of(Bert(less)))
    unnamed = task_of(Bert(SHAPE, head="span"), head=())
    with pytest.raises(ValueError, match="'head/output/kernel' is missing among"):
        pretrained.fit(both, unnamed)
    with pytest.raises(ValueError, match="found=a dict; it must be what"):
        pretrained.fit({}, unnamed)


# --- written again --------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads", [(), ("masked_lm",), ("pooler",), ("masked_lm", "pooler")]
)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, heads):
    source = write(tmp_path / "source", old(tensors(*heads)))
    (source / "vocab.txt").write_text("[PAD]\n")
    found = pretrained.load(source)
    pretrained.save(tmp_path / "own", found.shape, found.params, tokenizer=source)
    again = pretrained.load(tmp_path / "own")
    assert (again.shape, again.heads) == (found.shape, found.heads)
    assert jax.tree.structure(again.params) == jax.tree.structure(found.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    assert (tmp_path / "own" / "vocab.txt").read_text() == "[PAD]\n"
    names = state_dicts.read(tmp_path / "own" / "model.safetensors")
    assert set(names) == set(prefixed(tensors(*heads)))


def test_a_network_of_a_task_is_saved_with_its_pooler(tmp_path, both):
    shape = BertShape(23, 8, 2, 2, 12, 9, dropout=0.25, activation="relu", tied=False)
    params, *_ = task_of(Bert(shape)).init(jax.random.key(0))
    params["head"]["pooler"] = both.params["pooler"]
    pretrained.save(tmp_path / "own", shape, params)
    again = pretrained.load(tmp_path / "own")
    assert again.shape == shape
    own = lj.trees.by_path(again.params)
    np.testing.assert_array_equal(own["head/decoder"], params["head"]["decoder"])
    np.testing.assert_array_equal(
        own["pooler/kernel"], params["head"]["pooler"]["kernel"]
    )


def test_what_no_folder_can_hold_is_refused_before_it_is_made(tmp_path, both):
    params = {k: v for k, v in both.params.items() if k != "layer_1"}
    params["embeddings"] = params["embeddings"] | {
        "norm": {"scale": np.ones(3), "bias": 0}
    }
    params["head"] = params["head"] | {"output": {"kernel": np.ones((8, 2))}}
    with pytest.raises(ValueError) as error:
        pretrained.save(tmp_path / "own", SHAPE, params)
    for words in (
        "'layer_1/norm/scale' is missing",
        "'head/output/kernel' has no place",
        "'embeddings/norm/scale' has shape (3,), and should have (8,)",
    ):
        assert words in str(error.value)
    halves = jax.tree.map(lambda x: x.astype(np.float16), both.params)
    with pytest.raises(ValueError, match="is of float16, and should be float32"):
        pretrained.save(tmp_path / "own", SHAPE, halves)
    with pytest.raises(ValueError, match=r"tokenizer=.*some of tokenizer\.json"):
        pretrained.save(tmp_path / "own", SHAPE, both.params, tokenizer=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there.txt").touch()
    with pytest.raises(ValueError, match="it must be a new one"):
        pretrained.save(tmp_path, SHAPE, both.params)


# --- others' readers ------------------------------------------------------------------


def test_transformers_reads_what_is_saved_and_says_the_same(tmp_path, both):
    transformers = pytest.importorskip("transformers", reason="an independent encoder")
    torch = pytest.importorskip("torch", reason="transformers computes with it")
    folder = tmp_path / "own"
    pretrained.save(folder, both.shape, both.params)
    batch = tokens()
    given = {
        "input_ids": torch.tensor(batch.ids, dtype=torch.int64),
        "token_type_ids": torch.tensor(batch.types, dtype=torch.int64),
        "attention_mask": torch.tensor(batch.present, dtype=torch.int64),
    }
    with torch.no_grad():
        there = transformers.BertForMaskedLM.from_pretrained(folder).eval()
        logits = there(**given).logits.numpy()
        encoder = transformers.BertModel.from_pretrained(folder).eval()
        x = encoder(**given)
    params = {k: v for k, v in both.params.items() if k != "pooler"}
    ours = said(Bert(SHAPE), params, batch)
    there = np.take_along_axis(logits, batch.positions[..., None], 1)
    np.testing.assert_allclose(ours, there, **CLOSE)
    del params["head"]
    ours = said(Bert(SHAPE, head="none"), params, batch)
    np.testing.assert_allclose(ours, x.last_hidden_state.numpy(), **CLOSE)
    pooler = both.params["pooler"]
    pooled = np.tanh(ours[:, 0] @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(pooled, x.pooler_output.numpy(), **CLOSE)
    stored = state_dicts.read(folder / "model.safetensors")
    for name, tensor in encoder.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), stored[f"bert.{name}"])


@pytest.mark.data
def test_a_real_encoder_says_what_is_written_out():
    folder = raw_folder() / "models" / "bert-tiny-mlm"
    if not folder.is_dir():
        pytest.skip(f"no {folder} ($LOTTERY_JAX_RAW_DATA)")
    found = pretrained.load(folder)
    assert found.shape == BertShape(30522, 128, 2, 2, 512)
    assert (found.heads, found.unused) == (("masked_lm",), ())
    config = json.loads((folder / "config.json").read_text())
    w = {
        pretrained.names.today(name): x
        for name, x in state_dicts.read(folder / "model.safetensors").items()
    }
    batch = tokens(30522, rows=2, length=20, guessed=3)
    x = hidden(wide(w), config, *batch[:3])
    x = np.take_along_axis(x, batch.positions[..., None], 1)
    ours = said(Bert(found.shape), found.params, batch)
    np.testing.assert_allclose(ours, guesses(wide(w), config, x), rtol=0, atol=1e-4)
