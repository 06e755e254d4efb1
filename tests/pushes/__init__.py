"""Pushes of weights to a running service under load, while its replicas are killed now and then."""
