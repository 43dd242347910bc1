"""A fuzzer of vfsd's interface: `python3 -m tests.fuzz --help`, in a lab. HACKING.md, "Fuzzing the bus"."""
