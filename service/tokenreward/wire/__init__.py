"""What travels: the request, the reply, how they are parsed, and their binary encodings.

Arrays cross as JSON lists, as base64, or as msgpack's `bin`. It knows no server and no client. This
package needs pydantic and numpy alone. Four of its modules need more and are imported by name:
`limits`, `msgpack`, `head` (msgspec) and `media` (orjson, too).
"""

from tokenreward.wire.encoding import (
    JSON_TYPE,
    MSGPACK_TYPE,
    as_int32,
    decode_ids,
    decode_rewards,
    decode_table,
    encode_ids,
    encode_rewards,
)
from tokenreward.wire.item import Item, PackedIds
from tokenreward.wire.messages import Message, texts_of
from tokenreward.wire.parsing import parse, parse_json, path, refusal, renumbered
from tokenreward.wire.reply import (
    ErrorDetail,
    ItemResult,
    ModelVersion,
    Reply,
    ScorerResult,
    Timing,
    Token,
    Usage,
    parse_reply,
    read_error,
    read_reply,
    write_reply,
)
from tokenreward.wire.request import (
    Credit,
    CreditName,
    Kl,
    RewardsRequest,
    served_name,
)
from tokenreward.wire.vectors import IntArray, Numbers

NAME_PATTERN = r"^[a-z0-9_-]+$"

__all__ = [
    "JSON_TYPE",
    "MSGPACK_TYPE",
    "NAME_PATTERN",
    "Credit",
    "CreditName",
    "ErrorDetail",
    "IntArray",
    "Item",
    "ItemResult",
    "Kl",
    "Message",
    "ModelVersion",
    "Numbers",
    "PackedIds",
    "Reply",
    "RewardsRequest",
    "ScorerResult",
    "Timing",
    "Token",
    "Usage",
    "as_int32",
    "decode_ids",
    "decode_rewards",
    "decode_table",
    "encode_ids",
    "encode_rewards",
    "parse",
    "parse_json",
    "parse_reply",
    "path",
    "read_error",
    "read_reply",
    "refusal",
    "renumbered",
    "served_name",
    "texts_of",
    "write_reply",
]
