"""`python -m experiments.pretraining`."""

import sys

from experiments.pretraining import main

if __name__ == "__main__":
    sys.exit(main())
