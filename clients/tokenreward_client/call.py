"""One `score` call: its items cut into requests, sent, sent again where that helps, and put back in
order.

It knows the shape of requests and replies, and yields flows. `retry` decides when a request is sent
again, and `listing` where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tokenreward.errors import Overloaded
from tokenreward.wire import ErrorDetail, Reply, renumbered
from tokenreward.wire.paths import REWARDS_PATH
from tokenreward_client.errors import BadArgument, BadReply, ClientError, ServerRefused
from tokenreward_client.flow import Flow
from tokenreward_client.items import ItemLike, encode_items
from tokenreward_client.media import WireName, content_type, read_body, write_body
from tokenreward_client.options import ScoreOptions, check_head, write_head
from tokenreward_client.request import is_lost_path, send_until_answered
from tokenreward_client.retry import Attempts
from tokenreward_client.rewards import (
    Rewards,
    errors_of,
    item_failed,
    keep_good_results,
    read_keyed,
    read_single,
    renumber,
    retryable_codes,
)


class Call:
    """The encoded items of one `score` call, and what is asked about them.

    Attributes:
        wire: How requests are written.
        contents: The bytes of each item.
        names: The scorers.
        fingerprint: The fingerprint that the scorers' tokenizers must have, if any item has ids.
        dependencies: Other scorers that these depend on, as the request has it. Only the gateway
            can ask one scorer on behalf of another.

    Raises:
        BadArgument: The service would refuse an item or the request.
        TypeError: There is no such option.
    """

    def __init__(
        self,
        items: Iterable[ItemLike],
        scorer: str | None,
        options: ScoreOptions,
        wire: WireName = "json",
    ) -> None:
        for name in options.keys() - ScoreOptions.__annotations__.keys():
            raise TypeError(f"score() got an unexpected keyword argument {name!r}")
        self.wire = wire
        self.contents, self._nums_units, has_ids = encode_items(items, wire)
        self._on_error = options.get("on_error", "raise")
        if self._on_error not in ("raise", "return"):
            message = f'must be "raise" or "return", got {self._on_error!r}'
            raise BadArgument(message, param="on_error")
        self._head = write_head(scorer, options, wire)
        request, self.dependencies = check_head(self._head)
        self.names = request.names
        self.fingerprint = options.get("fingerprint") if has_ids else None
        self._is_keyed = request.scorers is not None
        self._is_combined = request.combine is not None
        # What ended the request of each item that has no answer, by position.
        self._failures: dict[int, ClientError] = {}

    def split(self, max_items: int, max_bytes: int) -> Iterator[list[int]]:
        """Cut the call into requests of about equal numbers of items.

        Args:
            max_items: The most items in one request.
            max_bytes: The most bytes of items in one request. A larger item goes alone.

        Yields:
            The positions of one request's items, in order.
        """
        num_items = len(self.contents)
        num_shares = -(-num_items // max_items)
        request: list[int] = []
        num_bytes = 0
        share = 0
        for position, content in enumerate(self.contents):
            previous_share, share = share, position * num_shares // num_items
            if request and (share > previous_share or num_bytes + len(content) > max_bytes):
                yield request
                request, num_bytes = [], 0
            request.append(position)
            num_bytes += len(content)
        if request:
            yield request

    def body(self, positions: Sequence[int]) -> bytes:
        """The body of a request for the items at these positions, in this order."""
        contents = [self.contents[position] for position in positions]
        return write_body(self._head, contents, self.wire)

    def read(self, content: bytes | Reply, positions: Sequence[int]) -> dict[int, Rewards]:
        """Read the reply to a request.

        Args:
            content: The body of a 200, or the same as an object.
            positions: The positions of the request's items.

        Returns:
            One answer for each position.

        Raises:
            BadReply: The reply is none, or breaks a promise.
        """
        reply = read_body(content, self.wire) if isinstance(content, bytes) else content
        by_index = {item.index: item for item in reply.items}
        if len(by_index) != len(reply.items) or set(by_index) != set(range(len(positions))):
            raise BadReply(f"the reply's indices are not 0 to {len(positions) - 1}, each once")
        answers = {}
        for index, position in enumerate(positions):
            item = renumber(by_index[index], positions)
            num_units = self._nums_units[position]
            where = f"items[{position}]"
            if self._is_keyed:
                answer = read_keyed(
                    item,
                    self.names,
                    is_combined=self._is_combined,
                    num_units=num_units,
                    where=where,
                )
            else:
                answer = read_single(item, reply, num_units=num_units, where=where)
            answers[position] = replace(answer, sources=reply.sources or {}, request_id=reply.id)
        return answers

    def merge(self, old: Rewards | None, new: Rewards) -> Rewards:
        """The answer of an item that was sent again: the new one, with the results of scorers that
        were good before and have failed now.

        Combined results are not mixed: such a vector belongs to the reply that it came with.
        """
        if old is None or self._is_combined:
            return new
        return keep_good_results(old, new)

    def fail(
        self, error: ClientError, positions: Sequence[int], answers: Mapping[int, Rewards]
    ) -> dict[int, Rewards]:
        """The answers of items whose request was ended by an error. Raises the error, unless errors
        are to be returned, or another try would only have made an answer better.

        Args:
            error: What ended the request.
            positions: The positions of the request's items.
            answers: The answers that are there from earlier tries; these items keep theirs.
        """
        unanswered = [position for position in positions if position not in answers]
        if error.retryable and not unanswered:
            return {}
        if isinstance(error, ServerRefused) and error.param is not None:
            error.param = renumbered(error.param, positions)
        if self._on_error == "raise":
            raise error
        code, param = error.code, None
        if isinstance(error, ServerRefused):
            code, param = error.code or f"http_{error.status}", error.param
        detail = ErrorDetail(
            code=code or "failed",
            message=str(error.args[0]),
            param=param,
            retryable=error.retryable,
        )
        answer = Rewards(None, error=detail, scorers={} if self._is_keyed else None)
        self._failures |= dict.fromkeys(unanswered, error)
        return dict.fromkeys(unanswered, answer)

    def collect(self, answers: Iterable[Mapping[int, Rewards]]) -> list[Rewards]:
        """The answers of all requests in the caller's order.

        Raises:
            ItemFailed: An item failed, and errors are not to be returned.
            ClientError: No item was answered: what ended the first request.
        """
        if self.contents and len(self._failures) == len(self.contents):
            raise self._failures[0]
        by_position: dict[int, Rewards] = {}
        for each in answers:
            by_position |= each
        in_order = [by_position[position] for position in range(len(self.contents))]
        failures = [position for position, answer in enumerate(in_order) if errors_of(answer)]
        if failures and self._on_error == "raise":
            first = failures[0]
            raise item_failed(
                first,
                in_order[first],
                num_others=len(failures) - 1,
                num_answered=len(in_order) - len(failures),
            )
        return in_order


def score_request(
    call: Call,
    positions: list[int],
    attempts: Attempts,
    path: str,
    on_lost_path: Callable[[], None],
) -> Flow[dict[int, Rewards]]:
    """Send the items at these positions, and again those whose error says that a retry may help.

    A request that is too large (413) is sent again in halves. An item keeps the answer that it has,
    if only an error, when trying again ends without a better one. When the path of a deployment
    leads nowhere (404), `on_lost_path` is called, and the gateway takes over at the cost of no try.

    Returns:
        One answer for each position.

    Raises:
        ClientError: As `send_until_answered`, unless errors are to be returned.
    """
    answers: dict[int, Rewards] = {}
    pending = positions
    while True:
        try:
            response = yield from send_until_answered(
                path, partial(call.body, pending), attempts, content_type(call.wire)
            )
            for position, answer in call.read(response.content, pending).items():
                answers[position] = call.merge(answers.get(position), answer)
        except ClientError as error:
            if is_lost_path(path, error):
                on_lost_path()
                path = REWARDS_PATH
                continue
            if isinstance(error, ServerRefused) and error.status == 413 and len(pending) > 1:
                for half in (pending[: len(pending) // 2], pending[len(pending) // 2 :]):
                    answers |= yield from score_request(call, half, attempts, path, on_lost_path)
                return answers
            return answers | call.fail(error, pending, answers)
        item_codes = {position: retryable_codes(answers[position]) for position in pending}
        codes = set[str]().union(*item_codes.values())
        # The service has room, unless all that it says of these items is that it is overloaded.
        if codes != {Overloaded.code}:
            attempts.window.advance()
        pending = [position for position in pending if item_codes[position]]
        if not pending:
            return answers
        pause_s = attempts.next_pause_s(codes, is_retryable=True)
        if pause_s is None or not attempts.has_time_for(pause_s):
            return answers
        yield from attempts.pause(pause_s, codes)
