"""What runs in the desktop lab: `make test-desktop`."""
