"""`python3 -m tests.soak`, in the lab; `tests/soak/run` sets the module path."""

import sys

from tests.soak.cli import main

sys.exit(main())
