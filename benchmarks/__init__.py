"""Speed and memory, measured against named peers and rulers in one run.

    python -m benchmarks                       # every row, to docs/performance.md
    python -m benchmarks --rows lenet masking  # some rows; the others stay as they are
    python -m benchmarks --quick               # does every row run? nothing is kept
    python -m benchmarks --render              # page and figure from the stored numbers
    python -m benchmarks.gpu                   # one accelerator, one table

Absolute numbers of one machine move by tens of percent within minutes, so everything
that is compared runs in turn (A B A B ...), and what is reported is the median of the
ratios of each turn, with the smallest and the largest. Sides with different numbers of
devices or threads are processes of their own that wait while it is not their turn.

`rows` says what is measured; `jax_sides` and `torch_sides` are what is timed; `worker`
is the process that times it; `timing` takes turns; `report` writes JSON and the page,
`curves` its figure. `profile`, `stopwatch`, `monitor` and `flops` account for time, compiling,
memory and operations; `startup` is a command that ends at its first step.
The peers need PyTorch: `pip install 'lottery-jax[bench]'`.
"""
