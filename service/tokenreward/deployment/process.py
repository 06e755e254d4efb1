"""What a process of the service sets for itself: how long a thread's turn is, when the garbage
collector runs, how many threads compute, when memory is given back, where its log goes.

It imports no Ray, and knows nothing of what the process serves.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
import time

_TURN_S = 0.0005
_NUM_ALLOCATIONS = 10_000
_TRIMMER = "give-back-memory"
_MOST_TRIMMING = 0.005  # of the time


def tune_interpreter() -> None:
    """Makes threads take shorter turns, and the garbage collector run more rarely.

    Python's defaults are meant for scripts. The device's thread asks for the interpreter's lock at
    every operator of the model. While another thread parses a request, it waits for the end of that
    thread's turn: with turns of 5 ms, a thousand operators took twice as long as with 0.5 ms, and
    the other thread got no more done. Large requests make and drop tens of thousands of objects,
    none of them in cycles; a search for cycles every 700 allocations took a tenth of their CPU
    time.
    """
    sys.setswitchinterval(_TURN_S)
    gc.set_threshold(_NUM_ALLOCATIONS, 10, 10)


def give_back_memory(every_s: float = 5.0) -> None:
    """Starts a thread that gives freed memory back to the system; once a process.

    glibc keeps what is freed between blocks that are still in use. A batch frees megabytes, and
    each burst leaves other gaps: the engine of the demo held 468 MiB after two minutes of bursts
    where it asked every 20 s, more with each burst, and 444 to 448 where it asked every 5 s, at the
    same speed. To have all blocks from 1 MiB on mapped by themselves kept 421 MiB, but cost a page
    fault per 4 KiB of each, and a third of the speed. Another C library than glibc is left alone.

    Args:
        every_s: Seconds between two times. It is longer in a process where this takes long, because
            threads that allocate wait meanwhile.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or any(thread.name == _TRIMMER for thread in threading.enumerate()):
        return

    def trim_forever() -> None:
        pause_s = every_s
        while True:
            time.sleep(pause_s)
            began = time.monotonic()
            trim(0)  # ctypes lets other threads run meanwhile
            pause_s = max(every_s, (time.monotonic() - began) / _MOST_TRIMMING)

    threading.Thread(target=trim_forever, name=_TRIMMER, daemon=True).start()


def log_with_ray() -> None:
    """Sends our log records where Ray Serve's own go: to the process's file in the folder of logs,
    in the format of `log_format`, with the request's id. By default Python would print warnings
    alone, to a file that is not the replica's."""
    logging.getLogger("tokenreward").parent = logging.getLogger("ray.serve")


def limit_threads(num_cpus: float) -> None:
    """Lets torch compute with as many threads as the replica has CPUs, whatever the host has.

    It has an effect only before torch is first imported.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(num_cpus)))
    # The tokenizer's own threads would be as many as the host's CPUs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def freeze_loaded_objects() -> None:
    """Hides all objects that exist now from the garbage collector; `gc.unfreeze` undoes it.

    A loaded model is half a million objects that stay. Each full search for cycles would spend half
    a second in them.
    """
    gc.collect()
    gc.freeze()
