"""One call that measures an accelerator: ours and PyTorch's best arrangements.

    python -m benchmarks.gpu --out FOLDER      # under 6 minutes; FOLDER/gpu.json
    python -m benchmarks.gpu --render FILE ... # those numbers into docs/performance.md
    python -m benchmarks.gpu --quick           # does it run? tiny sizes, any platform

A cell is one compiled training loop: a model, a number of replicas, a way to convolve and
a precision. A process of its own for each cell would start JAX thirty times; here one
process makes the programs of several cells and then times them one by one, and another,
which runs alone before it, does the same work in PyTorch.

`cells` says what is measured, as data; `ours` and `peers` are the two processes; `page`
writes the tables; `python -m benchmarks.pack` carries everything to a machine without a
network.
"""
