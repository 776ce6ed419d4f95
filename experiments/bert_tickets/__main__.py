"""`python -m experiments.bert_tickets`."""

import sys

from experiments.bert_tickets import main

if __name__ == "__main__":
    sys.exit(main())
