"""Half an hour of a service whose load rises and falls and whose weights change: `make soak`."""
