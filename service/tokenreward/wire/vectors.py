"""The vectors of an item: lists of numbers, or numpy arrays where a binary body brought them.

A list is checked entry by entry, an array as a whole; what is wrong with either is said in the same
words. It knows numbers and no fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, FiniteFloat, GetCoreSchemaHandler
from pydantic_core import core_schema

_INT32_LIMIT = 2**31

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class _OrArray:
    """Annotates a field that is read as `lists` are, and takes an array, too, if `holds` is true of
    it."""

    def __init__(self, lists: Any, holds: Callable[[npt.NDArray[Any]], bool]) -> None:
        self._lists = lists
        self._holds = holds

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        lists = handler.generate_schema(self._lists)
        return core_schema.json_or_python_schema(
            json_schema=lists,  # JSON has no arrays, and does not pay for them
            python_schema=core_schema.no_info_wrap_validator_function(self._taken, lists),
            serialization=core_schema.plain_serializer_function_ser_schema(_as_it_is),
        )

    def _taken(self, value: Any, read: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, np.ndarray):
            return read(value)
        # As a list it is refused at the entry that is wrong.
        return value if self._holds(value) else read(value.tolist())


def _as_it_is(value: Any) -> Any:
    return value


def _flags(value: object) -> object:
    """true and false as 1 and 0; all else is left for the strict integers to refuse."""
    return (
        [int(flag) if flag is True or flag is False else flag for flag in value]
        if type(value) is list
        else value
    )


def _are_ids(array: npt.NDArray[Any]) -> bool:
    return array.dtype == np.int32 and array.ndim == 1


def _are_spans(array: npt.NDArray[Any]) -> bool:
    return array.dtype == np.int32 and array.ndim == 2 and array.shape[1] == 2


def _are_flags(array: npt.NDArray[Any]) -> bool:
    return _are_ids(array) and bool(((array == 0) | (array == 1)).all())


def _are_finite(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind == "f" and array.ndim == 1 and bool(np.isfinite(array).all())


Int32 = Annotated[int, Field(ge=-_INT32_LIMIT, lt=_INT32_LIMIT)]
Span = Annotated[list[Int32], Field(min_length=2, max_length=2)]
Flag = Annotated[int, Field(ge=0, le=1)]

# A list is left at its first wrong entry: a report on each of millions would take gigabytes.
_Ids = Annotated[list[Int32], Field(fail_fast=True)]
_Spans = Annotated[list[Span], Field(fail_fast=True)]
_Flags = Annotated[list[Flag], Field(fail_fast=True), BeforeValidator(_flags)]
_Numbers = Annotated[list[FiniteFloat], Field(fail_fast=True)]

Ids = Annotated[list[int] | IntArray, _OrArray(_Ids, _are_ids)]
Spans = Annotated[list[list[int]] | IntArray, _OrArray(_Spans, _are_spans)]
Flags = Annotated[list[int] | IntArray, _OrArray(_Flags, _are_flags)]
Numbers = Annotated[list[float] | FloatArray, _OrArray(_Numbers, _are_finite)]
