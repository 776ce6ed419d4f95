"""Early-Bird tickets: how early in training is the mask there, and is it as good?

    python -m experiments.early_bird                           # MLP on MNIST-1D
    python -m experiments.early_bird lenet-fashion

Trains dense networks, draws a mask from them at every epoch and measures how far all of
these are from each other. Where the newest mask is like the few before it the ticket is
drawn. Is it as good as one that is drawn later, or at the end? Tickets of several epochs
are trained: by the weights that they have at their epoch, as in the paper; by their initial
weights; and beside them random masks of as many weights in each layer.

Masks are those of the largest weights, and in networks with BatchNorm also those of the
channels with the largest scales, which are what the paper prunes.

You et al., Drawing Early-Bird Tickets: Towards More Efficient Training of Deep Networks,
2020, sections 3 and 4.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cost, display, metrics, presets, recipes
from experiments.display import Judged, Rows
from experiments.experiment import Experiment, Outcome, dataset
from experiments.identity import FREE, UNLESS_DEFAULT, Where
from experiments.kinds import images
from experiments.recipes import (
    Recipe,
    Setup,
    make_optimizer,
    make_task,
    parse_step,
    parse_steps,
)
from lottery_jax import (
    errors,
    imp,
    keys,
    masks,
    permutations,
    plots,
    training,
    trees,
    units,
    verdicts,
)
from lottery_jax.dynamic import early_bird
from lottery_jax.execution import Where as Place
from lottery_jax.types import Array, Key, Mask, Network, Params, Task, TrainState

if TYPE_CHECKING:
    import xarray as xr

Criterion = Literal["magnitude", "channels"]
Arm = Literal["inherited", "rewound", "random_mask"]

ARMS: tuple[Arm, ...] = get_args(Arm)
"""What a mask is trained from: the weights at its epoch, or the initial ones; and a random
mask of as many weights in each layer, with the weights of that epoch."""


@dataclasses.dataclass(frozen=True)
class Config(Where, Recipe):
    """Everything that a study is determined by, and where and how it runs."""

    criteria: tuple[Criterion, ...] = ("magnitude",)
    """What is kept: the largest weights, or the channels of the largest BatchNorm scales."""
    densities: tuple[float, ...] = (0.5, 0.3, 0.1)
    """Shares that are kept: of the weights by magnitude, of the channels by scale."""
    mask_every: str = "1ep"
    """Time between masks."""
    draws: tuple[str, ...] = ("1ep", "2ep", "5ep", "10ep", "20ep")
    """When tickets are drawn that are trained, beside the early bird and the last mask."""
    arms: tuple[Arm, ...] = dataclasses.field(default=ARMS, metadata=UNLESS_DEFAULT)
    """What each mask is trained from, "inherited" among them."""
    threshold: float = early_bird.THRESHOLD
    """Distance below which the newest mask is like another."""
    window: int = early_bird.WINDOW
    """How many masks in a row must be alike, the newest among them."""
    scale_l1: float = 0.0
    """L1 penalty on BatchNorm scales while the dense networks train, as in slimming."""
    validate_every: int = 500
    """Steps between validations."""
    tolerance: float = dataclasses.field(default=0.005, metadata=FREE)
    """How much more error still counts as as good."""
    replicas: int = dataclasses.field(default=3, metadata=FREE)
    """Independent initialisations."""


# --- running --------------------------------------------------------------------------


class Times(NamedTuple):
    """Steps of a run.

    Attributes:
      masks: at which a mask is drawn.
      draws: at which a ticket is drawn that is trained, the last of `masks` among them.
    """

    masks: tuple[int, ...]
    draws: tuple[int, ...]


def times(cfg: Config, task: Task) -> Times:
    """When masks and tickets are drawn; errors name the field."""
    steps = parse_step(cfg, "steps", task.steps_per_epoch)
    every = parse_step(cfg, "mask_every", task.steps_per_epoch)
    errors.at_least("mask_every", every, 1)
    window = errors.whole("window", cfg.window, 2)
    found = tuple(range(every, steps + 1, every))
    if len(found) < window:
        must = f"such that there are window={window} masks or more in steps={cfg.steps}"
        raise errors.wrong("mask_every", cfg.mask_every, must)
    draws = parse_steps(cfg, "draws", task.steps_per_epoch)
    for text, step in zip(cfg.draws, draws):
        if step not in found:
            must = f"a multiple of mask_every={cfg.mask_every} within steps={cfg.steps}"
            raise errors.wrong("draws", text, must)
    return Times(found, tuple(sorted({*draws, found[-1]})))


def prepare(cfg: Config) -> Setup:
    """Task, optimizer and the plan of a retraining; errors name the field."""
    errors.some_different("criteria", cfg.criteria)
    for criterion in cfg.criteria:
        errors.one_of("criteria", criterion, get_args(Criterion))
    errors.some_different("arms", cfg.arms)
    for arm in cfg.arms:
        errors.one_of("arms", arm, ARMS)
    if "inherited" not in cfg.arms:
        raise errors.wrong("arms", cfg.arms, "some with 'inherited' among them")
    errors.some_different("densities", cfg.densities)
    errors.share("threshold", cfg.threshold)
    errors.at_least("scale_l1", cfg.scale_l1, 0)
    for density in cfg.densities:
        errors.share("densities", density)
        if 2 * min(density, 1 - density) <= cfg.threshold:
            raise ValueError(
                f"densities: no two masks of density {density} are further apart than "
                f"{2 * min(density, 1 - density):g}, so threshold={cfg.threshold} would "
                "find any of them alike; lower it, or leave the density out"
            )
    task = make_task(cfg)
    when = times(cfg, task)
    shapes = task.shapes[0]
    if "channels" in cfg.criteria:
        try:
            jax.eval_shape(
                lambda p: early_bird.unit_scores(images.make_model(cfg), p), shapes
            )
        except ValueError as error:
            raise ValueError(f"criteria: 'channels' needs BatchNorm: {error}") from None
    for criterion in cfg.criteria:
        for density in cfg.densities:
            jax.eval_shape(
                functools.partial(mask_of(cfg, task, criterion), density), shapes
            )
    plan = imp.Plan(
        steps=parse_step(cfg, "steps", task.steps_per_epoch),
        chains=tuple(imp.Chain("-".join(name)) for name in _names(cfg, when)),
        arms=("ticket",),
        validate_every=cfg.validate_every,
        seed=cfg.seed,
    )
    tx = make_optimizer(cfg, task.steps_per_epoch)
    return Setup(cfg, task, tx, imp.check(plan))


def _names(cfg: Config, when: Times) -> Iterator[tuple[str, ...]]:
    """Of each chain its criterion, density, draw and arm."""
    for criterion in cfg.criteria:
        for density in cfg.densities:
            for draw in (*map(str, when.draws), "early"):
                for arm in cfg.arms:
                    yield criterion, f"{density:g}", draw, arm


class Drawn(NamedTuple):
    """What one network is cut to.

    Attributes:
      mask: of its weights.
      units: of its channels; None where weights are cut one by one.
    """

    mask: Mask
    units: Any


def mask_of(cfg: Config, task: Task, criterion: Criterion) -> Any:
    """The function `(density, params) -> Drawn` of one network; may be traced."""
    flags = masks.of_task(task)
    if criterion == "magnitude":

        def largest(density: float, params: Params) -> Drawn:
            how: dict[str, Any] = dict(prunable=flags, exclude=task.exclude)
            one = jax.tree.map(lambda x: x[None], params)
            found = early_bird.draw(one, density, **how)
            return Drawn(jax.tree.map(lambda m: m[0], found), None)

        return largest
    model = images.make_model(cfg)
    axes = units.of_params(model, task.shapes[0])

    def channels(density: float, params: Params) -> Drawn:
        alive = early_bird.draw_units(early_bird.unit_scores(model, params), density)
        return Drawn(early_bird.whole_units(axes, params, alive, flags), alive)

    return channels


def distances_of(drawn: Drawn, flags: Any) -> Array:
    """Distances of one network's masks, `[E, E]`: of channels where these are cut."""
    if drawn.units is None:
        return early_bird.mask_distances(drawn.mask, flags)
    return early_bird.mask_distances(drawn.units, dict.fromkeys(drawn.units, True))


