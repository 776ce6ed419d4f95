"""`python -m experiments.transfer`."""

import sys

from experiments.transfer import main

if __name__ == "__main__":
    sys.exit(main())
