"""How fast vfsd is, as ratios to the same work without it; run by `make bench`."""
