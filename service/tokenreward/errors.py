"""Every error the service can answer with: what it means, its HTTP status, its code, and whether a
retry may help.

The tree:

    RewardError
      RequestError                     the request as a whole is refused
        MalformedJson            400   malformed_json
        MalformedBody            400   malformed_body
        Unauthorized             401   unauthorized
        UnknownScorer            404   unknown_scorer
        UnknownRoute             404   unknown_route
        VersionConflict          409   version_conflict
        VersionNotReached        409   version_not_reached     retryable
        BodyTimeout              408   body_timeout            retryable
        BodyTooLarge             413   body_too_large
        TooManyItems             413   too_many_items
        LargerThanQueue          413   larger_than_queue
        UnknownField             422   unknown_field
        InvalidField             422   invalid_field
        UnknownOption            422   unknown_option
        CreditNotSupported       422   credit_not_supported
        UnitsDiffer              422   units_differ
        InternalError            500   internal                retryable
        Overloaded               503   overloaded              retryable, Retry-After
        Loading                  503   loading                 retryable, Retry-After
        Updating                 503   updating                retryable, Retry-After
        DeadlineExceededError    504   deadline_exceeded       retryable
      ItemError                  200   one item fails alone
        SequenceTooLong                sequence_too_long
        TokenOutOfVocabulary           token_out_of_vocabulary
        SpansDoNotTile                 spans_do_not_tile
        LengthMismatch                 length_mismatch
        EmptyResponse                  empty_response
        EmptyPrompt                    empty_prompt
        UnsupportedText                unsupported_text
        NonFinite                      non_finite
        OutOfMemory                    out_of_memory           retryable
        ScorerFailed                   scorer_failed

This module does not know HTTP frameworks. An error never holds a payload: its message names a
field, a limit and a number, and no text of the caller.
"""

from __future__ import annotations

import traceback
from typing import Any, ClassVar, Self


class RewardError(Exception):
    """Root of all errors that the service answers with.

    Attributes:
        message: What is wrong, in a sentence. It never repeats `param`.
        param: Path of the field at fault, for example `items[0].response`.
        retry_after_s: A hint in seconds: when to try again.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return described(self.message, self.param)

    def within(self, prefix: str) -> Self:
        """The same error, whose `param` is now a path below `prefix`.

        Code that knows one item names its fields. Code that knows the item's place puts the place
        in front: `response` within `items[3]` becomes `items[3].response`.
        """
        self.param = path_below(prefix, self.param)
        return self

    def detail(self) -> dict[str, Any]:
        """The one error body, as it stands under `error` at the top level and in an item."""
        return {
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "retryable": self.retryable,
        }


class RequestError(RewardError):
    """The request as a whole is refused; no item was scored."""


class MalformedJson(RequestError):
    status, code = 400, "malformed_json"


class MalformedBody(RequestError):
    status, code = 400, "malformed_body"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"


class UnknownScorer(RequestError):
    status, code = 404, "unknown_scorer"


class UnknownRoute(RequestError):
    status, code = 404, "unknown_route"


class VersionConflict(RequestError):
    """Weights were pushed under a version that the deployment has passed, or has for others."""

    status, code = 409, "version_conflict"


class VersionNotReached(RequestError):
    status, code, retryable = 409, "version_not_reached", True


class BodyTimeout(RequestError):
    """The body came too slowly: others waited for the memory that it held."""

    status, code, retryable = 408, "body_timeout", True


class BodyTooLarge(RequestError):
    status, code = 413, "body_too_large"


class TooManyItems(RequestError):
    status, code = 413, "too_many_items"


class LargerThanQueue(RequestError):
    status, code = 413, "larger_than_queue"


class UnknownField(RequestError):
    status, code = 422, "unknown_field"


class InvalidField(RequestError):
    status, code = 422, "invalid_field"


class UnknownOption(RequestError):
    status, code = 422, "unknown_option"


class CreditNotSupported(RequestError):
    status, code = 422, "credit_not_supported"


class UnitsDiffer(RequestError):
    status, code = 422, "units_differ"


class InternalError(RequestError):
    status, code, retryable = 500, "internal", True


class Overloaded(RequestError):
    status, code, retryable = 503, "overloaded", True


class Loading(RequestError):
    status, code, retryable = 503, "loading", True


class Updating(RequestError):
    """The weights are being changed by somebody else. Clients treat it as `loading`."""

    status, code, retryable = 503, "updating", True


class DeadlineExceededError(RequestError):
    status, code, retryable = 504, "deadline_exceeded", True


# By code. Only those above: another module's subclass may be made of other things than a message.
REQUEST_ERRORS = {kind.code: kind for kind in RequestError.__subclasses__()}


class ItemError(RewardError):
    """One item fails alone: the error stands in the item's result, and the status is 200."""

    status = 200
    code = "scorer_failed"


class SequenceTooLong(ItemError):
    code = "sequence_too_long"


class TokenOutOfVocabulary(ItemError):
    code = "token_out_of_vocabulary"


class SpansDoNotTile(ItemError):
    code = "spans_do_not_tile"


class LengthMismatch(ItemError):
    code = "length_mismatch"


class EmptyResponse(ItemError):
    code = "empty_response"


class EmptyPrompt(ItemError):
    code = "empty_prompt"


class UnsupportedText(ItemError):
    code = "unsupported_text"


class NonFinite(ItemError):
    code = "non_finite"


class OutOfMemory(ItemError):
    code, retryable = "out_of_memory", True


class ScorerFailed(ItemError):
    code = "scorer_failed"


def described(message: str, param: str | None) -> str:
    """An error's place and message in one text, for people."""
    return message if param is None else f"`{param}`: {message}"


def path_below(prefix: str, param: str | None) -> str:
    """The path of a field below another: `items[3]` and `spans[1]` give `items[3].spans[1]`."""
    if param is None:
        return prefix
    if param.startswith("["):
        return f"{prefix}{param}"
    return f"{prefix}.{param}"


def quotable(text: str) -> str:
    """A name or a header of a caller, cut so that a message can quote it: at most 64 characters,
    with `?` for those that cannot be printed."""
    return "".join(character if character.isprintable() else "?" for character in text[:64])


def drop_frames(error: BaseException) -> None:
    """Drops the traceback of an error that is kept: its frames refer to bodies, and to engines,
    which are to be freed when they have been replaced."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


def frames(error: BaseException) -> str:
    """The type and place of an exception, for the log.

    Its message is left out, because it may quote the caller's text.
    """
    places = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{type(error).__name__} at\n{places}"
