"""What targets are measured with: `make bench`."""
