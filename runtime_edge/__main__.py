"""`python -m runtime_edge`."""

import sys

from runtime_edge.cli import main

sys.exit(main())
