"""What a process of ours sets for itself: whose turn it is, when to look for garbage, how many
threads compute.

It knows neither Ray nor what the process serves.
"""

from __future__ import annotations

import gc
import os
import sys

_TURN_S = 0.0005
_ALLOCATIONS = 10_000


def be_responsive() -> None:
    """Shorter turns and fewer searches for garbage than Python's defaults, which are those of a
    script.

    The device's thread asks for Python's lock at every operator. While another thread parses it
    waits out that one's turn: with 5 ms, a thousand operators took twice as long as with 0.5 ms,
    and nobody else got less done. Large requests make and drop tens of thousands of objects, none
    of them in cycles: looking through them every 700 took a tenth of their CPU time.
    """
    sys.setswitchinterval(_TURN_S)
    gc.set_threshold(_ALLOCATIONS, 10, 10)


def compute_on(num_cpus: float) -> None:
    """As many threads as the replica has CPUs, whatever the host has. Before torch is first
    imported."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(num_cpus)))
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # its threads would be as many as the host's CPUs
    )


def keep_what_is_loaded() -> None:
    """Takes all that there is now out of the search for garbage: half a million objects that stay,
    in which each full search would spend half a second. Undone by `gc.unfreeze`."""
    gc.collect()
    gc.freeze()
