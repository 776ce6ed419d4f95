"""`python -m experiments.ticket`."""

import sys

from experiments.ticket import main

if __name__ == "__main__":
    sys.exit(main())
