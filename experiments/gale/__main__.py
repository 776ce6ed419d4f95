"""`python -m experiments.gale`."""

import sys

from experiments.gale import main

if __name__ == "__main__":
    sys.exit(main())
