"""``python -m xshm``."""

import sys

from xshm.cli.main import program

if __name__ == "__main__":
    sys.exit(program())
