"""Everything that vfsd does, at random and for long, and what must be the same afterwards; HACKING.md, "Soak"."""
