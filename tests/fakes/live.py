"""Memory that a computation would need, counted without computing: on `meta`, operator by
operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of all tensors made within it that are still alive, at worst; what logsumexp makes
    inside is added."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = 0  # of the known ones, some of them gone since
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._bytes += storage.nbytes() - self._known.pop(storage._cdata, (None, 0))[1]
                self._known[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        inside = (
            args[0].numel() * args[0].element_size()
            if func.overloadpacket.__name__ == "logsumexp"
            else 0
        )
        if self._bytes + inside > self.most:
            self._known = {
                key: known for key, known in self._known.items() if not known[0].expired()
            }
            self._bytes = sum(size for _, size in self._known.values())
            self.most = max(self.most, self._bytes + inside)
        return out
