"""LitServe with its own dynamic batching around a padded batch, in order of arrival. Run it with
`python -m bench.rivals.lit_server FOLDER TASK PORT MAX_BATCH_SIZE`.

Under load the queue is never empty, so the timeout only decides how soon a lone request is served.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve

from bench.rivals.huggingface import Scoring

BATCH_TIMEOUT_S = 0.02


class PaddedBatch(litserve.LitAPI):
    """`POST /predict {"query": ids, "start": int}`."""

    def __init__(self, folder: Path, task: Any, *, max_batch_size: int) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=BATCH_TIMEOUT_S)
        self._folder, self._task = folder, task

    def setup(self, device: str) -> None:
        self._scoring = Scoring(self._folder, self._task)

    def predict(self, asked: list[dict[str, Any]]) -> list[list[float]]:
        return self._scoring.rewards(
            [each["query"] for each in asked], [each["start"] for each in asked]
        )

    def encode_response(self, rewards: list[float]) -> dict[str, Any]:
        return {"rewards": rewards}


def main(folder: str, task: str, port: str, max_batch_size: str) -> None:
    api = PaddedBatch(Path(folder), task, max_batch_size=int(max_batch_size))
    server = litserve.LitServer(api, accelerator="cpu", timeout=False, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
