"""Tickets: the bits that went in come out, or the file is refused."""

import errno
import os
import pathlib
import resource
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lottery_jax.storage import tickets

DATA = pathlib.Path(__file__).parent / "data"

DTYPES = [
    np.dtype(name)
    for name in (
        *("bool", "int8", "uint16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn"),
    )
]


def bits(array):
    array = np.asarray(array)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same_bits(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_equal(bits(a), bits(b)), tree, other)


def masked(params, mask):
    return jax.tree.map(
        lambda p, m: np.where(m, p, np.zeros((), p.dtype)), params, mask
    )


def roundtrip(folder, ticket, like=None):
    tickets.save(folder / "a.safetensors", ticket)
    return tickets.load(folder / "a.safetensors", like)


def some_ticket():
    rng = np.random.default_rng(0)
    params = {
        "a": {
            "kernel": rng.standard_normal((5, 3)).astype(np.float32),
            "bias": np.array([-0.0, np.nan, 1.0], np.float32),
        }
    }
    mask = {"a": {"kernel": rng.random((5, 3)) < 0.4, "bias": np.ones(3, bool)}}
    state = {"a": {"mean": np.arange(3, dtype=np.float32)}}
    return tickets.Ticket(mask, params, state, {"level": 3, "model": "mlp"})


