"""Tickets in use: dense, without their dead units, as sparse matrices."""

from benchmarks.report import Comparison, Row
from benchmarks.rows.common import JAX, costs
from benchmarks.timing import Side, Spread, Worker, ratio, spread, take_turns


def compaction(quick: bool) -> Row:
    """What a ticket costs in use: dense, without its dead units, as sparse matrices."""
    levels = [7, 13, 18, 20, 23, 26] if not quick else [1, 3]
    batches = [1, 128, 1024] if not quick else [1, 8]
    sizes = {
        "model": "lenet-300-100" if not quick else "lenet-8-6",
        "side": 28 if not quick else 8,
        "examples": 10_000 if not quick else 100,
        "batch": 60 if not quick else 20,
        "steps": 500 if not quick else 5,
        "fraction": 0.2 if not quick else 0.6,
        "levels": levels,
        "batches": batches,
        "seconds": 0.3 if not quick else 0.001,
    }
    with Worker(f"{JAX}.compaction:compaction", sizes, devices=1) as worker:
        names = worker.wait_ready()
        facts = worker.run("facts")[1]
        sides: dict[str, Side] = {
            name: [(worker, name)] for name in names if name != "facts"
        }
        rates = take_turns(sides, 2 if quick else 5, pause=0.05)
        spent = costs({"lottery_jax": worker})
    densities = facts["density"]

    def against_dense(form: str, level: str, batch: int) -> Spread:
        return ratio(
            rates[f"{form}, density {densities[level]}, batch {batch}"],
            rates[f"dense, batch {batch}"],
        )

    def medians(form: str, batch: int) -> dict[str, float]:
        return {
            f"{densities[level]}:": against_dense(form, level, batch).median
            for level in densities
        }

    middle = batches[len(batches) // 2]
    removed = {f"{densities[k]}:": share for k, share in facts["removed"].items()}
    return Row(
        "compaction",
        f"{sizes['model']}, trained tickets of iterative magnitude pruning (global, "
        f"{sizes['fraction']:.0%} per level, rewound to the start, Adam 1.2e-3, "
        f"{sizes['steps']} steps of {sizes['batch']}) on a synthetic task: "
        f"{sizes['side']} x {sizes['side']} pixels, ten classes of three smooth patterns "
        "each, with noise and an empty frame. Forward passes, one jitted call at a time "
        "from Python, each waited for; 1 host device. Dense: full arrays, zeros included "
        "(the same at every density). Compacted: `compact.shrink`. BCOO: the compacted "
        "network's kernels as `jax.experimental.sparse.BCOO`, int32 indices.",
        {name: spread(values) for name, values in rates.items()},
        "images per second",
        [
            Comparison(
                f"{form}, density {densities[level]}, batch {middle}",
                "dense",
                against_dense(form, level, middle),
            )
            for level in densities
            for form in ("compacted", "BCOO")
        ],
        {
            **{
                f"speed of {form} against dense, batch {batch}, by density": medians(
                    form, batch
                )
                for form in ("compacted", "BCOO")
                for batch in batches
            },
            "share of the kernel weights that compaction removes, by density": removed,
            **{
                f"bytes at density {densities[level]}": facts["bytes"][level]
                for level in densities
            },
            **{
                f"units left at density {densities[level]}": facts["units"][level]
                for level in densities
            },
            "test error by density": {
                f"{densities[level]}:": error for level, error in facts["error"].items()
            },
            "error of the dense network": facts["dense_error"],
            **spent,
        },
    )
