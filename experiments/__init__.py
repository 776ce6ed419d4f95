"""One value per claim, on one page: `experiments.experiment` says what they share."""