@st.composite
def leaves(draw):
    """An array of arbitrary bits, and a mask for it."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    dtype = draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape))
    if dtype.kind == "b":
        values = draw(hnp.arrays(bool, shape))
    else:
        data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * 16))
        values = np.frombuffer(data[: count * dtype.itemsize], dtype).reshape(shape)
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    seed = draw(st.integers(0, 99))
    return values, np.random.default_rng(seed).random(shape) < density


@settings(deadline=None, max_examples=60)
@given(st.lists(leaves(), max_size=3), st.lists(leaves(), max_size=2))
def test_roundtrip_is_exact(tmp_path_factory, pairs, states):
    folder = tmp_path_factory.getbasetemp()
    params = {f"leaf{i}": values for i, (values, _) in enumerate(pairs)}
    mask = {f"leaf{i}": mask for i, (_, mask) in enumerate(pairs)}
    state = {i: values for i, (values, _) in enumerate(states)}
    ticket = tickets.Ticket(mask, params, state, {"found": "drawn"})
    found = roundtrip(folder, ticket)
    assert_same_bits(found.mask, mask)
    assert_same_bits(found.params, masked(params, mask))
    assert_same_bits(found.model_state, state)
    assert found.metadata == {"found": "drawn"}
    assert_same_bits(found, roundtrip(folder, found))
    tickets.save(folder / "digest", ticket, weights="digest")
    assert_same_bits(tickets.load(folder / "digest", start=params), found)


def test_signed_zeros_and_nan_survive(tmp_path):
    values = np.array([-0.0, 0.0, np.nan, -np.nan, np.inf, 1e-45])
    params = {
        str(d): jnp.asarray(values.astype(d))
        for d in (np.float16, ml_dtypes.bfloat16, np.float32)
    }
    mask = jax.tree.map(lambda p: np.array([1, 0, 1, 1, 1, 1], bool), params)
    found = roundtrip(tmp_path, tickets.Ticket(mask, params, {}, {}))
    for name, stored in found.params.items():
        assert_same_bits(stored, np.asarray(params[name]))
        assert np.signbit(stored[0]) and np.signbit(stored[3])


def test_weights_off_the_mask_load_as_0(tmp_path):
    params = {"w": np.array([1.0, np.nan, -0.0, 4.0])}
    mask = {"w": np.array([True, False, False, True])}
    found = roundtrip(tmp_path, tickets.Ticket(mask, params, {}, {}))
    assert_same_bits(found.params["w"], np.array([1.0, 0.0, 0.0, 4.0]))


def test_pruned_weights_take_no_space(tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((300, 300)).astype(np.float32)}
    mask = {"w": rng.random((300, 300)) < 0.05}
    tickets.save(tmp_path / "a", tickets.Ticket(mask, params, {}, {}))
    expected = 4 * mask["w"].sum() + mask["w"].size / 8
    assert (tmp_path / "a").stat().st_size == pytest.approx(expected, abs=1000)


def test_the_same_ticket_makes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tickets.save(tmp_path / name, some_ticket())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_readers_can_open_it(tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    ticket = some_ticket()
    tickets.save(tmp_path / "a", ticket)
    tensors = safetensors_numpy.load_file(tmp_path / "a")
    kernel, mask = ticket.params["a"]["kernel"], ticket.mask["a"]["kernel"]
    np.testing.assert_array_equal(tensors["params/['a']['kernel']"], kernel[mask])
    np.testing.assert_array_equal(tensors["mask/['a']['kernel']"], np.packbits(mask))


def ticket_of_the_stored_files():
    """What the files in tests/data were written from."""
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4) - 4.5
    bias = np.array([-0.0, np.nan, 1e-45, 2.0], np.float32)
    head = (np.arange(4).reshape(4, 1) / 4).astype(ml_dtypes.bfloat16)
    params = {"dense_0": {"kernel": kernel, "bias": bias}, "head": {"kernel": head}}
    mask = {
        "dense_0": {
            "kernel": np.arange(12).reshape(3, 4) % 3 == 0,
            "bias": np.ones(4, bool),
        },
        "head": {"kernel": np.array([[True], [False], [True], [True]])},
    }
    state = {"dropout": jax.random.key(7), "steps": np.int32(100)}
    state["mean"] = [np.array([0.5, 1.5])]
    metadata = {"model": "mlp", "level": 3, "density": 0.5, "init": [0, 7], "note": "é"}
    return tickets.Ticket(mask, params, state, metadata)


def assert_same_ticket(found, ticket):
    assert_same_bits(found.mask, ticket.mask)
    assert_same_bits(found.params, masked(ticket.params, ticket.mask))
    assert_same_bits(
        jax.tree.map(data, found.model_state), jax.tree.map(data, ticket.model_state)
    )
    assert found.metadata == ticket.metadata


def test_a_file_of_format_1_loads_for_ever(tmp_path):
    path, ticket = DATA / "ticket_format_1.safetensors", ticket_of_the_stored_files()
    assert_same_ticket(tickets.load(path, (ticket.params, ticket.model_state)), ticket)
    assert tickets.load(path).params["dense_0"]["kernel"].tolist() == [
        [-4.5, 0, 0, -1.5],
        [0, 0, 1.5, 0],
        [0, 4.5, 0, 0],
    ]
    tickets.save(tmp_path / "again", ticket)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


# Digests instead of weights


def shared_start():
    """A ticket, and the dense weights that its own were masked from."""
    ticket = ticket_of_the_stored_files()
    return ticket, ticket.params


def test_a_digest_and_the_start_make_the_whole_ticket(tmp_path):
    ticket, start = shared_start()
    template = (ticket.params, ticket.model_state)
    path = tmp_path / "digest.safetensors"
    tickets.save(path, ticket, weights="digest")
    tickets.save(tmp_path / "stored", ticket)
    stored = tickets.load(tmp_path / "stored", start=start)
    for same in (start, jax.tree.map(jnp.asarray, start), stored.params):
        assert_same_ticket(tickets.load(path, template, start=same), ticket)
        assert_same_bits(tickets.load(path, start=same).params, stored.params)
    # Nothing of the start is changed or aliased.
    tickets.load(path, start=start).params["dense_0"]["bias"][:] = 7
    assert_same_bits(start, shared_start()[1])


def test_what_is_off_the_mask_does_not_matter(tmp_path):
    ticket, start = shared_start()
    tickets.save(tmp_path / "a", ticket, weights="digest")
    other = jax.tree.map(
        lambda p, m: np.where(m, p, np.ones((), p.dtype)), start, ticket.mask
    )
    found = tickets.load(tmp_path / "a", start=other)
    assert_same_bits(found.params, masked(start, ticket.mask))


def test_a_digest_takes_no_space_for_weights(tmp_path):
    params = {"w": np.random.default_rng(0).standard_normal((300, 300))}
    ticket = tickets.Ticket({"w": np.ones((300, 300), bool)}, params, {}, {})
    tickets.save(tmp_path / "a", ticket, weights="digest")
    assert (tmp_path / "a").stat().st_size < 300 * 300 / 8 + 1000


def test_without_the_start_it_says_what_is_needed(tmp_path):
    ticket, _ = shared_start()
    tickets.save(tmp_path / "a.safetensors", ticket, weights="digest")
    message = (
        r"start=None; it must be the weights .*a.safetensors .*\['head'\].*SHA-256"
    )
    with pytest.raises(ValueError, match=message) as caught:
        tickets.load(tmp_path / "a.safetensors")
    assert not isinstance(caught.value, tickets.CorruptTicketError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p | {"head": {"kernel": -p["head"]["kernel"]}},
            r"start\['head'\]\['kernel'\]=weights with the SHA-256 .* found with",
        ),
        (
            lambda p: p | {"dense_0": p["dense_0"] | {"bias": -p["dense_0"]["bias"]}},
            r"start\['dense_0'\]\['bias'\]=weights with the SHA-256",
        ),
        (lambda p: {"head": p["head"]}, r"start lacks .*'dense_0'.* and has nothing"),
        (
            lambda p: p | {"head": {"kernel": p["head"]["kernel"].astype(np.float32)}},
            r"start\['head'\]\['kernel'\]=float32\[4, 1\]; it must be bfloat16\[4, 1\]",
        ),
    ],
)
def test_another_start_is_refused_by_name(tmp_path, change, message):
    ticket, start = shared_start()
    tickets.save(tmp_path / "a", ticket, weights="digest")
    with pytest.raises(ValueError, match=message):
        tickets.load(tmp_path / "a", start=change(start))


def test_a_file_with_digests_loads_for_ever(tmp_path):
    path, (ticket, start) = DATA / "ticket_format_2.safetensors", shared_start()
    assert_same_bits(tickets.load(path, start=start).mask, ticket.mask)
    template = (ticket.params, ticket.model_state)
    assert_same_ticket(tickets.load(path, template, start=start), ticket)
    tickets.save(tmp_path / "again", ticket, weights="digest")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_other_words_for_weights_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="weights='none'; it must be one of stored, dig"
    ):
        tickets.save(tmp_path / "a", some_ticket(), weights="none")


# Trees


class Block(NamedTuple):
    weight: np.ndarray
    scales: list


def prune_all(params):
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    return jax.tree.map(
        lambda p, k: jax.random.bernoulli(k, 0.5, p.shape),
        params,
        jax.tree.unflatten(jax.tree.structure(params), list(keys)),
    )


def linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))

    variables = Model().init(jax.random.key(0), jnp.ones((1, 3)))
    return variables["params"], variables["batch_stats"]


def nnx_states():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs),
        nnx.BatchNorm(3, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
    )
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return params, rest


def equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    return eqx.filter(model, eqx.is_inexact_array), eqx.nn.State(model)


def named_tuples():
    return Block(np.ones((2, 2)), [np.zeros(3), (np.ones(1),)]), [{}, None, np.ones(2)]


def data(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    return jax.random.key_data(leaf) if is_key else leaf


@pytest.mark.parametrize("make", [linen, nnx_states, equinox, named_tuples])
def test_exact_structure_with_like(tmp_path, make):
    params, state = make()
    mask = prune_all(params)
    ticket = tickets.Ticket(mask, params, state, {})
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, state)
    )
    for like in ((params, state), template):
        found = roundtrip(tmp_path, ticket, like)
        assert jax.tree.structure(found.params) == jax.tree.structure(params)
        assert jax.tree.structure(found.mask) == jax.tree.structure(params)
        assert jax.tree.structure(found.model_state) == jax.tree.structure(state)
        assert_same_bits(found.mask, mask)
        assert_same_bits(found.params, masked(jax.tree.map(np.asarray, params), mask))
        assert_same_bits(
            jax.tree.map(data, found.model_state), jax.tree.map(data, state)
        )


def test_dicts_need_no_like(tmp_path):
    params, state = linen()
    found = roundtrip(tmp_path, tickets.Ticket(prune_all(params), params, state, {}))
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    assert jax.tree.structure(found.mask) == jax.tree.structure(params)
    assert jax.tree.structure(found.model_state) == jax.tree.structure(state)


def test_other_trees_become_dicts_without_like(tmp_path):
    params, state = named_tuples()
    mask = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    found = roundtrip(tmp_path, tickets.Ticket(mask, params, state, {}))
    assert found.params.keys() == {"weight", "scales"}
    assert_same_bits(found.params["scales"][1][0], np.ones(1))
    assert_same_bits(found.model_state, {2: np.ones(2)})


def test_a_bare_array_is_a_tree(tmp_path):
    ticket = tickets.Ticket(np.ones(3, bool), np.arange(3.0), {}, {})
    assert_same_bits(roundtrip(tmp_path, ticket).params, np.arange(3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {"a": {"kernel": p["a"]["kernel"]}},
            r"like\[0\] lacks .*bias.* and has nothing too much",
        ),
        (
            lambda p: p | {"b": np.ones(2)},
            r"like\[0\] lacks nothing and has .*'b'.*; it must have the leaves of the params",
        ),
        (
            lambda p: {"a": p["a"] | {"kernel": np.ones((3, 5), np.float32)}},
            r"like\[0\]\['a'\]\['kernel'\]=float32\[3, 5\]; it must be float32\[5, 3\], as",
        ),
        (
            lambda p: {"a": p["a"] | {"bias": np.ones(3, np.float16)}},
            r"bias'\]=float16\[3\]; it must be float32\[3\], as in the params of .*a.safet",
        ),
    ],
)
def test_a_like_that_differs_is_refused(tmp_path, change, message):
    ticket = some_ticket()
    with pytest.raises(ValueError, match=message) as caught:
        roundtrip(tmp_path, ticket, (change(ticket.params), ticket.model_state))
    assert not isinstance(caught.value, tickets.CorruptTicketError)


def test_a_like_that_is_no_pair_is_refused(tmp_path):
    ticket = some_ticket()
    with pytest.raises(ValueError, match="like=<class 'dict'>; it must be the pair"):
        roundtrip(tmp_path, ticket, ticket.params)


# Metadata


def test_metadata_comes_back(tmp_path):
    metadata = tickets.provenance(
        model="lenet",
        task="mnist1d",
        rewind_step=100,
        density=np.float32(0.5),
        level=3,
        init=jax.random.key_data(jax.random.key(0)).tolist(),
        found="imp",
        seeds=[1, 2],
        lowest_loss=float("nan"),
    )
    found = roundtrip(tmp_path, some_ticket()._replace(metadata=metadata)).metadata
    assert np.isnan(found.pop("lowest_loss")) and np.isnan(metadata.pop("lowest_loss"))
    assert found == metadata
    assert found["versions"]["jax"] == jax.__version__


def test_provenance_is_checked():
    fields = {"model": "", "task": "", "init": "", "found": ""}
    for bad in ({"rewind_step": -1}, {"level": -1}, {"density": 20}):
        given = {"rewind_step": 0, "level": 0, "density": 0.2} | bad
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*; it must be"):
            tickets.provenance(**fields, **given)


# What is refused on saving


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("mask", {"a": {"kernel": np.ones((5, 3), bool)}}, r"mask lacks .*bias"),
        (
            "mask",
            {"a": {"kernel": np.ones((5, 3), bool), "bias": np.ones(2, bool)}},
            r"mask\['a'\]\['bias'\]=bool\[2\]; it must be bool\[3\], as in params",
        ),
        (
            "mask",
            {"a": {"kernel": np.ones((5, 3)), "bias": np.ones(3, bool)}},
            r"mask\['a'\]\['kernel'\]=float64\[5, 3\]; it must be bool\[5, 3\]",
        ),
        (
            "params",
            {"a": {"kernel": np.ones((5, 3))}},
            r"mask lacks nothing and has .*bias.* too much; it must have .* of params",
        ),
        ("model_state", {"a": "text"}, r"model_state\['a'\]=str of"),
        ("model_state", {("a", 1): np.ones(1)}, "it must be text or a whole number"),
        ("metadata", {"key": np.ones(1)}, r"metadata\['key'\]"),
        ("metadata", {1: 2}, "it must be named by text"),
    ],
)
def test_a_bad_ticket_is_refused_by_name(tmp_path, part, value, message):
    with pytest.raises(ValueError, match=message):
        tickets.save(tmp_path / "a", some_ticket()._replace(**{part: value}))
    assert not any(tmp_path.iterdir())


# Damage


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    tickets.save(path, some_ticket())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(tickets.CorruptTicketError, match="a.safetensors"):
            tickets.load(path)


def test_bytes_at_the_end_are_refused(tmp_path):
    tickets.save(tmp_path / "a", some_ticket())
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes() + b"\0")
    with pytest.raises(tickets.CorruptTicketError):
        tickets.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("flip", "weights"),
    [(0x01, "stored"), (0x20, "stored"), (0xFF, "stored"), (0x01, "digest")],
)
def test_every_flipped_byte_is_refused(tmp_path, flip, weights):
    path, start = tmp_path / "a.safetensors", some_ticket().params
    tickets.save(path, some_ticket(), weights=weights)
    whole, ticket = path.read_bytes(), tickets.load(path, start=start)
    accepted = []
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
        try:
            found = tickets.load(path, start=start)
        except tickets.CorruptTicketError as error:
            assert "a.safetensors" in str(error)
        else:
            accepted.append(i)
            assert_same_bits(found[:3], ticket[:3])
            assert found.metadata == ticket.metadata
    # JSON has a few bytes that carry nothing; no byte of data is among them.
    header = 8 + int.from_bytes(whole[:8], "little")
    assert len(accepted) < 10 and all(i < header for i in accepted)


def test_a_file_of_another_kind_is_refused(tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    safetensors_numpy.save_file({"w": np.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(tickets.CorruptTicketError, match="w.safetensors"):
        tickets.load(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError):
        tickets.load(tmp_path / "nothing.safetensors")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tickets, "FORMAT", 3)
    tickets.save(tmp_path / "a", some_ticket())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a: format=3; it must be 1 or 2"):
        tickets.load(tmp_path / "a")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    tickets.save(path, some_ticket())
    before = path.read_bytes()
    rng = np.random.default_rng(0)
    large = tickets.Ticket(
        {"w": np.ones(99999, bool)}, {"w": rng.random(99999)}, {}, {}
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="a.safetensors"):
            tickets.save(path, large)
        with pytest.raises(OSError, match="b.safetensors"):
            tickets.save(tmp_path / "b.safetensors", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_a_rename_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    tickets.save(path, some_ticket())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="a.safetensors: No space left") as caught:
        tickets.save(path, some_ticket()._replace(metadata={}))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert path.read_bytes() == before


# Without the weights


def test_contents_are_a_ticket_but_for_its_weights(tmp_path):
    ticket, start = shared_start()
    for weights in ("stored", "digest"):
        tickets.save(tmp_path / weights, ticket, weights=weights)
        found = tickets.contents(tmp_path / weights)
        whole = tickets.load(tmp_path / weights, start=start)
        assert_same_bits(found.mask, whole.mask)
        assert found.metadata == ticket.metadata and found.weights == weights


def test_contents_of_a_damaged_file_are_refused(tmp_path):
    path = tmp_path / "a"
    tickets.save(path, some_ticket())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(tickets.CorruptTicketError, match="unaltered"):
        tickets.contents(path)
    with pytest.raises(FileNotFoundError):
        tickets.contents(tmp_path / "none")
