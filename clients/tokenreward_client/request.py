"""One request, and how it is sent until there is an answer.

It knows nothing of rewards. `response` says what is wrong with a reply, and `retry` whether there
is another try.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import httpx

from tokenreward.wire import JSON_TYPE
from tokenreward.wire.paths import READY_PATH, REWARDS_PATH, SCORERS_PATH, is_weights_path
from tokenreward_client.errors import (
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    ServerRefused,
)
from tokenreward_client.flow import Flow, Send
from tokenreward_client.response import error_of, retry_after_s
from tokenreward_client.retry import Attempts


def is_lost_path(path: str, error: ClientError) -> bool:
    """Whether a deployment's path leads nowhere. The gateway may still reach what is asked for."""
    if path in (REWARDS_PATH, SCORERS_PATH, READY_PATH) or is_weights_path(path):
        return False
    return isinstance(error, ServerRefused) and error.status == 404


def passing_codes(error: ClientError) -> set[str]:
    """The codes that say why a request failed, as far as another try may cure it.

    A 404 that may be tried again is of a proxy that has only begun and knows no routes yet: there
    is no way to the service, as without a connection.
    """
    if not error.retryable or (error.code is None and not isinstance(error, ServerRefused)):
        return set()
    if isinstance(error, ServerRefused) and error.status == 404:
        return {ConnectionFailed.code}
    return {error.code} if error.code else set()


def send_until_answered(
    path: str,
    write_body: Callable[[], bytes] | None,
    attempts: Attempts,
    content_type: str = JSON_TYPE,
    authorization: str | None = None,
) -> Flow[httpx.Response]:
    """Send a request, again and again where that may help, until a reply with status 200 comes.

    Args:
        path: Where it goes. A 404 on the path of a deployment is raised at once.
        write_body: Gives the body, which is made anew for each try; None for a GET.
        attempts: The tries and the time that are left.
        content_type: The media type of the body.
        authorization: The header of that name, in place of the client's.

    Raises:
        ServerRefused, ConnectionFailed, DeadlineExceeded: Another try does not help or is not left.
        BadReply: The reply cannot be read, or answers another request.
    """
    error: ClientError | None = None
    while True:
        ticket = attempts.join_line()
        try:
            yield from attempts.wait_turn(ticket)
            body = None if write_body is None else write_body()
            send = Send(path, body, attempts.left_s(), content_type, authorization=authorization)
            answer = yield send
            # A GET may be answered from a cache, with the id of the request that filled it.
            error = error_of(answer, None if body is None else send.request_id)
            if error is None:
                return cast(httpx.Response, answer)
            if is_lost_path(path, error):
                raise error
            codes = passing_codes(error)
            # While the ticket is still held: the window counts this request as one in flight.
            pause_s = attempts.next_pause_s(
                codes,
                is_retryable=error.retryable,
                retry_after_s=retry_after_s(answer, attempts.retry.wall_clock),
            )
        except DeadlineExceeded:  # in the line, where a request that was refused waits again
            raise attempts.gave_up(error) from error
        finally:
            attempts.window.leave(ticket)
        if pause_s is None:
            raise error
        if not attempts.has_time_for(pause_s):
            raise attempts.gave_up(error) from error
        yield from attempts.pause(pause_s, codes)
