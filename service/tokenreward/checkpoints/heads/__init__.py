"""Value heads: how published checkpoints name and shape them, and what each computes.

It knows weights by their names, and no trunk.
"""
