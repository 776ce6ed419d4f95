"""One file per claim: a frozen Config, a run, a figure. Start with `experiments.imp`."""
