"""How optax's transformations are understood, without a list of them.

settings     an optimizer as a function of named hyperparameters
updates      one update: with what it asks for, and as a subnetwork sees it
states       what belongs to which weight in a state
clocks       what in a state follows from the number of updates alone
trials       which optimizers move a subnetwork as if there were no other weights
interpreted  small programs run once, without compiling
names        what an optimizer is called in messages

For use, see `transforms`.
"""
