"""How large the tiles of the language head's loop are: its workspace stays within a bound, whatever
the model and the batch. It knows sizes and no tensors.

What lives at a time, at most: the fixed number below of tiles of logits (the logits, them over a
temperature, and what logsumexp and entropy make of them), a tile of weights and one of rows as
float32 where they are converted, the rows of a block where they are picked from others, and each
tile's share of the block's results, thrice while they are merged.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT_BYTES = 4
_LIVE_TILES = 5
# (rows, columns): on a CPU 4 MiB, within its cache, and square, because a product of 1024 rows
# takes MKL 5 to 12 % less time than one of 256 rows and 4096 columns; on a GPU few calls, whose
# logits still fit its L2 cache (32 MiB).
_TILES = {"cpu": (1024, 1024), "cuda": (1024, 8192)}
_CONVERTED_WEIGHT_BYTES = 32 * 2**20
_CONVERTED_ROW_BYTES = 8 * 2**20
_BLOCK_BYTES = 24 * 2**20
_RESULT_BYTES = 8 * 2**20

MAX_WORKSPACE_BYTES = (
    _LIVE_TILES * _FLOAT_BYTES * max(rows * columns for rows, columns in _TILES.values())
    + _CONVERTED_WEIGHT_BYTES
    + _CONVERTED_ROW_BYTES
    + _BLOCK_BYTES
    + 3 * _RESULT_BYTES
)  # what follows from the above; the tests watch the head's loop and hold it to this


@dataclass(frozen=True, slots=True)
class Tiling:
    """`rows` x `columns`: one tile of logits. `block`: rows for which each tile of weights is read
    once."""

    rows: int
    columns: int
    block: int

    @classmethod
    def of(
        cls, device_type: str, weight: tuple[int, int, int], num_results: int, *, converts: bool
    ) -> Tiling:
        """`weight`: vocabulary, hidden size, bytes of a number. `num_results`: numbers that a row
        gets of each tile. `converts`: tiles of weights and rows are made float32."""
        vocab_size, hidden_size, num_bytes = weight
        rows, columns = _TILES.get(device_type, _TILES["cuda"])
        if converts:
            rows = min(rows, _CONVERTED_ROW_BYTES // (_FLOAT_BYTES * hidden_size))
            columns = min(columns, _CONVERTED_WEIGHT_BYTES // (_FLOAT_BYTES * hidden_size))
        columns = max(1, min(columns, vocab_size))
        by_result = _RESULT_BYTES // (_FLOAT_BYTES * num_results * -(-vocab_size // columns))
        block = max(1, min(by_result, _BLOCK_BYTES // (num_bytes * hidden_size)))
        rows = max(1, min(rows, block))
        return cls(rows, columns, block - block % rows)
