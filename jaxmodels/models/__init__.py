"""One file per architecture; none imports another."""
