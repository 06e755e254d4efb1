"""Autoscaling on a real Ray, behind Ray's Python proxy and behind HAProxy: `make scale`."""

TOKENS_PER_S = 8000.0  # of one replica
BUILD = "scale.slow:build_replica"  # not imported before Ray's environment is set
