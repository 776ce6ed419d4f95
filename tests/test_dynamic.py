"""`dynamic`: rules that change a mask during training."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import toys

from lottery_jax import masks
from lottery_jax.dynamic import MaskUpdate, gradual_magnitude


def test_gradual_magnitude_reaches_the_exact_density_by_nested_masks(getkey):
    shape = (40, 25)
    params = {
        "dense": {"kernel": jax.random.normal(getkey(), shape), "bias": jnp.zeros(25)}
    }
    rule = gradual_magnitude(0.0333, 100, 600, every=50)
    assert rule.steps() == list(range(100, 601, 50))
    ones = jax.tree.map(jnp.ones_like, params)
    mask, total, kept = masks.ones_like(params), 1000, []
    compiled = quick.jit(rule.update)
    for step in rule.steps():
        key = getkey()
        new = compiled(key, jnp.int32(step), params, ones, mask)
        assert masks.is_subset(new, mask)
        magnitudes = np.abs(np.asarray(params["dense"]["kernel"]))
        alive = np.asarray(new["dense"]["kernel"])
        if not alive.all():
            assert magnitudes[alive].min() > magnitudes[~alive].max()
        kept.append(int(masks.count(new)))
        assert np.asarray(new["dense"]["bias"]).all()
        mask = new
    t = (np.array(rule.steps()) - 100) / 500
    expected = total * (0.0333 + (1 - 0.0333) * (1 - t) ** 3)
    np.testing.assert_allclose(kept, expected, atol=0.51)
    assert kept[0] == total and kept[-1] == round(Fraction("0.0333") * total)
    # Early steps remove more; a mask that is sparser already is left alone.
    assert (np.diff(kept, 2) >= -1).all()
    sparser = masks.random(getkey(), params, 0.01)
    same = compiled(key, jnp.int32(600), params, ones, sparser)
    toys.assert_equal(same, sparser)


def test_gradual_magnitude_counts_what_it_spares(getkey):
    params = {
        name: {"kernel": jax.random.normal(getkey(), (10, 10))}
        for name in ("a", "head")
    }
    rule = gradual_magnitude(0.6, 0, 10, every=5, exclude="head")
    full = masks.ones_like(params)
    mask = quick.jit(rule.update)(getkey(), jnp.int32(10), params, params, full)
    assert int(mask["a"]["kernel"].sum()) == 20
    assert mask["head"]["kernel"].all()


def test_the_last_count_is_exact_where_float32_is_not(getkey):
    params = {"kernel": jax.random.normal(getkey(), (10, 19))}
    assert round(Fraction("0.15") * 190) == 28  # 28.5, half to even
    assert np.round(np.float32(0.15) * np.float32(190)) == 29
    rule = gradual_magnitude(0.15, 0, 10, every=5)
    full = masks.ones_like(params)
    step = quick.jit(rule.update)
    mask = step(getkey(), jnp.int32(10), params, params, full)
    assert int(masks.count(mask)) == 28


@pytest.mark.parametrize(
    "every, begin, end, steps",
    [
        (100, 0, 300, [0, 100, 200, 300]),
        (100, 150, 400, [200, 300, 400]),
        (1, 3, 5, [3, 4, 5]),
        (50, 49, 50, [50]),
        (50, 60, 90, []),
    ],
)
def test_the_steps_at_which_a_rule_acts(every, begin, end, steps):
    rule = MaskUpdate(lambda *args: None, every, begin, end)
    assert rule.steps() == steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradual_magnitude(0.1, 0, 150), "end=150 .*every=100"),
        (lambda: gradual_magnitude(0.1, 0, 100, every=0), "every=0"),
        (lambda: gradual_magnitude(0.1, 100, 100), "begin=100, end=100"),
        (lambda: gradual_magnitude(1.5, 0, 100), "final_density=1.5"),
        (lambda: gradual_magnitude(0.0, 0, 100), "final_density=0.0"),
    ],
)
def test_errors_name_the_argument_and_what_would_be_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call()
