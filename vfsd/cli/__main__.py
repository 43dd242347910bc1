"""`python3 -m vfsd.cli` is vfsctl from a source tree."""

import sys

from vfsd.cli.main import main

sys.exit(main())
