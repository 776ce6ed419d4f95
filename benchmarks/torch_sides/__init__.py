"""The peers in PyTorch, as a careful user would write them, and as one is published.

Each `setup` returns named programs, which do some more work and return how much. Images
lie in memory as normalised float32 and the data order is drawn beforehand, but in
`loader`, the loop of a published repository; no metric is read back during a run.
"""
