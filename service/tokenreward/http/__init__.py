"""Everything ASGI: one replica's routes, the gateway's routes, and what stands in front of both.

It knows HTTP and the engine's one entry, and nothing of Ray or of models.
"""
