"""``python -m xshm``."""

import sys

from xshm.cli.main import main

sys.exit(main())
