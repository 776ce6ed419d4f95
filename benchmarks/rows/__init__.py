"""The benchmarks, one function per row: what is compared with what, and the targets.

A row function takes `quick` (tiny sizes: does it run?) and returns a `report.Row`. These
modules import neither JAX nor PyTorch: the work is done by `timing.Worker` processes.
"""

from collections.abc import Mapping

from benchmarks.rows.common import Benchmark
from benchmarks.rows.compaction import compaction
from benchmarks.rows.connectivity import branching, paths
from benchmarks.rows.precision import precision
from benchmarks.rows.scaling import scaling
from benchmarks.rows.studies import compilations, levels, memory, startup
from benchmarks.rows.training import lenet, masking, resnet20

_TORCH = ("torch", "PIL")
_STORED = ("tyro", "rich", "matplotlib", "xarray", "h5netcdf", "mnist1d", "safetensors")

ROWS: Mapping[str, Benchmark] = {
    "lenet": Benchmark(lenet, _TORCH, "bench"),
    "resnet20": Benchmark(resnet20, _TORCH, "bench"),
    "paths": Benchmark(paths, _TORCH, "bench"),
    "masking": Benchmark(masking),
    "branching": Benchmark(branching),
    "compilations": Benchmark(compilations),
    "scaling": Benchmark(scaling),
    "levels": Benchmark(levels, _STORED, "experiments"),
    "startup": Benchmark(startup, _STORED, "experiments"),
    "memory": Benchmark(memory, _STORED, "experiments"),
    "compaction": Benchmark(compaction),
    "precision": Benchmark(precision, ("mnist1d", "sklearn"), "experiments"),
}
"""All rows by name, in the order of the table."""
