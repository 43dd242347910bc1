"""What the root of a hostile guest does. These programs run in the guest, with nothing but Python's library."""
