"""The type checker behind jaxtyping's shapes in tests: beartype, with int accepted where float is
written."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
