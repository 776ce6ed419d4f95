"""`python -m experiments.liu`."""

import sys

from experiments.liu import main

if __name__ == "__main__":
    sys.exit(main())
