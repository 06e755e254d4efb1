"""The vectors of an item: lists of numbers, or numpy arrays where a binary body brought them.

A list is checked entry by entry, an array as a whole. Both are refused in the same words. It knows
numbers and no fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import (
    BeforeValidator,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    GetPydanticSchema,
)
from pydantic_core import core_schema

# Of one list. Longer ones may come as base64 or as `bin`.
MAX_IDS = 2**19

_INT32_LIMIT = 2**31

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def _or_array(list_type: Any, accepts: Callable[[npt.NDArray[Any]], bool]) -> GetPydanticSchema:
    """Annotates a field that is read as `list_type`, and that may be an array where a body is
    binary.

    Args:
        list_type: The type of the list, with its checks.
        accepts: Whether an array is right as it is. One that is not is read as a list, which names
            the entry that is wrong.
    """

    def read(value: Any, read_list: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, np.ndarray):
            return read_list(value)
        return value if accepts(value) else read_list(value.tolist())

    def schema(_: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        list_schema = handler.generate_schema(list_type)
        return core_schema.json_or_python_schema(
            json_schema=list_schema,  # JSON has no arrays, and does not pay for them
            python_schema=core_schema.no_info_wrap_validator_function(read, list_schema),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    return GetPydanticSchema(schema)


def _numbers_of_flags(value: object) -> object:
    """true and false as 1 and 0. The strict integers refuse whatever else is no flag."""
    if type(value) is not list:
        return value
    return [int(flag) if flag is True or flag is False else flag for flag in value]


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

# Reading stops at the first wrong entry: a report on each of millions would take gigabytes.
_Ids = Annotated[list[Int32], Field(fail_fast=True, max_length=MAX_IDS)]
_Spans = Annotated[list[Span], Field(fail_fast=True)]
_Flags = Annotated[list[Flag], Field(fail_fast=True), BeforeValidator(_numbers_of_flags)]
_Numbers = Annotated[list[FiniteFloat], Field(fail_fast=True)]

Ids = Annotated[list[int] | IntArray, _or_array(_Ids, _are_ids)]
Spans = Annotated[list[list[int]] | IntArray, _or_array(_Spans, _are_spans)]
Flags = Annotated[list[int] | IntArray, _or_array(_Flags, _are_flags)]
Numbers = Annotated[list[float] | FloatArray, _or_array(_Numbers, _are_finite)]
