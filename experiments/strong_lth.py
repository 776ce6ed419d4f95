"""The strong lottery ticket hypothesis: error against width, and a network never trained.

    python -m experiments.strong_lth                # digits, no download
    python -m experiments.strong_lth fashion        # 784-100-10 on Fashion-MNIST

How near do random numbers come to a weight, if one of n is picked (Malach et al.), if one
is added up from each of a row of golden intervals (Orseau et al.), or if the best of all
2^n sums is taken (Pensia et al.)? Then a ReLU network without biases is trained, and a
random one, twice as deep, is pruned until it says the same: how often do the two agree, how
far are they apart at most (proved), and at least (found)?

Replicas are independent: each has draws, a trained target and a random network of its own.

Malach et al., Proving the Lottery Ticket Hypothesis, 2020; Orseau et al., Logarithmic
Pruning is All You Need, 2020; Pensia et al., Optimal Lottery Tickets via SubsetSum, 2020.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cost, curves, display, presets, recipes
from experiments.display import Judged, Rows, mean_range
from experiments.experiment import Experiment, Outcome, dataset
from experiments.identity import FREE, Where
from experiments.kinds import images
from experiments.recipes import Recipe, Setup
from lottery_jax import data, errors, keys, models, plots, strong, tasks, verdicts
from lottery_jax.execution import Where as Place
from lottery_jax.models import initializers
from lottery_jax.strong import laws
from lottery_jax.types import Array, Key, Params
from lottery_jax.verdicts import Metric

if TYPE_CHECKING:
    import xarray as xr

SLOPE = Metric("slope", "", "lower", tolerance=0.15, digits=3)
SHARE = Metric("share", "points", "higher", tolerance=0.0, bounds=(0, 1), scale=100)
FIT = Metric("fit", "", "higher", tolerance=0.0, bounds=(0, 1), digits=3)
RATIO = Metric("ratio", "", "higher", tolerance=0.0)

AGREES = 0.995
"""The share of test predictions on which twin and target are to agree."""


@dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    picks: tuple[int, ...] = (8, 32, 128, 512, 2048)
    """Candidates of which the nearest is picked."""
    candidates: tuple[int, ...] = (6, 8, 10, 12, 14, 16, 18)
    """Candidates of which the best subset is taken."""
    golden_eps: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    """Errors that sums of golden intervals are made for."""
    blocks: int = 64
    """Sets of candidates that are drawn for each number of them."""
    values: int = 65
    """Weights in [-1, 1], evenly spaced, that each set is to come near to."""
    neurons: int | None = None
    """Hidden neurons of the random network for each input of the target's layers; None for
    as many as bring every weight in [-1, 1] within eps (`strong.neurons`)."""
    rescale: strong.Rescale = "weights"
    """What of each layer is brought to 1 or less, by a power of two, if it is not: its
    largest weight, or its spectral norm, as the theorems have it."""
    compared: int = 20
    """Candidates of which all subsets are compared; see `strong.subset_sums`."""
    eps: float = 0.01
    """Of how many weights the error is below this is reported."""
    starts: int = 32
    """Inputs that the search for the largest difference begins at."""
    every: int = 500
    """Steps of a segment; checkpoints are written between segments."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent draws, targets and random networks."""


# --- what is trained ------------------------------------------------------------------


@dataclass(frozen=True)
class ReluNetwork:
    """Dense layers with ReLU and without biases, as two pure functions.

    Attributes:
      widths: of inputs, hidden layers and outputs.
      initializer: law of the kernels.
    """

    widths: tuple[int, ...]
    initializer: str

    def init(self, key: Key) -> Params:
        """A draw: `dense_0`, ..., `head`, of a kernel each."""
        law = initializers.kernel(self.initializer)
        pairs = list(zip(self.widths, self.widths[1:]))
        names = [f"dense_{i}" for i in range(len(pairs) - 1)] + ["head"]
        return {
            name: {"kernel": law(jax.random.fold_in(key, i), shape, jnp.float32)}
            for i, (name, shape) in enumerate(zip(names, pairs))
        }

    def apply(self, params: Params, images: Array) -> Array:
        """Logits, of any number of layers: a twin is applied by it, too."""
        return strong.apply(params, images)


