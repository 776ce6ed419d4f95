"""Probes of representations, against NumPy and scikit-learn."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import lottery_jax as lj
from lottery_jax import keys, models, probes, trees
from lottery_jax.execution import Execution, Where
from lottery_jax.types import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ONE = Where(Execution(1, 1))
REPLICAS, TRAIN, TEST, WIDTH, CLASSES = 2, 90, 37, 5, 3


@functools.cache
def drawn():
    """Representations in which classes overlap; another spread for each replica."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    labels = [rng.integers(0, CLASSES, n) for n in (TRAIN, TEST)]
    spreads = np.array([1.0, 2.0])[:, None, None]
    found = []
    for label in labels:
        noise = rng.normal(size=(REPLICAS, len(label), WIDTH))
        found.append(np.float32(3 + 2 * (centres[label] + spreads * noise)))
    (train, test), (train_label, test_label) = found, labels
    return train, train_label, test, test_label


# --- nearest neighbours ---------------------------------------------------------------


def nearest_of(train, train_label, test, test_label, neighbours, temperature):
    """Wu et al. 2018, section 3.4, one test example after another, in float64."""
    train, test = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
        for x in (train, test)
    )
    wrong = 0
    for x, label in zip(test, test_label):
        cosines = train @ x
        near = np.argsort(-cosines)[:neighbours]
        votes = np.zeros(CLASSES)
        for i in near:
            votes[train_label[i]] += np.exp(cosines[i] / temperature)
        wrong += np.argmax(votes) != label
    return wrong / len(test)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.01)])
def test_nearest_neighbours_are_those_of_numpy(neighbours, temperature):
    train, train_label, test, test_label = drawn()
    found = probes.nearest(
        *drawn(), neighbours=neighbours, temperature=temperature, where=ONE
    )
    expected = [
        nearest_of(x, train_label, y, test_label, neighbours, temperature)
        for x, y in zip(train, test)
    ]
    assert 0 < expected[0] < expected[1] < 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_training_example_is_its_own_nearest_one():
    train, train_label, *_ = drawn()
    own = (train, train_label, train, train_label)
    assert not probes.nearest(*own, neighbours=1, where=ONE).any()


def test_one_heavy_vote_outdoes_several_light_ones():
    """At a low temperature the nearest decides, at a high one the majority."""
    train = np.float32([[[1, 0.1], [0.2, 1], [0.2, 1.1]]])
    test, labels = np.float32([[[1, 0]]]), np.array([0, 1, 1])
    own = (train, labels, test, np.array([0]))
    options = {"neighbours": 3, "where": ONE}
    assert probes.nearest(*own, temperature=0.07, **options) == [0]
    assert probes.nearest(*own, temperature=100.0, **options) == [1]


def test_examples_without_a_length_are_no_nan():
    train, train_label, test, test_label = drawn()
    test = test.copy()
    test[:, 0] = 0
    found = probes.nearest(train, train_label, test, test_label, neighbours=5)
    assert np.isfinite(found).all()


# --- linear evaluation ----------------------------------------------------------------


PENALTY = 1e-2


def test_a_linear_classifier_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, train_label, test, test_label = drawn()
    found = probes.linear(*drawn(), penalty=PENALTY, where=ONE)
    expected = []
    for x, y in zip(train.astype(np.float64), test.astype(np.float64)):
        mean, spread = x.mean(0), x.std(0)
        model = linear_model.LogisticRegression(
            C=1 / (TRAIN * PENALTY), tol=1e-8, max_iter=2000
        ).fit((x - mean) / spread, train_label)
        expected.append((model.predict((y - mean) / spread) != test_label).mean())
    assert 0 < expected[0] < expected[1] < 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scale_place_and_what_never_changes_do_not_matter():
    train, train_label, test, test_label = drawn()

    def moved(x):
        constant = np.full((*x.shape[:2], 1), 7.3, np.float32)
        return np.concatenate([4 * x - 1, constant], axis=-1)

    plain = probes.linear(*drawn(), penalty=PENALTY, where=ONE)
    given = (moved(train), train_label, moved(test), test_label)
    other = probes.linear(*given, penalty=PENALTY, where=ONE)
    np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize("probe", [probes.nearest, probes.linear])
def test_what_is_not_finite_has_no_error_and_harms_no_other(probe):
    options = {"neighbours": 9} if probe is probes.nearest else {"penalty": PENALTY}
    train, train_label, test, test_label = drawn()
    whole = probe(*drawn(), **options, where=ONE)
    train = train.copy()
    train[1, 3, 0] = np.nan
    found = probe(train, train_label, test, test_label, **options, where=ONE)
    assert np.isnan(found[1]) and found[0] == whole[0]
    alone = probe(train[:1], train_label, test[:1], test_label, **options, where=ONE)
    assert alone[0] == whole[0]


# --- representations ------------------------------------------------------------------

MODEL = models.ResNet(6, (1,), 2, choices=models.Choices(head="projection", hidden=5))


