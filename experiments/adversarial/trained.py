"""What is trained in a study of tickets under attack: finders, and tickets again."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from experiments import cost, display
from experiments.adversarial.config import Config, chains, largest, name
from experiments.experiment import dataset
from experiments.recipes import Setup
from lottery_jax import imp, keys, masks, training, trees
from lottery_jax.execution import Where
from lottery_jax.types import Mask, Network

if TYPE_CHECKING:
    import xarray as xr

MEASURED = ("error", "clean_error", "commonest_answer")
"""What is recorded of networks that were trained again, on the test split."""


class Found(NamedTuple):
    """The networks of a finder.

    Attributes:
      initial: before training, `[R, ...]`, on the host.
      masks: by density, of their largest weights after it, `[R, ...]`.
      tested: what is measured of them after training, by name, `[R]`.
      diverged: which of them did, int8 `[R]`.
    """

    initial: Network
    masks: dict[float, Mask]
    tested: dict[str, np.ndarray]
    diverged: np.ndarray


def find(finder: str, setup: Setup, ids: Sequence[int], where: Where) -> Found:
    """Trains dense networks, and takes the masks of their largest weights.

    Args:
      finder: its name.
      setup: of it.
      ids: of the replicas.
      where: it runs.
    """
    cfg, task, tx, plan = setup
    own = keys.of_replicas(plan.seed, ids)
    with display.watched(where, f"{finder} finder: ") as place:
        runs = training.fresh(task, tx, own.init, own.noise, where=place)
        # Rows beyond the replicas fill up the devices.
        initial = trees.rows(trees.host(runs.state.network), slice(len(ids)))
        done = training.train(
            task, tx, runs, plan.steps, every=plan.validate_every, where=place
        )
        tested = training.evaluate(task, done.networks, "test", where=place.aside())

    def of(density: float) -> Mask:
        one = functools.partial(largest, task, density)
        found = jax.lax.map(one, done.networks.params)
        return trees.rows(trees.host(found), slice(len(ids)))

    return Found(
        initial,
        {density: of(density) for density in cfg.densities},
        {name: value[: len(ids)] for name, value in tested.items()},
        np.isfinite(done.curves.first_nan)[: len(ids)].astype(np.int8),
    )


def train_again(
    what: str,
    setup: Setup,
    found: Mapping[str, Found],
    ids: Sequence[int],
    where: Where,
) -> imp.Study:
    """Trains the tickets of all finders again, their controls, and dense networks.

    Args:
      what: it is called.
      setup: of training again.
      found: by finder.
      ids: of the replicas.
      where: it runs.
    """
    cfg, task, tx, plan = setup
    initial = next(iter(found.values())).initial
    own = [found[finder].masks[density] for finder, density in chains(cfg)]
    tickets = imp.tickets_from([*own, masks.ones_like(initial.params)], initial)
    called = display.names(plan, ids)
    with display.watched(where, f"{what}: ", names=called) as place:
        return imp.retrain(
            task,
            tx,
            plan,
            tickets,
            level=1,
            replicas=ids,
            dense=initial,
            where=place.renamed(level=None),
        )


def one(setups: Mapping[str, Setup], ids: list[int], where: Where) -> "xr.Dataset":
    """The whole study of some replicas, or what is missing of it.

    Args:
      setups: from `prepare`.
      ids: of the replicas.
      where: it runs; every part has a folder of its own.

    Returns:
      `error`, under attack, `clean_error` and `commonest_answer`, at the end of training
      again, `[rate, length, finder, density, arm, replica]`, and `diverged`; those of dense
      networks (`dense_`), `[rate, length, replica]`, and of a finder's own (`found_`),
      `[finder, replica]`; and the validation error under attack while they train again:
      `curve [..., point]` and `dense_curve`, at the steps of `step [length, point]`, where
      nan is what a shorter run has not got.
    """
    cfg: Config = setups[next(iter(setups))].cfg
    place = where.below("found")
    found: dict[str, Found] = {
        finder: find(finder, setups[finder], ids, place.below(finder))
        for finder in cfg.finders
    }
    gone = np.stack([found[finder].diverged for finder in cfg.finders])
    place = where.below("again")
    rows = []
    for rate in cfg.rates:
        for length in cfg.lengths:
            what = name(rate, length)
            at = place.below(what.replace(", ", "-").replace(" ", "-"))
            study = train_again(what, setups[what], found, ids, at)
            rows.append(_parts(study, cfg, gone))
    widest = max(row["curve"].shape[-1] for row in rows)
    both = (len(cfg.rates), len(cfg.lengths))

    def together(field: str) -> np.ndarray:
        parts = [row[field] for row in rows]
        if field.endswith(("curve", "step")):
            parts = [_padded(part, widest) for part in parts]
        return np.stack(parts).reshape(*both, *parts[0].shape)

    first, after = ("rate", "length"), ("finder", "density", "arm", "replica")
    fields = (*MEASURED, "diverged")
    out: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        field: ((*first, *after), together(field)) for field in fields
    }
    out |= {
        f"dense_{field}": ((*first, "replica"), together(f"dense_{field}"))
        for field in fields
    }
    out["curve"] = ((*first, *after, "point"), together("curve"))
    out["dense_curve"] = ((*first, "replica", "point"), together("dense_curve"))
    out["step"] = (("length", "point"), together("step")[0])
    own = ("finder", "replica")
    out |= {
        f"found_{field}": (own, np.stack([f.tested[field] for f in found.values()]))
        for field in MEASURED
    }
    out["found_diverged"] = (own, gone)
    return dataset(
        cfg,
        out,
        {
            "rate": list(cfg.rates),
            "length": [setups[name(cfg.rates[0], x)].plan.steps for x in cfg.lengths],
            "finder": list(cfg.finders),
            "density": list(cfg.densities),
            "arm": list(cfg.arms),
            "replica": ids,
        },
    )


def work(setups: Mapping[str, Setup]) -> cost.Work:
    """What finders and all trainings again cost; a step finds its attacks, too."""
    cfg: Config = setups[next(iter(setups))].cfg
    parts = []
    for finder in cfg.finders:
        of, plan = cost.of_setup(setups[finder]), setups[finder].plan
        what = f"{finder} finder"
        parts.append(cost.trained(what, of, cfg.replicas, plan.steps, tests=1))
    for rate, length in itertools.product(cfg.rates, cfg.lengths):
        what = name(rate, length)
        of, plan = cost.of_setup(setups[what]), setups[what].plan
        parts.append(cost.again(of, plan, cfg.replicas, what))
    return cost.together(*parts)


def _parts(study: imp.Study, cfg: Config, gone: np.ndarray) -> dict[str, np.ndarray]:
    """The records of one training again: of tickets, and of dense networks."""
    kept = {f"test_{field}": field for field in MEASURED}
    kept |= {"diverged": "diverged", "validation_error": "curve"}
    shape = (len(cfg.finders), len(cfg.densities))
    out = {}
    for record, field in kept.items():
        value = study.records[record][1][:, :, :, 0]  # the one level
        out[field] = value[:-1].reshape(*shape, *value.shape[1:])
        out[f"dense_{field}"] = value[-1, cfg.arms.index("ticket")]
    # Masks of weights that diverged mean nothing.
    out["diverged"] = out["diverged"] | gone[:, None, None]
    out["step"] = study.records["step"][1].astype(float)
    return out


def _padded(values: np.ndarray, number: int) -> np.ndarray:
    """With nan on the last axis where a run is shorter than the longest."""
    missing = number - values.shape[-1]
    width = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.pad(values.astype(float), width, constant_values=np.nan)