def prepare(cfg: Config) -> Setup:
    """Task and optimizer; errors name the field."""
    for field, low, high in (("picks", 1, None), ("candidates", 1, 24)):
        errors.wholes(field, getattr(cfg, field), low, high)
    for field in ("picks", "candidates", "golden_eps"):
        errors.some_different(field, getattr(cfg, field))
        if len(getattr(cfg, field)) < 2:
            raise errors.wrong(
                field, getattr(cfg, field), "two or more: a line is fitted"
            )
    for eps in cfg.golden_eps:
        errors.share("golden_eps", eps)
    errors.share("eps", cfg.eps)
    for field, low in (("blocks", 1), ("values", 2), ("starts", 1), ("neurons", 1)):
        if field != "neurons" or cfg.neurons is not None:
            errors.whole(field, getattr(cfg, field), low)
    errors.whole("compared", cfg.compared, 1, 40)
    images.check_whole(cfg, "twins are compared on images as they are stored")
    model = images.make_model(cfg)
    if not isinstance(model, models.MLP):
        must = "a chain of dense layers with ReLU: mlp-W1[-W2...]"
        raise errors.wrong("model", repr(cfg.model), must)
    source = images.load_data(cfg)
    inputs = int(np.prod(source.shape))
    widths = (inputs, *model.widths, source.num_classes)
    network = ReluNetwork(widths, cfg.initializer)
    task = tasks.classification(
        source,
        init=network.init,
        apply=network.apply,
        batch_size=cfg.batch_size,
        augment=cfg.augment,
        label_smoothing=cfg.label_smoothing,
    )
    recipes.parse_step(cfg, "steps", task.steps_per_epoch)  # or it raises
    return Setup(cfg, task, recipes.make_optimizer(cfg, task.steps_per_epoch))


# --- running --------------------------------------------------------------------------


def products(key: Key, law: laws.Law, shape: tuple[int, ...]) -> np.ndarray:
    """What neurons of one sign offer: |a| b, float64."""
    a, b = (np.asarray(law.draw(k, shape), np.float64) for k in jax.random.split(key))
    return np.abs(a) * b