@functools.cache
def networks():
    def init(key):
        made = dict(MODEL.init(key, jnp.zeros((1, 8, 8, 3))))
        return Network(made.pop("params"), made)

    return trees.host(jax.jit(jax.vmap(init))(keys.of_replicas(0, (0, 1)).init))


def test_a_representation_is_what_goes_into_the_head():
    dataset = toys.pictures()
    images = dataset.arrays["test"]["image"]
    found = probes.features(MODEL, networks(), images, dataset, batch=4, where=ONE)
    assert found.shape == (2, 11, 2) and found.dtype == np.float32
    x = (images.astype(np.float32) / 255 - 0.5) / 0.25
    for i, own in enumerate(found):
        params, state = trees.rows(networks(), i)
        hidden = jnp.maximum(own @ params["head"]["hidden"]["kernel"], 0)
        said = hidden @ params["head"]["output"]["kernel"]
        expected = MODEL.apply({"params": params, **state}, x)  # biases are 0
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


def test_the_head_does_not_matter():
    dataset = toys.pictures()
    images = dataset.arrays["test"]["image"]
    classifier = models.ResNet(4, (1,), 2)
    params = {
        name: leaf
        for name, leaf in networks().params.items()
        if not name.startswith("head")
    }
    bare = Network(params, networks().model_state)
    np.testing.assert_array_equal(
        probes.features(classifier, bare, images, dataset, where=ONE),
        probes.features(MODEL, networks(), images, dataset, where=ONE),
    )


class Ignores(nn.Module):
    """Has choices, and does not look at their head."""

    choices: models.Choices = models.Choices()

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        return nn.Conv(3, (1, 1), name="head")(x)


# --- refused --------------------------------------------------------------------------


def of_drawn(**changes):
    names = ("train", "train_label", "test", "test_label")
    return dict(zip(names, drawn())) | changes


BAD = {
    "train": (
        of_drawn(train=np.zeros((2, 3))),
        r"train=ndarray of shape \(2, 3\); it must be representations \[R, N, width\]",
    ),
    "dtype": (
        of_drawn(train=np.zeros((2, 90, 5))),
        "train.dtype=float64; it must be float32",
    ),
    "width": (
        of_drawn(test=np.zeros((2, 37, 4), np.float32)),
        r"test.shape=\(2, 37, 4\); it must be \[2, M, 5\], like train",
    ),
    "labels": (
        of_drawn(train_label=np.zeros(3, int)),
        r"train_label=int64 of shape \(3,\); it must be integers \[90\]",
    ),
    "classes": (
        of_drawn(test_label=np.full(37, -1)),
        "test_label=-1; it must be 0 or more",
    ),
}


@pytest.mark.parametrize("probe", [probes.nearest, probes.linear])
@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(probe, name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        probe(**given)


def test_numbers_out_of_range_are_refused_by_name():
    for options, message in (
        ({"neighbours": 91}, "neighbours=91; it must be between 1 and 90"),
        ({"neighbours": 1.0}, "neighbours=1.0; it must be a whole number"),
        ({"neighbours": 3, "temperature": 0.0}, "temperature=0.0; it must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.nearest(*drawn(), **options)
    for options, message in (
        ({"penalty": 0.0}, "penalty=0.0; it must be above 0"),
        ({"steps": 0}, "steps=0; it must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.linear(*drawn(), **options)


def test_networks_of_another_model_are_refused():
    dataset = toys.pictures()
    images = dataset.arrays["test"]["image"]
    wider = models.ResNet(4, (1,), 3)
    for model, given, shown, message in (
        (Ignores, networks(), images, "model=.*; it must be a Linen module"),
        (nn.Dense(3), networks(), images, "model=Dense; it must be a model of images"),
        (wider, networks(), images, "networks"),
        (MODEL, trees.rows(networks(), 0), images, "networks"),
        (MODEL, networks(), images[:, :4], r"images.shape=\(11, 4, 8, 3\); it must be"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.features(model, given, shown, dataset)


def test_a_model_that_does_not_read_its_choices_is_refused():
    dataset = toys.pictures()
    params = Ignores().init(keys.of_seed(0), jnp.zeros((1, 8, 8, 3)))["params"]
    with pytest.raises(ValueError, match="networks"):
        probes.features(
            Ignores(),
            trees.stack([Network(dict(params), {})]),
            dataset.arrays["test"]["image"],
            dataset,
        )


def test_a_pre_trained_network_is_probed():
    """The whole way, by its public names."""
    dataset = toys.pictures()
    splits = ("train", "test")
    train, test = (
        probes.features(MODEL, networks(), dataset.arrays[s]["image"], dataset)
        for s in splits
    )
    labels = [dataset.arrays[split]["label"] for split in splits]
    error = probes.nearest(train, labels[0], test, labels[1], neighbours=5)
    assert error.shape == (2,) and ((error >= 0) & (error <= 1)).all()
    assert lj.models.headless(MODEL).choices.head == "none"
