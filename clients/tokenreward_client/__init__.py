"""The client of tokenreward: per-token rewards over HTTP, with httpx, pydantic and numpy and
nothing heavy.

    from tokenreward_client import Client

    with Client("http://127.0.0.1:8000") as client:
        [answer] = client.score([("2+2?", "It is 4.")], scorer="endogenous")
    answer.rewards  # float32, one number per token of the response
"""

from tokenreward.alignment import fingerprint
from tokenreward_client.client import AsyncClient, Client
from tokenreward_client.errors import (
    BadArgument,
    BadReply,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    ItemFailed,
    NotText,
    ServerRefused,
)
from tokenreward_client.listing import ScorerInfo
from tokenreward_client.rewards import Rewards
from tokenreward_client.spans import text_and_spans

__all__ = [
    "AsyncClient",
    "BadArgument",
    "BadReply",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "ItemFailed",
    "NotText",
    "Rewards",
    "ScorerInfo",
    "ServerRefused",
    "fingerprint",
    "text_and_spans",
]