def lines(cfg: Config, key: Key) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Errors of single weights against the number of candidates.

    Returns:
      By name: axes and values; errors have a median and the worst, over all blocks and
      weights.
    """
    uniform = laws.Uniform()
    grid = np.linspace(-1.0, 1.0, cfg.values)
    wanted = np.broadcast_to(grid, (cfg.blocks, cfg.values))
    numbers = iter(range(10_000))

    def draw(law: laws.Law, n: int) -> np.ndarray:
        own = jax.random.fold_in(key, next(numbers))
        return products(own, law, (cfg.blocks, n))

    def both(offered: np.ndarray, kept: np.ndarray) -> list[float]:
        error = np.abs(np.where(kept, offered[:, None], 0.0).sum(-1) - wanted)
        return [float(np.median(error)), float(error.max())]

    single, subset, golden, used, offered = [], [], [], [], []
    for n in cfg.picks:
        c = draw(uniform, n)
        single.append(both(c, strong.single(c, wanted)))
    for n in cfg.candidates:
        c = draw(uniform, n)
        subset.append(both(c, strong.subset_sums(c, wanted, n)))
    for eps in cfg.golden_eps:
        # Half of the neurons have the sign.
        n = -(-strong.neurons("golden", eps, wanted.size) // 2)
        c = draw(strong.hyperbolic(eps), n)
        kept = strong.golden(c, wanted, eps)
        golden.append(both(c, kept))
        used.append(kept.sum(-1).mean())
        offered.append(n)
    return {
        "single_error": (("pick", "statistic"), np.array(single)),
        "subset_error": (("candidate", "statistic"), np.array(subset)),
        "golden_error": (("golden_eps", "statistic"), np.array(golden)),
        "golden_kept": (("golden_eps",), np.array(used)),
        "golden_offered": (("golden_eps",), np.array(offered)),
    }


def assembled(
    setup: Setup, params: Params, key: Key
) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The twin of a trained network, and all that is measured of the two."""
    cfg, task = setup.cfg, setup.task
    of_twin, of_attack, anything = jax.random.split(key, 3)
    target = strong.layers(params)
    number = cfg.neurons
    if number is None:
        eps = cfg.eps / max(strong.scales(target, cfg.rescale))
        number = strong.neurons("subset_sums", eps, sum(w.size for w in target))
    begin = time.monotonic()
    twin = strong.build(
        of_twin,
        target,
        "subset_sums",
        neurons=number,
        rescale=cfg.rescale,
        limit=cfg.compared,
    )
    built = time.monotonic() - begin
    masked = twin.params  # scaled by a positive number, classes are the same
    split = task.data["test"]
    assert task.predict is not None
    classes = [
        np.asarray(task.predict(p, {}, task.data, anything, "test"))
        for p in (params, masked)
    ]
    wrong = [np.mean(found != split["label"]) for found in classes]
    source = images.load_data(cfg)
    x = np.asarray(data.normalize(split["image"], source.mean, source.std), np.float64)
    x = x.reshape(len(x), -1)
    longest = float(np.linalg.norm(x, axis=1).max())
    found = strong.attack(of_attack, twin, starts=cfg.starts)
    apart = strong.differences(twin, x)
    logits = strong.forward([w.astype(np.float64) for w in target], x)
    radii = {"bound": 1.0, "test_bound": longest}
    return {
        **{name: ((), strong.bound(twin, r)) for name, r in radii.items()},
        "attack": ((), found.distance),
        "test_difference": (("example",), apart.astype(np.float32)),
        "logit_margin": (("example",), margin(logits).astype(np.float32)),
        "longest": ((), longest),
        "agreement": ((), np.mean(classes[0] == classes[1])),
        "target_error": ((), wrong[0]),
        "twin_error": ((), wrong[1]),
        "weight_error": ((), twin.largest),
        "within_eps": ((), twin.within(cfg.eps)),
        "target_weights": ((), twin.counts.target),
        "random_weights": ((), twin.counts.random),
        "kept_weights": ((), twin.counts.kept),
        "neurons": ((), twin.counts.neurons),
        "scale": ((), twin.scale),
        "seconds_build": ((), built),
    }


def margin(logits: np.ndarray) -> np.ndarray:
    """How far the highest logit is above the next, `[B]`."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Draws, trains and assembles, replica by replica."""
    cfg = setup.cfg
    own = keys.of_replicas(cfg.seed, ids).fresh_init
    with display.watched(where) as place:
        networks = curves.trained(setup, ids, place)
    found = []
    for key, network in zip(own, networks):
        of_lines, of_twin = jax.random.split(key)
        found.append(lines(cfg, of_lines) | assembled(setup, network.params, of_twin))
    records = {
        name: (("replica", *axes), np.stack([each[name][1] for each in found]))
        for name, (axes, _) in found[0].items()
    }
    coordinates = {
        "replica": ids,
        "statistic": ["median", "worst"],
        "pick": list(cfg.picks),
        "candidate": list(cfg.candidates),
        "golden_eps": list(cfg.golden_eps),
    }
    return dataset(cfg, records, coordinates)


def work(setup: Setup) -> cost.Work:
    """What targets cost; their twins are made on the host, and are left out."""
    return curves.work_of_networks(setup)


# --- what came out --------------------------------------------------------------------


def slopes(results: "xr.Dataset", statistic: str = "median") -> dict[str, np.ndarray]:
    """Slopes of lines through the errors, `[R]` each.

    Returns:
      "single": of log error over log candidates; "subset": of log2 error over candidates.
    """
    out = {}
    for name, axis, scale in (
        ("single", "pick", np.log2),
        ("subset", "candidate", None),
    ):
        x = results[axis].values.astype(float)
        y = np.log2(results[f"{name}_error"].sel(statistic=statistic).values)
        out[name] = np.polyfit(scale(x) if scale else x, y.T, 1)[0]
    return out


