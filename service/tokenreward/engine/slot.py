"""The engine that serves now, and the change to another one while requests on the one before
finish.

It knows engines and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenreward.errors import Loading

if TYPE_CHECKING:
    from tokenreward.engine.engine import Engine


class Slot:
    """Holds the engine that serves now. Requests under way finish on the engine that they began
    on.

    Args:
        engine: The engine that serves from the start; by default none until `put`.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self._num_leases: Counter[Engine] = Counter()
        self._returned = asyncio.Event()
        self._next_version = asyncio.Event()  # another one for each version

    @property
    def engine(self) -> Engine:
        """The engine that serves now. Raises Loading."""
        if self._engine is None:
            raise Loading("the weights are still loading", retry_after_s=1)
        return self._engine

    @contextlib.contextmanager
    def lease(self) -> Iterator[Engine]:
        """The engine that serves now, which stays open meanwhile. Raises Loading."""
        engine = self.engine
        self._num_leases[engine] += 1
        try:
            yield engine
        finally:
            self._num_leases[engine] -= 1
            self._returned.set()

    def load_figures(self) -> dict[str, float]:
        """What the engine that serves now has to do (`Load.figures`); empty while there is none."""
        engine = self._engine
        if engine is None:
            return {}
        pending = engine.batcher.waiting_tokens + engine.worker.running_tokens
        return engine.worker.load.figures(pending + engine.num_preprocess_tokens)

    def announce(self) -> None:
        """Lets those go on who wait for the version that the engine has now."""
        self._next_version.set()
        self._next_version = asyncio.Event()

    async def wait_for_version(self, version: int, *, within_s: float) -> None:
        """Returns once the engine has this version or a greater one, or when time is up. Raises
        Loading."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.engine.version < version:
                    await self._next_version.wait()

    async def put(self, engine: Engine) -> None:
        """Serves with another engine from now on. Returns once the one before is closed, which it
        is when the last request on it has been answered."""
        previous, self._engine = self._engine, engine
        self.announce()
        if previous is None or previous is engine:
            return
        while self._num_leases[previous] > 0:
            self._returned.clear()
            await self._returned.wait()
        del self._num_leases[previous]
        await previous.close()
        del previous
        # The error that ended the work is let go of in the next turn of the loop. Its traceback
        # refers to the engine.
        await asyncio.sleep(0)
        # Engines are in reference cycles, which keep their weights alive. The collector keeps
        # Python's lock, so another thread would hold up the event loop just as long.
        gc.collect()
