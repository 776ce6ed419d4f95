"""What can be trained, from a recipe to its task: a module for each kind of data."""
