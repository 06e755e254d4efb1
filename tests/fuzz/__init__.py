"""Requests that are nearly right, by the thousand: a seeded mutator against replicas and a gateway
over HTTP, with `/healthz` asked beside it. `make fuzz` runs it."""
