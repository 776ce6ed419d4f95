"""Speed and memory, measured against named peers and rulers in one run.

    python -m benchmarks                       # every row for a CPU, to docs/performance.md
    python -m benchmarks lenet masking         # some rows; the others stay as they are
    python -m benchmarks.gpu                   # an accelerator, in one call
    python -m benchmarks lenet --against DIR   # this library against another checkout's
    python -m benchmarks --quick               # does every row run? nothing is kept
    python -m benchmarks --render              # page and figure from the stored numbers

Absolute numbers of one machine move by tens of percent within minutes, so everything that
is compared runs in turn (A B A B ...), and what is reported is the median of the ratios of
each turn, with the smallest and the largest. Sides with different numbers of devices or
threads are processes of their own that wait while it is not their turn.

`rows` says what is measured, as data; `sides_jax`, `sides_torch` and `sides_command` are
what is timed; `run` is the one runner; `report` writes JSON, page and figure; `profile`
says where the time of a program goes. `gpu` measures an accelerator, and `pack` carries it
to a machine without a network. The peers need PyTorch:
`pip install 'lottery-jax[bench]'`.
"""
