"""tokenreward: dense per-token rewards for RL of language models, as a batched HTTP service.

Importing this package loads nothing heavy; `tokenreward_client` is the way to talk to a running
service.
"""

__version__ = "0.1.0"
