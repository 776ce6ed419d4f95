"""What the precision of products does to accuracy."""

from typing import Any

from benchmarks.report import Comparison, Row, Table, cores
from benchmarks.rows.common import once
from benchmarks.timing import Spread


def precision(quick: bool) -> Row:
    """Whole pruning studies at every precision, replicas paired by their keys."""
    studies: dict[str, dict[str, Any]] = {
        "MLP on MNIST-1D": {
            "data": "mnist1d",
            "model": "mlp-100-100",
            "batch": 100,
            "learning_rate": 5e-3,
            "steps": 1500,
            "fraction": 0.36,
            "levels": 5,
            "replicas": 20,
        },
        "ResNet-8 (width 8) on digits": {
            "data": "digits",
            "model": "resnet-8-8",
            "batch": 64,
            "learning_rate": 3e-3,
            "steps": 250,
            "fraction": 0.6,
            "levels": 3,
            "replicas": 6,
        },
    }
    if quick:
        del studies["ResNet-8 (width 8) on digits"]
        studies["MLP on MNIST-1D"] |= {"steps": 4, "levels": 1, "replicas": 2}
    n = cores()
    found = {name: once("precision:accuracy", s, n) for name, s in studies.items()}
    comparisons, rows = [], []
    for name, one in found.items():
        for row in one["rows"]:
            change, half = 100 * row["difference"], 100 * row["half_width"]
            level = f"{name}, density {row['density']:.3g}, {row['precision']}"
            exact = row["precision"] == "float32"
            interval = f"{change:+.2f} ({change - half:+.2f} to {change + half:+.2f})"
            error = f"{100 * row['error']:.2f}"
            rows.append([level, error, "-" if exact else interval])
            if not exact:
                bounds = Spread(change, change - half, change + half)
                comparisons.append(
                    Comparison(
                        f"test error, {level}",
                        "float32: change",
                        bounds,
                        None,
                        "points",
                    )
                )
    sizes = "; ".join(
        f"{name}: {s['replicas']} replicas, {s['levels']} prunings by "
        f"{s['fraction']:.0%}, {s['steps']} steps of Adam {s['learning_rate']:g}"
        for name, s in studies.items()
    )
    return Row(
        "precision",
        f"The same pruning studies with the operands of all products rounded. {sizes}. "
        "Initial weights, data and their order are those of float32, replica by replica. "
        "Brackets are 95% t intervals of the mean paired difference here, and not the "
        "smallest and largest of turns. The rounding is that of an accelerator's matrix "
        "units; the speed is not, since a CPU has none.",
        comparisons=comparisons,
        facts={
            "test errors": Table(
                ["study", "test error, %", "change against float32, points"], rows
            ),
            "seconds of each study": {
                name: {p: round(s, 1) for p, s in one["seconds"].items()}
                for name, one in found.items()
            },
            "peak resident memory, GB": {
                name: one["costs"]["memory"] for name, one in found.items()
            },
        },
    )
