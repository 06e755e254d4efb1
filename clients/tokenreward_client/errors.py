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
    """Root of all errors that the client raises. They travel between processes (pickle) with all
    their attributes.

    `code`: one word for what went wrong, the service's where it gave one; None if nothing was sent.
    """

    retryable: bool = False
    code: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through `__init__`: an exception's `args` are only its message.
        new_object = copyreg.__newobj__  # type: ignore[attr-defined]
        return new_object, (type(self), *self.args), self.__dict__


class BadArgument(ClientError, ValueError):
    """An argument cannot be sent. `param` is its path, for example `items[3].response`."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __str__(self) -> str:
        return described(super().__str__(), self.param)


class NotText(ClientError, ValueError):
    """Token ids that do not decode to valid text. `index` is the first token at fault, if one can
    be named."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class ServerRefused(ClientError):
    """The request as a whole was refused.

    `code` and `param` are those of the service's error body; both are None if a proxy answered in
    its place. `request_id`: the reply's `X-Request-ID`, under which the service's log has what went
    wrong.
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
    """One item has no reward. `index` counts the caller's items; `scorer` is None if only one was
    asked."""

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
    """`timeout_s` passed, or would have passed during the pause before the next try; also where the
    service said `overloaded` all that time, which the message and `__cause__` then tell."""

    retryable = True
    code = "deadline_exceeded"


class BadReply(ClientError):
    """The server answered 200 with something other than what was asked for."""

    code = "bad_reply"
