"""`python3 -m tests.bench`, in the lab; `tests/bench/run` sets the module path."""

import sys

from tests.bench.cli import main

sys.exit(main())
