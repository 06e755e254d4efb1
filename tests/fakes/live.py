"""Counts the memory that a computation would need, without computing: on the device `meta`,
operator by operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within it, `most` becomes the largest number of bytes that were alive at a time.

    A tensor that an operator returns counts until nothing refers to its storage. What logsumexp
    allocates inside, a tensor as large as its input, is added.
    """

    def __init__(self) -> None:
        super().__init__()
        # Storages by address, with their bytes. Some may be dead: they are removed only when the
        # sum would be a new maximum, because to look at all of them is slow.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._num_bytes = 0  # the sum over `_storages`
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:
                storage = leaf.untyped_storage()
                # A dead storage's address may have been used again.
                _, old_size = self._storages.pop(storage._cdata, (None, 0))
                self._num_bytes += storage.nbytes() - old_size
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        inside = 0
        if func.overloadpacket.__name__ == "logsumexp":
            inside = args[0].numel() * args[0].element_size()
        if self._num_bytes + inside > self.most:
            self._storages = {
                address: (storage, size)
                for address, (storage, size) in self._storages.items()
                if not storage.expired()
            }
            self._num_bytes = sum(size for _, size in self._storages.values())
            self.most = max(self.most, self._num_bytes + inside)
        return out
