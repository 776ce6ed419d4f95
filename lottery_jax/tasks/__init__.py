"""Constructors of Tasks: everything that is trained is one of these."""

from lottery_jax.tasks.classification import classification as classification