def golden_fit(results: "xr.Dataset") -> np.ndarray:
    """How well kept neurons lie on a line over ln(1/error): R^2, `[R]`."""
    found = []
    error = results["golden_error"].sel(statistic="median").values
    for x, y in zip(np.log(1 / error), results["golden_kept"].values):
        found.append(np.corrcoef(x, y)[0, 1] ** 2)
    return np.array(found)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """What the theorems say of lines, and what is asked of the twin."""
    judged = []
    for name, text in (
        ("single", "one pick: slope -1 of log error over log candidates"),
        ("subset", "subset sums: slope -1 of log2 error per candidate"),
    ):
        off = slopes(results)[name] + 1
        most = SLOPE.tolerance
        above = verdicts.paired(
            off, side="<=", tolerance=most, claim="not above", metric=SLOPE
        )
        below = verdicts.paired(
            off, side=">=", tolerance=-most, claim="not below", metric=SLOPE
        )
        claim = f"{text}, within {most}"
        whole = verdicts.combine(above, below, claim=claim)
        judged.append(Judged({"construction": name}, "slope -1", whole))
    eps = results["golden_eps"].values
    close = results["golden_error"].sel(statistic="worst").values <= eps
    kept_per_weight = verdicts.paired(
        golden_fit(results),
        side=">=",
        tolerance=0.99,
        claim="golden sums: kept neurons linear in log(1/error), R^2",
        metric=FIT,
    )
    all_close = verdicts.paired(
        close.mean(1),
        side=">=",
        tolerance=1.0,
        claim="golden sums: every weight within eps, at every eps",
        metric=SHARE,
    )
    agree = verdicts.paired(
        results["agreement"].values,
        side=">=",
        tolerance=AGREES,
        claim="twin and target agree on test predictions",
        metric=SHARE,
    )
    ratio = verdicts.paired(
        np.log10(results["bound"].values / results["attack"].values),
        side=">=",
        tolerance=0.0,
        claim="the bound lies above what the attack finds, log10 of the ratio",
        metric=RATIO,
    )
    judged += [
        Judged({"construction": "golden"}, "linear in log(1/eps)", kept_per_weight),
        Judged({"construction": "golden"}, "within eps", all_close),
        Judged({"construction": "network"}, "agreement", agree),
        Judged({"construction": "network"}, "bound above attack", ratio),
    ]
    return judged


def tables(outcome: Outcome) -> list[Rows]:
    """The assembled network, and the lines."""
    results, cfg = outcome.results, outcome.cfg
    found = {name: results[name].values for name in results.data_vars}
    target, random = found["target_weights"], found["random_weights"]
    kept = found["kept_weights"]

    def powers(name: str) -> str:
        low, high = found[name].min(), found[name].max()
        return f"{np.exp(np.log(found[name]).mean()):.2e} [{low:.2e}, {high:.2e}]"

    rows = [
        ["test predictions that agree (%)", mean_range(100 * found["agreement"], 3)],
        ["accuracy of the target (%)", mean_range(100 - 100 * found["target_error"])],
        ["accuracy of the twin (%)", mean_range(100 - 100 * found["twin_error"])],
        [f"weights within {cfg.eps:g} (%)", mean_range(100 * found["within_eps"], 3)],
        ["largest error of a weight", powers("weight_error")],
        ["distance on the unit ball, at most (proved)", powers("bound")],
        ["distance on the unit ball, at least (found)", powers("attack")],
        ["distance at test images' norm, at most", powers("test_bound")],
        [
            "largest distance on a test image",
            mean_range(found["test_difference"].max(1), 5),
        ],
        ["weights of the target", f"{target[0]}"],
        ["candidates of a weight, both signs", f"{found['neurons'][0]}"],
        ["weights of the random network", f"{random[0]}"],
        ["of these for each of the target", f"{random[0] / target[0]:.1f}"],
        ["kept", mean_range(kept, 0)],
        ["kept (%)", mean_range(100 * kept / random, 2)],
        ["kept for each of the target", mean_range(kept / target, 2)],
        ["seconds to find the mask", mean_range(found["seconds_build"], 1)],
    ]
    number = results.sizes["replica"]
    spread = f"mean [min, max] of {number} replicas"
    title = (
        f"{outcome.preset}: a random network that stands for a trained one, {spread}"
    )
    parts = [Rows(title, ["", outcome.networks], rows)]
    for name, axis, what in (
        ("single", "pick", "candidates, one picked"),
        ("subset", "candidate", "candidates, best subset"),
        ("golden", "golden_eps", "eps, golden sums"),
    ):
        more = ["offered of a sign", "kept"] if name == "golden" else []
        lines_ = []
        for i, at in enumerate(results[axis].values):
            error = results[f"{name}_error"].values[:, i]
            cells = [f"{v:.1e}" for v in np.exp(np.log(error).mean(0))]
            if more:
                offered = f"{results['golden_offered'].values[0, i]}"
                cells += [offered, f"{results['golden_kept'].values[:, i].mean():.2f}"]
            lines_.append([f"{at:g}", *cells])
        title = f"{outcome.preset}: errors of weights in [-1, 1], geometric mean"
        parts.append(Rows(title, [what, "median", "worst", *more], lines_))
    return parts


