"""Three nodes of a Ray cluster on one machine, each in its own namespaces. Their parts are killed
under load: `make nodes`."""
