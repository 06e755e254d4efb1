"""Keeps passes and changes of torch's default dtype apart.

The default dtype is the whole process's. While transformers makes a model, it is that model's, and
then again what it was before. A pass of another thread would make tensors of that dtype, as dynamic
rotary frequencies do, and two loads at a time would put back each other's. So one model is loaded
at a time. For the moment of a change, new passes wait, and the change waits for those that run. A
load into float32 changes nothing, and nobody waits. The probe of a model that is loaded takes turns
with other loads: its passes are many, and a change that waited for all of them would hold up those
of the model that serves. This module knows no models.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

_loading = threading.Lock()
_turn = threading.Condition()
_state = SimpleNamespace(num_computing=0, is_changed=False)


@contextmanager
def computing() -> Iterator[None]:
    """Within it, no load changes the default dtype. It may wait for a load, and holds no other pass
    up."""
    with _turn:
        _turn.wait_for(lambda: not _state.is_changed)
        _state.num_computing += 1
    try:
        yield
    finally:
        with _turn:
            _state.num_computing -= 1
            _turn.notify_all()


@contextmanager
def probing() -> Iterator[None]:
    """Within it, no thread loads. It may wait for a load, and a load for it, but no pass does."""
    with _loading:
        yield


@contextmanager
def loading() -> Iterator[None]:
    """Within it, this thread is the only one that loads, and may change the default dtype. It is
    what it was before in the end, whatever happens within."""
    with _loading:
        thread = threading.get_ident()
        own, real = torch.get_default_dtype(), torch.set_default_dtype

        def change(dtype: torch.dtype) -> None:
            if threading.get_ident() != thread:
                real(dtype)
                return
            with _turn:
                # Set first: under standing load there is no moment without a pass.
                _state.is_changed = dtype != own
                _turn.wait_for(lambda: dtype == own or not _state.num_computing)
                real(dtype)
                _turn.notify_all()

        vars(torch)["set_default_dtype"] = change
        try:
            yield
        finally:
            vars(torch)["set_default_dtype"] = real
            change(own)
