"""Adapters: a trainer's own way of asking for rewards, on the client. One trainer a file.

They know the client, and of the trainer the objects that it hands them. None imports its trainer,
but for a few functions of it that are imported when they are called.
"""

from tokenreward_client.trainers._token_reward import TokenReward

__all__ = ["TokenReward"]
