"""Examples may take long on a busy machine: a deadline per example would make these tests fail by
chance."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
