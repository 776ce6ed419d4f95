"""What rounding the operands of products does to the accuracy of whole studies."""

import time
from typing import Any

import numpy as np
import optax
from scipy import stats

import lottery_jax as lj
from benchmarks.worker import Programs
from lottery_jax.replicas import PRECISIONS


def accuracy(
    *,
    data: str,
    model: str,
    batch: int,
    learning_rate: float,
    steps: int,
    fraction: float,
    levels: int,
    replicas: int,
) -> Programs:
    """`accuracy`: test errors of the same pruning study at each precision, and seconds.

    Initial weights, data and their order are the same, so replicas are paired.

    Args:
      data: a data set that needs no download.
      model: a name of `models.make`.
      batch: examples per step.
      learning_rate: of Adam.
      steps: of training at each level.
      fraction: of the surviving weights removed at each level.
      levels: number of prunings; the first and the last level are reported.
      replicas: number of replicas.
    """
    dataset = lj.data.load(data)
    network = lj.models.make(model, num_classes=dataset.num_classes)
    task = lj.tasks.classification(dataset, network, batch_size=batch)
    chain = lj.imp.Chain(fraction=fraction)
    plan = lj.imp.Plan(steps, chains=(chain,), arms=("ticket",), validate_every=steps)
    tx = optax.adam(learning_rate)

    def study() -> dict[str, Any]:
        errors, seconds = {}, {}
        for precision in PRECISIONS:
            execution = lj.replicas.default_execution()._replace(precision=precision)
            begin = time.perf_counter()
            found = lj.imp.run(
                task,
                tx,
                plan,
                levels=levels,
                replicas=range(replicas),
                execution=execution,
            )
            seconds[precision] = time.perf_counter() - begin
            errors[precision] = found.records["test_error"][1][0, 0]  # [replica, level]
            density = found.records["density"][1][0, 0].mean(axis=0)
        rows = []
        for level in (0, levels):
            exact = errors["float32"][:, level]
            for precision in PRECISIONS:
                own = errors[precision][:, level]
                rows.append(
                    {
                        "density": float(density[level]),
                        "precision": precision,
                        "error": float(own.mean()),
                        **_difference(own, exact),
                    }
                )
        return {"rows": rows, "seconds": seconds}

    return {"accuracy": study}


def _difference(own: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Mean of the paired differences and half the width of its 95% t interval."""
    differences = own - exact
    number = len(differences)
    spread = differences.std(ddof=1) / np.sqrt(number) if number > 1 else np.nan
    half = float(stats.t.ppf(0.975, number - 1) * spread) if number > 1 else np.nan
    return {"difference": float(differences.mean()), "half_width": half}
