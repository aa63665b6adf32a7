"""`python -m solar`."""

import sys

from solar.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
