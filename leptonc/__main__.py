"""`python -m leptonc`."""

import sys

from leptonc.cli import main

sys.exit(main())
