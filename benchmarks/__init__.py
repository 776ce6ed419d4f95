"""Speed and memory, measured against named peers and rulers in one run.

    python -m benchmarks                       # every row, to docs/results
    python -m benchmarks --rows lenet masking  # some rows; the others stay as they are
    python -m benchmarks --quick               # does every row run? nothing is kept

Absolute numbers of one machine move by tens of percent within minutes, so everything
that is compared runs in turn (A B A B ...), and what is reported is the median of the
ratios of each turn, with the smallest and the largest. Sides with different numbers of
devices or threads are processes of their own that wait while it is not their turn.

`rows` says what is measured; `jax_sides` and `torch_sides` are what is timed; `worker`
is the process that times it; `timing` takes turns; `report` writes JSON and Markdown.
The peers need PyTorch: `pip install 'lottery-jax[bench]'`.
"""