def shuffled(key: Key, drawn: Drawn, cfg: Config, task: Task) -> Mask:
    """A random mask of as many weights in each layer; of whole channels where these are."""
    flags = masks.of_task(task)
    if drawn.units is None:
        return masks.shuffle(key, drawn.mask, prunable=flags, exclude=task.exclude)
    axes = units.of_params(images.make_model(cfg), task.shapes[0])
    moved = {}
    for i, (group, alive) in enumerate(drawn.units.items()):
        places = jnp.arange(alive.size, dtype=jnp.int32)
        own = permutations.at(jax.random.fold_in(key, i), places, alive.size)
        moved[group] = alive[own]
    return early_bird.whole_units(axes, task.shapes[0], moved, flags)


def _slimmed(strength: float, updates: Params, params: Params) -> Params:
    """Gradients with that of an L1 penalty on the scales of norms."""
    scales = trees.map_by_path(lambda path, _: path.endswith("/scale"), params)
    return jax.tree.map(
        lambda g, p, take: g + strength * jnp.sign(p) if take else g,
        updates,
        params,
        scales,
    )


class Dense(NamedTuple):
    """Dense networks of some replicas, on the host.

    Attributes:
      initial: before training, `[R, ...]`.
      kept: at each mask's step, `[R, E, ...]`.
      diverged: which of them did, bool `[R]`.
    """

    initial: Network
    kept: TrainState
    diverged: np.ndarray


