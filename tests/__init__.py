"""Everything that checks vfsd: unit tests, tests in the lab, the lab itself, the benchmark."""
