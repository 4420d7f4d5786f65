"""``python -m xshm``."""

import sys

from xshm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
