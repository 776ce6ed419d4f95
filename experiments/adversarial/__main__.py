"""`python -m experiments.adversarial`."""

import sys

from experiments.adversarial import main

if __name__ == "__main__":
    sys.exit(main())
