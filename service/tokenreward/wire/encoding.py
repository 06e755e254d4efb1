"""The binary encodings: base64 of little-endian float32 for rewards, of little-endian int32 for token ids."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from tokenreward.errors import InvalidField
from tokenreward.wire.request import IdsB64


def encode_rewards(rewards: npt.NDArray[np.float32]) -> str:
    """Base64 of little-endian float32, as in the OpenAI embeddings API."""
    return base64.b64encode(np.ascontiguousarray(rewards, dtype="<f4").tobytes()).decode("ascii")


def decode_rewards(value: list[float] | str) -> npt.NDArray[np.float32]:
    """A float32 vector from either encoding. Raises ValueError if the base64 is broken."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
    return np.asarray(value, dtype=np.float32)


def encode_ids(ids: npt.ArrayLike) -> dict[str, str]:
    """Token ids as `{"ids_b64": ...}`. Raises ValueError if they are not integers of 32 bits."""
    given = np.asarray(ids)
    narrow = given.astype("<i4", casting="unsafe") if given.dtype.kind in "iu" or not given.size else None
    if narrow is None or (narrow != given).any():
        raise ValueError("token ids must be integers that fit 32 bits")
    return {"ids_b64": base64.b64encode(narrow.tobytes()).decode("ascii")}


def decode_ids(value: list[int] | IdsB64, *, param: str) -> npt.NDArray[np.int64]:
    """Token ids [n] from either encoding. Raises InvalidField if the base64 is broken."""
    if not isinstance(value, IdsB64):
        return np.asarray(value, dtype=np.int64)
    try:
        return np.frombuffer(base64.b64decode(value.ids_b64, validate=True), dtype="<i4").astype(np.int64)
    except (binascii.Error, ValueError):
        raise InvalidField(
            f"`{param}.ids_b64` is not base64 of little-endian int32", param=f"{param}.ids_b64"
        ) from None