def train(setup: Setup, ids: list[int], when: Times, where: Place) -> Dense:
    """Trains dense networks and keeps them at every mask's step."""
    cfg, task, tx, plan = setup
    if cfg.scale_l1:
        slimmed = functools.partial(_slimmed, cfg.scale_l1)
        tx = optax.chain(optax.stateless(slimmed), tx)
    own = keys.of_replicas(plan.seed, ids)
    runs = training.fresh(task, tx, own.init, own.noise, where=where)
    initial = trees.rows(trees.host(runs.state.network), slice(len(ids)))
    done = training.train(
        task,
        tx,
        runs,
        plan.steps,
        every=plan.validate_every,
        keep=when.masks,
        stage="dense networks",
        where=where.below("dense"),
    )
    assert done.kept is not None
    return Dense(initial, done.kept, np.isfinite(done.curves.first_nan))


class Tickets(NamedTuple):
    """What is drawn from the dense networks of some replicas.

    Attributes:
      masks: of each chain of the plan, in its order, `[R, ...]`.
      networks: what it starts from, likewise.
      distance: of the masks of all epochs, `[criterion, density, R, E, E]`; nan where a
        replica diverged.
      early: the row of the early bird among the epochs, int `[criterion, density, R]`; -1
        where there is none.
    """

    masks: list[Mask]
    networks: list[Network]
    distance: np.ndarray
    early: np.ndarray


def draw(setup: Setup, dense: Dense, when: Times, ids: list[int]) -> Tickets:
    """Draws the masks of all epochs, finds the early birds, and takes what is trained.

    Args:
      setup: of the run.
      dense: its networks.
      when: masks and tickets are drawn.
      ids: of the replicas.
    """
    cfg, task, *_ = setup
    flags, everyone = masks.of_task(task), np.arange(len(ids))
    key = keys.of_replicas(cfg.seed, ids).mask_shuffle
    another = jax.vmap(lambda key, drawn: shuffled(key, drawn, cfg, task))
    shape = (len(cfg.criteria), len(cfg.densities), len(ids))
    distance = np.full((*shape, *(len(when.masks),) * 2), np.nan, np.float32)
    out = Tickets([], [], distance, np.full(shape, -1))
    for i, criterion in enumerate(cfg.criteria):
        for j, density in enumerate(cfg.densities):
            of_one = functools.partial(mask_of(cfg, task, criterion), density)

            def of_run(params: Params, of: Any = of_one) -> tuple[Drawn, Array]:
                drawn = jax.lax.map(of, params)
                return drawn, distances_of(drawn, flags)

            drawn, apart = trees.host(jax.vmap(of_run)(dense.kept.params))
            for r in np.flatnonzero(~dense.diverged):
                out.distance[i, j, r] = apart[r]
                row = early_bird.drawn_epoch(
                    apart[r], threshold=cfg.threshold, window=cfg.window
                )
                out.early[i, j, r] = -1 if row is None else row
            # Without an early bird the last mask stands in, and is left out of results.
            at = [when.masks.index(step) for step in when.draws]
            for rows in (*at, out.early[i, j]):
                picked = everyone, np.broadcast_to(rows, everyone.shape)
                here, network = trees.rows((drawn, dense.kept.network), picked)
                for arm in cfg.arms:
                    random = arm == "random_mask"
                    mask = trees.host(another(key, here)) if random else here.mask
                    out.masks.append(mask)
                    out.networks.append(dense.initial if arm == "rewound" else network)
    return out


