"""`python -m experiments.rewinding`."""

import sys

from experiments.rewinding import main

if __name__ == "__main__":
    sys.exit(main())
