"""What is timed in JAX: the library's training, rulers, and what it is compared with.

Each public function that returns `Programs` from keyword arguments is a `setup` of
`benchmarks.worker`. Data sets are synthetic, with the shapes and dtypes of the real ones.
"""