def one(setup: Setup, ids: list[int], where: Place) -> "xr.Dataset":
    """Trains dense networks, draws masks, and trains the tickets of a group of replicas."""
    cfg, task, tx, plan = setup
    when, metric = times(cfg, task), recipes.metric(cfg)
    with display.watched(where, metric=metric) as place:
        dense = train(setup, ids, when, place)
        final = trees.rows(dense.kept.network, (slice(None), -1))
        whole = training.evaluate(task, final, "test", where=place.aside())
        whole = {n: np.where(dense.diverged, np.nan, x) for n, x in whole.items()}
    tickets = draw(setup, dense, when, ids)
    named, below = display.names(plan, ids), where.below("tickets")
    with display.watched(below, names=named, last=1, metric=metric) as place:
        study = imp.retrain(
            task,
            tx,
            plan,
            imp.tickets_from(tickets.masks, tickets.networks),
            level=1,
            replicas=ids,
            where=place,
        )
    return _results(setup, ids, when, study, dense.diverged, whole, tickets)


def work(setup: Setup) -> cost.Work:
    """What dense networks and their tickets cost."""
    cfg, task, _, plan = setup
    of, kept = cost.of_setup(setup), len(times(cfg, task).masks)
    dense = cost.trained(
        "dense networks", of, cfg.replicas, plan.steps, tests=1, kept=kept
    )
    # Where there is no early bird the last mask stands in, and is trained all the same.
    return cost.together(dense, cost.again(of, plan, cfg.replicas, "tickets"))


def _results(
    setup: Setup,
    ids: list[int],
    when: Times,
    study: imp.Study,
    lost: np.ndarray,
    dense: Mapping[str, np.ndarray],
    tickets: Tickets,
) -> "xr.Dataset":
    """Everything by criterion, density, draw, arm and replica; `lost` diverged dense."""
    cfg, task, *_ = setup
    found = tickets.early
    axes = ("criterion", "density", "draw", "arm", "replica")
    out: dict[str, Any] = {}
    shape = (len(cfg.criteria), len(cfg.densities), len(when.draws) + 1, len(cfg.arms))
    for name, (axis, value) in study.records.items():
        if axis[-1] != "level" or "step" in axis or name == "density":
            continue
        full = value[:, 0, :, 0].astype(float).reshape(*shape, len(ids))
        if name == "diverged":
            # A mask of nan weights is none, whatever is trained under it.
            full = np.maximum(full, lost)
        early = np.where(found[:, :, None] >= 0, full[:, :, -1], np.nan)
        out[name] = (axes, full[:, :, :-1])
        out[f"early_{name}"] = ((*axes[:2], *axes[3:]), early)
    epoch = np.array(when.masks) / task.steps_per_epoch
    seen = np.where(found >= 0, epoch[found], np.nan)
    total = masks.total(task.shapes[0], masks.of_task(task))
    out |= {
        "distance": (
            ("criterion", "density", "replica", "epoch", "other_epoch"),
            tickets.distance,
        ),
        "early_epoch": (("criterion", "density", "replica"), seen),
        "prunable": ((), total),
    }
    out |= {
        f"dense_test_{name}": (("replica",), value) for name, value in dense.items()
    }
    coordinates = {
        "criterion": list(cfg.criteria),
        "density": list(cfg.densities),
        "draw": [step / task.steps_per_epoch for step in when.draws],
        "arm": list(cfg.arms),
        "replica": ids,
        "epoch": epoch,
        "other_epoch": epoch,
    }
    return dataset(cfg, out, coordinates)


# --- what came out --------------------------------------------------------------------


def tested(results: "xr.Dataset", metric: verdicts.Metric, early: str = "") -> Any:
    """What tickets are compared by; those that diverged are nan."""
    value, lost = results[f"{early}test_{metric.name}"], results[f"{early}diverged"]
    return value.where(lost == 0)