def conclusions(outcome: Outcome) -> list[str]:
    """The verdicts, and the slopes that they rest on."""
    out = [one.verdict.describe() for one in outcome.judged]
    for statistic in ("median", "worst"):
        own = slopes(outcome.results, statistic)
        out.append(
            f"slopes of the {statistic} error: one pick "
            f"{mean_range(own['single'], 3)} (log over log), subset sums "
            f"{mean_range(own['subset'], 3)} (log2 per candidate of a sign)"
        )
    return out


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Error against candidates, and how far twin and target are apart."""
    results = outcome.results

    def error(name: str, statistic: str) -> np.ndarray:
        return results[f"{name}_error"].sel(statistic=statistic).values

    def label(name: str) -> str:
        slope = slopes(results)[name]
        spread = f"{slope.mean():.2f} [{slope.min():.2f}, {slope.max():.2f}]"
        return f"slope {spread}"

    number = results.sizes["replica"]
    picks, candidates = results["pick"].values, results["candidate"].values
    yield (
        "error",
        plots.against(
            {
                f"one pick, {label('single')}": (picks, error("single", "median")),
                "golden sums, of as many as a union bound asks": (
                    results["golden_offered"].values[0],
                    error("golden", "median"),
                ),
                "subset sums": (candidates, error("subset", "median")),
            },
            xlabel="candidates of one sign",
            ylabel="median error of a weight",
            title=f"weights in [-1, 1], mean and range of {number} replicas",
            logarithmic=(True, True),
        ),
    )
    yield (
        "subset_sums",
        plots.against(
            {
                f"median, {label('subset')} (log2)": (
                    candidates,
                    error("subset", "median"),
                ),
                "worst": (candidates, error("subset", "worst")),
            },
            xlabel="candidates of one sign",
            ylabel="error of a weight",
            title=f"the best of all subsets, mean and range of {number} replicas",
            logarithmic=(False, True),
            second=("hidden neurons of an input, both signs", 2.0),
        ),
    )
    inverse = np.log(1 / results["golden_eps"].values)
    steps = [strong.golden_steps(e) for e in results["golden_eps"].values]
    yield (
        "golden",
        plots.against(
            {
                "intervals": (inverse, np.array([steps], float)),
                "kept": (inverse, results["golden_kept"].values),
            },
            xlabel="ln(1/eps)",
            ylabel="neurons of a weight",
            title=f"golden sums, mean and range of {number} replicas",
        ),
    )
    yield (
        "distances",
        plots.histogram(
            {
                "twin from target": results["test_difference"].values.ravel(),
                "highest logit from the next": results["logit_margin"].values.ravel(),
            },
            xlabel="distance of outputs on a test image",
            ylabel="test images of all replicas",
            title=f"{outcome.networks}: a random network, pruned, and its target",
            marks={"proved bound (largest)": float(results["test_bound"].max())},
        ),
    )


PRESETS = presets.make(Config, presets.STRONG_LTH)

EXPERIMENT = Experiment(
    name="strong_lth",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="digits",
    tiny="--model mlp-4 --subset 200 --steps 2it --replicas 2 --picks 4 8 "
    "--candidates 4 6 --golden-eps 0.3 0.1 --blocks 4 --values 5 --neurons 8 "
    "--compared 6 --starts 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
    error_alone=True,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
