"""What travels: the request, the reply, how they are parsed, and their two binary encodings.

Arrays cross as JSON lists or as base64. This package needs pydantic and numpy and nothing else.
"""

from tokenreward.wire.encoding import decode_ids, decode_rewards, encode_ids, encode_rewards
from tokenreward.wire.parsing import parse, parse_json, path, refusal
from tokenreward.wire.reply import (
    ErrorDetail,
    ItemReply,
    Reply,
    RewardsReply,
    ScorerResult,
    Source,
    Timing,
    Token,
    Usage,
)
from tokenreward.wire.request import Credit, CreditName, IdsB64, Item, Kl, Message, RewardsRequest, Strict

NAME_PATTERN = r"^[a-z0-9_-]+$"

__all__ = [
    "NAME_PATTERN",
    "Credit",
    "CreditName",
    "ErrorDetail",
    "IdsB64",
    "Item",
    "ItemReply",
    "Kl",
    "Message",
    "Reply",
    "RewardsReply",
    "RewardsRequest",
    "ScorerResult",
    "Source",
    "Strict",
    "Timing",
    "Token",
    "Usage",
    "decode_ids",
    "decode_rewards",
    "encode_ids",
    "encode_rewards",
    "parse",
    "parse_json",
    "path",
    "refusal",
]