def judge(results: "xr.Dataset", cfg: Config) -> list[Judged]:
    """Is what is drawn early as good as what is drawn at the end, and better than chance?"""
    metric = recipes.metric(cfg)
    names = [f"replica {i}" for i in results["replica"].values]
    same: dict[str, Any] = dict(metric=metric, replicas=verdicts.Replicas(names))
    drawn, early = tested(results, metric), tested(results, metric, "early_")
    dense = results[f"dense_test_{metric.name}"].values
    judged, there = [], results["arm"].values.tolist()
    for criterion in results["criterion"].values.tolist():
        for density in results["density"].values.tolist():
            where = {"criterion": criterion, "density": density}

            def of(values: Any, arm: str, at: dict[str, Any] = where) -> np.ndarray:
                return np.asarray(values.sel({**at, "arm": arm}).values)

            first, last = drawn.isel(draw=0), drawn.isel(draw=-1)
            bird = of(early, "inherited")
            whole = of(last, "inherited")
            as_good = {
                "early bird as good as the last": (bird, whole),
                "the first as good as the last": (of(first, "inherited"), whole),
                "early bird as good as dense": (bird, dense),
            }
            if "rewound" in there:
                claim = "early bird rewound as good as the last rewound"
                as_good[claim] = (of(early, "rewound"), of(last, "rewound"))
            better = {
                f"early bird better than {arm.replace('_', ' ')}": (
                    bird,
                    of(early, arm),
                )
                for arm in there
                if arm != "inherited"
            }
            for claim, (a, b) in as_good.items():
                found = verdicts.matching(a, b, cfg.tolerance, **same)
                judged.append(Judged(where, claim, found._replace(claim=claim)))
            for claim, (a, b) in better.items():
                found = verdicts.better(a, b, claim=claim, **same)
                judged.append(Judged(where, claim, found))
    return judged


def _place(where: Mapping[str, Any]) -> str:
    return f"{where['criterion']} {100 * where['density']:g}%"


def conclusions(outcome: Outcome) -> list[str]:
    """When each ticket was found, and for each claim its differences, with intervals."""
    results, text = outcome.results, outcome.metric.text
    lines = []
    for criterion in results["criterion"].values.tolist():
        for density in results["density"].values.tolist():
            at = {"criterion": criterion, "density": density}
            found = results["early_epoch"].sel(at).values
            shown = ", ".join("none" if np.isnan(x) else f"{x:.3g}" for x in found)
            lines.append(
                f"{_place(at)}: the early bird is drawn at epoch {shown} of "
                f"{float(results['epoch'][-1]):.3g}, by replica"
            )
    for claim, own in display.by_claim(outcome.judged).items():
        found_ = [
            f"{_place(one_.where)}: {one_.verdict.answer} ({text(one_.verdict.estimate)} "
            f"[{text(one_.verdict.low)}, {text(one_.verdict.high)}])"
            for one_ in own
        ]
        lines.append(f"{claim}: {'; '.join(found_)}")
    unit = metrics.difference(outcome.metric)
    margin = outcome.metric.text(outcome.cfg.tolerance)
    numbers = sorted({one_.verdict.n for one_ in outcome.judged})
    n = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    lines.append(
        f"In brackets: difference of {unit.name} in {unit.unit}, first minus second, with "
        f"its paired 95% interval, n = {n} replicas; as good is no more than {margin} above."
    )
    return lines


