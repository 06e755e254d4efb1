"""Ray's internal key-value store, as the registry of pushes uses it. Every process of the cluster
reaches it, and it lives as long as the GCS or the GCS's own storage.

It knows keys and bytes.
"""

from __future__ import annotations

_NAMESPACE = "tokenreward"


class RayKeyValues:
    """Ray's own store, which the GCS keeps for as long as it lives."""

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        from ray.experimental.internal_kv import _internal_kv_get

        value: bytes | None = _internal_kv_get(key, namespace=_NAMESPACE)
        return value

    def put(self, key: str, value: bytes, *, overwrite: bool) -> bool:
        """Whether the value is there now."""
        from ray.experimental.internal_kv import _internal_kv_put

        was_there = _internal_kv_put(key, value, overwrite, namespace=_NAMESPACE)
        return overwrite or not was_there

    def keys(self, prefix: str) -> list[str]:
        """All keys with this prefix."""
        from ray.experimental.internal_kv import _internal_kv_list

        return [key.decode() for key in _internal_kv_list(prefix, namespace=_NAMESPACE)]

    def delete(self, key: str) -> None:
        """Deletes a key."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(key, namespace=_NAMESPACE)
