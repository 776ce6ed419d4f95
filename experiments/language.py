"""Tickets of language models: perplexity against density, and what rewinding is good for.

    python -m experiments.language                             # LSTM, tiny Shakespeare
    python -m experiments.language shakespeare-transformer

Trains a recurrent network or a Transformer to say which token comes next, prunes all its
leaves together and rewinds the rest to an early step, level after level, beside a random
mask of the same layer densities and fresh weights under the same mask. Then the same
without late rewinding, and in one shot: is it the procedure that finds the ticket?

Yu et al., Playing the Lottery with Rewards and Multiple Languages, 2020, section 4.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import display, imp, presets, procedures
from experiments.display import Rows
from experiments.experiment import Experiment, Outcome
from experiments.identity import FREE
from lottery_jax import plots, verdicts


@dataclasses.dataclass(frozen=True)
class Config(procedures.Config):
    """Everything that a study is determined by, and where and how it runs."""

    tolerance: float = dataclasses.field(default=verdicts.LOSS.tolerance, metadata=FREE)
    """How much more loss than that of the dense network, in nats, a matching ticket has."""


def tables(outcome: Outcome) -> list[Rows]:
    """Loss, perplexity and error at each density, of each arm and other procedure."""
    results, rows, labels = outcome.results, [], dict[str, None]()
    for name, shown, scale, digits in (
        ("loss", "loss (nats)", 1, 3),
        ("perplexity", "perplexity", 1, 2),
        ("error", "error (%)", 100, 1),
    ):
        lines = procedures.lines(results, f"test_{name}")
        labels |= dict.fromkeys(lines)
        for level, density in zip(
            results["level"].values, procedures.densities(results)
        ):
            values = (scale * x.sel(level=level).values for x in lines.values())
            at = [shown, str(int(level)), f"{100 * density:.1f}"]
            rows.append(at + [display.mean_range(x, digits) for x in values])
    title = f"On the test split: mean [min, max] of {results.sizes['replica']} replicas"
    return [Rows(title, ["per token", "level", "density %", *labels], rows)]


def figures(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    """Perplexity of tickets and controls, and of procedures, against density; layers."""
    results, cfg = outcome.results, outcome.cfg
    lines = procedures.lines(results, "test_perplexity")
    about = f"{outcome.preset}: {outcome.networks}"
    about += f"\nmean of {results.sizes['replica']} replicas, bars: min to max"
    for name, drawn in procedures.drawn(lines, results, cfg, "perplexity").items():
        figure = plots.against_density(
            procedures.densities(results),
            drawn,
            ylabel="test perplexity at the end of training",
            title=about,
            baseline=float(np.nanmean(lines["ticket"].sel(level=0)))
            if results["level"].values[0] == 0
            else None,
        )
        yield name, figure, procedures.about(outcome.judged, name, results)
    yield from (
        drawn_ for drawn_ in imp.figures(outcome) if drawn_[0] == "layer_density"
    )


PRESETS = presets.make(Config, presets.LANGUAGE)

EXPERIMENT = Experiment(
    name="language",
    about=__doc__ or "",
    config=Config,
    presets=PRESETS,
    default="shakespeare-lstm",
    tiny="--data markov --model lstm-1-4 --length 5 --batch-size 8 --steps 3it "
    "--rewind-step 1it --validate-every 3 --levels 1 --replicas 2",
    prepare=procedures.prepare,
    one=functools.partial(procedures.one, experiment="language"),
    work=procedures.work,
    judge=procedures.judge,
    tables=tables,
    figures=figures,
    conclusions=imp.conclusions,
    complete=imp.complete,
    again=imp.retrain,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