def tables(outcome: Outcome) -> list[Rows]:
    """When tickets are found, and what they reach by their arm and their epoch."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    drawn = shown.of(tested(results, outcome.metric))
    early = shown.of(tested(results, outcome.metric, "early_"))
    total, arms = float(results["prunable"]), results["arm"].values.tolist()
    late = [(0, "inherited"), (-1, "inherited")]
    late += [(-1, arm) for arm in arms if arm == "rewound"]
    rows = []
    for criterion in results["criterion"].values.tolist():
        for density in results["density"].values.tolist():
            at = {"criterion": criterion, "density": density}
            weights = results["alive"].sel(at).isel(draw=-1, arm=0).mean() / total
            epochs = results["early_epoch"].sel(at).values
            cells = [criterion, f"{100 * density:g}", f"{100 * float(weights):.1f}"]
            lacking = np.isnan(epochs).all()
            cells.append("none" if lacking else display.mean_range(epochs, 1))
            for arm in arms:
                own = early.sel({**at, "arm": arm}).values
                cells.append("" if lacking else display.mean_range(own, 1))
            for place, arm in late:
                own = drawn.sel({**at, "arm": arm}).isel(draw=place).values
                cells.append(display.mean_range(own, 1))
            rows.append(cells)
    dense = shown.of(results[f"dense_test_{outcome.metric.name}"].values)
    title = f"Test {shown.name} in {shown.unit}: mean [min, max] of "
    title += (
        f"{results.sizes['replica']} replicas; dense {display.mean_range(dense, 1)}"
    )
    header = ["criterion", "density %", "weights %", "drawn at epoch"]
    header += [f"early bird, {arm.replace('_', ' ')}" for arm in arms]
    for place, arm in late:
        header.append(f"epoch {float(results['draw'][place]):.3g}, {arm}")
    return [Rows(title, header, rows)]


def figures(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Distances of all masks; accuracy by the epoch of the draw; the queue of the rule."""
    results, shown = outcome.results, metrics.quality(outcome.metric)
    cfg, number = outcome.cfg, outcome.results.sizes["replica"]
    epoch = results["epoch"].values
    places = [
        {"criterion": criterion, "density": density}
        for criterion in results["criterion"].values.tolist()
        for density in results["density"].values.tolist()
    ]
    marked = {}
    for at in places:
        found = results["early_epoch"].sel(at).values
        marked[_place(at)] = sorted(set(found[np.isfinite(found)].tolist()))
    drawn = shown.of(tested(results, outcome.metric))
    dense = float(np.nanmean(shown.of(results[f"dense_test_{outcome.metric.name}"])))
    panels = {
        _place(at): plots.Panel(
            {
                arm: drawn.sel({**at, "arm": arm}).transpose("replica", "draw").values
                for arm in results["arm"].values.tolist()
            },
            {"dense": dense},
        )
        for at in places
    }
    several = f"mean of {number} replicas"
    yield (
        "drawn",
        plots.panels_against(
            results["draw"].values,
            panels,
            xlabel="epoch at which the ticket is drawn",
            ylabel=f"test {shown.name} ({shown.unit})",
            title=f"Tickets by the epoch of their draw: {outcome.networks}\n{several}, "
            "bars: min to max",
            marked=marked,
            marked_label="early bird (each replica)",
            logarithmic=True,
        ),
    )
    yield (
        "distances",
        plots.heat_maps(
            epoch,
            {
                _place(at): results["distance"].sel(at).mean("replica").values
                for at in places
            },
            label="normalised Hamming distance",
            axis="epoch",
            title=f"Masks of every epoch: {outcome.networks}\n{several}; dashed: early "
            "bird of each replica",
            marked=marked,
        ),
    )
    yield (
        "queue",
        plots.against(
            {_place(at): _queue(results.sel(at), cfg.window) for at in places},
            xlabel="epoch",
            ylabel=f"largest distance to the {cfg.window - 1} masks before",
            title=f"The stop rule: {outcome.networks}\n{several}, bars: min to max",
            baseline=cfg.threshold,
            baseline_label="threshold",
        ),
    )


def _queue(results: "xr.Dataset", window: int) -> tuple[np.ndarray, np.ndarray]:
    """What the rule looks at: over the epochs, `[E]`, and by replica, `[R, E]`."""
    own = results["distance"].transpose("replica", "epoch", "other_epoch").values
    at = range(window - 1, own.shape[1])
    most = [own[:, e, e - window + 1 : e].max(axis=1) for e in at]
    return results["epoch"].values[window - 1 :], np.stack(most, axis=1)


PRESETS = presets.make(Config, presets.EARLY_BIRD)

EXPERIMENT = Experiment(
    name="early_bird",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    tiny="--model mlp-4 --subset 200 --batch-size 50 --steps 6it --mask-every 1it "
    "--draws 2it 5it --densities 0.3 --validate-every 6 --replicas 2",
    prepare=prepare,
    one=one,
    work=work,
    judge=judge,
    tables=tables,
    figures=figures,
    conclusions=conclusions,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
