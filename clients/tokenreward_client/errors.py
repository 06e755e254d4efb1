"""Every error the client raises: what it means and whether trying again later may help.

The tree:

    ClientError
      BadArgument           also a ValueError: an argument cannot be sent, and nothing was
      NotText               also a ValueError: ids that do not decode to valid text (see `spans`)
      ServerRefused         the server, or a proxy before it, refused the request as a whole
      ItemFailed            one item has no reward
      ConnectionFailed      no answer came: the connection failed or broke          retryable
      DeadlineExceeded      `timeout_s` passed before the answer came               retryable
      BadReply              a 200 that breaks a promise: lengths, indices, finite numbers

Retryable errors are raised only once the client's own retries are used up. This module does not
know HTTP, and its messages hold neither the API key nor the text of an item.
"""

from __future__ import annotations

import copyreg
from typing import Any

from tokenreward.errors import described


class ClientError(Exception):
    """Root of all errors that the client raises. With all their attributes they may be pickled, and
    so cross from one process to another.

    Attributes:
        retryable: Whether trying again later may help.
        code: One word for what went wrong: the service's, if it gave one. None if nothing was sent.
    """

    retryable: bool = False
    code: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through `__init__`: an exception's `args` are only its message.
        new_object = copyreg.__newobj__  # type: ignore[attr-defined]
        return new_object, (type(self), *self.args), self.__dict__


class BadArgument(ClientError, ValueError):
    """An argument cannot be sent.

    Attributes:
        param: Its path, for example `items[3].response`; None if no single argument is at fault.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __str__(self) -> str:
        return described(super().__str__(), self.param)


class NotText(ClientError, ValueError):
    """Token ids do not decode to valid text.

    Attributes:
        index: The place of the first token at fault; None if no single token is.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class ServerRefused(ClientError):
    """The service, or a proxy before it, refused the request as a whole.

    Attributes:
        status: The HTTP status.
        code: The code in the service's error body; None if a proxy answered in its place.
        param: The path of the field at fault; None if no single field is, or a proxy answered.
        request_id: The reply's `X-Request-ID`. Under it the service's log says what went wrong.
    """

    request_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retryable = retryable

    def __str__(self) -> str:
        text = described(super().__str__(), self.param)
        return text if self.code is None else f"{self.code}: {text}"


class ItemFailed(ClientError):
    """One item has no reward.

    Attributes:
        index: The item's place among the caller's.
        code: The code of its error.
        param: The path of the field at fault, for example `items[3].response`.
        scorer: The scorer that failed; None if the call named a single one.
    """

    def __init__(
        self,
        message: str,
        *,
        index: int,
        code: str,
        param: str | None = None,
        scorer: str | None = None,
    ) -> None:
        super().__init__(message)
        self.index = index
        self.code = code
        self.param = param
        self.scorer = scorer


class ConnectionFailed(ClientError):
    """No answer came: the connection could not be made, broke, or stayed silent."""

    retryable = True
    code = "connection_failed"


class DeadlineExceeded(ClientError):
    """`timeout_s` passed, or would have passed during the pause before the next try.

    If the service said `overloaded` all that time, the message and `__cause__` tell it.
    """

    retryable = True
    code = "deadline_exceeded"


class BadReply(ClientError):
    """The server answered 200 with something other than what was asked for."""

    code = "bad_reply"
