"""`python -m softmaxfree`, for torchrun; the console script answers `--help` sooner."""

import sys

from softmaxfree_cli import main

sys.exit(main())
