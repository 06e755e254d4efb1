"""One `score` call: its items cut into requests, sent, sent again where that helps, and put back in
order.

It knows the shape of requests and replies, and yields flows. `flow` decides when a request is sent
again, `listing` where it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict

from pydantic import Field
from pydantic_core import to_json

from tokenreward.errors import Overloaded, RequestError
from tokenreward.wire import (
    ErrorDetail,
    Item,
    Reply,
    RewardsRequest,
    parse_json,
    renumbered,
)
from tokenreward.wire.dependencies import Dependency, request_dependencies
from tokenreward_client.errors import BadArgument, BadReply, ClientError, ServerRefused
from tokenreward_client.flow import Attempts, Flow, Route, Sleep, send_until_answered
from tokenreward_client.items import ItemLike, encode_items
from tokenreward_client.media import JSON, Wire
from tokenreward_client.rewards import (
    Rewards,
    first_error,
    item_failed,
    keep_good_results,
    read_keyed,
    read_single,
    renumber,
    retryable_codes,
)

DEFAULT_SCORER = "endogenous"


class ScoreOptions(TypedDict, total=False):
    """What a `score` call may say besides its items and the scorer.

    Attributes:
        scorers: Names of several scorers, in place of `scorer`. Each answer then has `scorers`.
        combine: A weight per scorer name, with `scorers`: each answer then also has the weighted
            sum of its rewards.
        options: Options of the scorer, as on the wire; with `scorers` keyed by scorer name.
        credit: How a score becomes rewards, as on the wire; with `scorers` keyed by scorer name.
        return_tokens: Whether answers say which tokens were scored.
        min_version: The lowest version of the weights that will do.
        on_error: "raise" (default) raises ItemFailed for the first item that failed, once all are
            done, and at once what ends a request. "return" leaves the error in the item's Rewards:
            its own, or what ended its request, with the service's code where there is one, else
            `deadline_exceeded`, `connection_failed`, `bad_reply` or, from a proxy, `http_502` and
            the like. If no item was answered, what ended the first request is raised all the same.
        timeout_s: The deadline of this call in seconds, in place of the client's.
        fingerprint: Of the tokenizer that made the items' ids:
            `fingerprint(tokenizer.get_vocab())`. Ids are then sent only if every scorer lists the
            same; else BadArgument is raised, or the error that kept the listing away. Without it
            ids are trusted.
    """

    scorers: Sequence[str] | None
    combine: Mapping[str, float] | None
    options: Mapping[str, Any] | None
    credit: Mapping[str, Any] | None
    return_tokens: bool
    min_version: int | None
    on_error: Literal["raise", "return"]
    timeout_s: float | None
    fingerprint: str | None


class RequestWithoutItems(RewardsRequest):
    """A request before it has items."""

    items: list[Item] = Field(default_factory=list)


class Call:
    """The encoded items of one `score` call, and what is asked about them.

    Attributes:
        items: The items, encoded.
        names: The scorers.
        fingerprint: The fingerprint that the scorers' tokenizers must have, if any item has ids.
        dependency: The first scorer that these depend on, as the request has it; None if there is
            none. Only the gateway can ask one scorer on behalf of another.

    Raises:
        BadArgument: The service would refuse an item or the request.
        TypeError: There is no such option.
    """

    def __init__(
        self,
        items: Iterable[ItemLike],
        scorer: str | None,
        options: ScoreOptions,
        wire: Wire = JSON,
    ) -> None:
        for name in options.keys() - ScoreOptions.__annotations__.keys():
            raise TypeError(f"score() got an unexpected keyword argument {name!r}")
        self.wire = wire
        self.items = encode_items(items, wire)
        self._on_error = options.get("on_error", "raise")
        if self._on_error not in ("raise", "return"):
            message = f'must be "raise" or "return", got {self._on_error!r}'
            raise BadArgument(message, param="on_error")
        self._head = _write_head(scorer, options, wire)
        try:
            request = parse_json(RequestWithoutItems, self._head)
            others: list[Dependency] = []
            for name in request.names:
                request.credit_of(name)
                request.options_of(name)
                others += request_dependencies(request, name)
        except RequestError as error:
            raise BadArgument(error.message, param=error.param) from None
        self.names = request.names
        self.dependency = next(iter(others), None)
        self.fingerprint = None
        if any(item.has_ids for item in self.items):
            self.fingerprint = options.get("fingerprint")
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
        num_items = len(self.items)
        num_shares = -(-num_items // max_items)
        request: list[int] = []
        num_bytes = 0
        share = 0
        for position, item in enumerate(self.items):
            previous_share, share = share, position * num_shares // num_items
            if request and (share > previous_share or num_bytes + len(item.content) > max_bytes):
                yield request
                request, num_bytes = [], 0
            request.append(position)
            num_bytes += len(item.content)
        if request:
            yield request

    def body(self, positions: Sequence[int]) -> bytes:
        """The body of a request for the items at these positions, in this order."""
        return self.wire.body(self._head, [self.items[position].content for position in positions])

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
        reply = self.wire.reply(content) if isinstance(content, bytes) else content
        by_index = {item.index: item for item in reply.items}
        if len(by_index) != len(reply.items) or set(by_index) != set(range(len(positions))):
            raise BadReply(f"the reply's indices are not 0 to {len(positions) - 1}, each once")
        answers = {}
        for index, position in enumerate(positions):
            item = renumber(by_index[index], positions)
            num_units = self.items[position].num_units
            where = f"items[{position}]"
            if self._is_keyed:
                answer = read_keyed(
                    item, self.names, combined=self._is_combined, units=num_units, where=where
                )
            else:
                answer = read_single(item, reply, units=num_units, where=where)
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

    def fail(self, error: ClientError, positions: Sequence[int]) -> dict[int, Rewards]:
        """The answers of items whose request was ended by an error. Raises the error, unless errors
        are to be returned."""
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
        self._failures |= dict.fromkeys(positions, error)
        return dict.fromkeys(positions, answer)

    def collect(self, answers: Iterable[Mapping[int, Rewards]]) -> list[Rewards]:
        """The answers of all requests in the caller's order.

        Raises:
            ItemFailed: An item failed, and errors are not to be returned.
            ClientError: No item was answered: what ended the first request.
        """
        if self.items and len(self._failures) == len(self.items):
            raise self._failures[0]
        by_position: dict[int, Rewards] = {}
        for each in answers:
            by_position |= each
        in_order = [by_position[position] for position in range(len(self.items))]
        failures = [
            position for position, answer in enumerate(in_order) if first_error(answer) is not None
        ]
        if failures and self._on_error == "raise":
            first = failures[0]
            raise item_failed(first, in_order[first], num_others=len(failures) - 1)
        return in_order


def score_request(
    call: Call, positions: list[int], route: Route, attempts: Attempts
) -> Flow[dict[int, Rewards]]:
    """Send one request, and again the items whose error says that a retry may help.

    A request that is too large (413) is sent again in halves. An item that has an answer keeps it,
    if only an error, when trying again ends without a better one.

    Args:
        call: The call that the request is part of.
        positions: The positions of its items.
        route: Where it goes.
        attempts: The tries and the time that are left.

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
                route, partial(call.body, pending), attempts, call.wire.content_type
            )
            for position, answer in call.read(response.content, pending).items():
                answers[position] = call.merge(answers.get(position), answer)
        except ClientError as error:
            if isinstance(error, ServerRefused) and error.status == 413 and len(pending) > 1:
                middle = len(pending) // 2
                for half in (pending[:middle], pending[middle:]):
                    answers |= yield from score_request(call, half, route, attempts)
                return answers
            unanswered = [position for position in pending if position not in answers]
            if error.retryable and not unanswered:
                return answers
            if isinstance(error, ServerRefused) and error.param is not None:
                error.param = renumbered(error.param, pending)
            return answers | call.fail(error, unanswered)
        codes = set[str]()
        retryable = []
        for position in pending:
            item_codes = retryable_codes(answers[position])
            if item_codes:
                retryable.append(position)
                codes |= item_codes
        # A reply in which every retryable item met a full deployment tells of no room.
        if codes != {Overloaded.code}:
            attempts.window.advance()
        if not retryable:
            return answers
        pause_s = attempts.next_pause_s(codes, is_retryable=True)
        if pause_s is None or not attempts.has_time_for(pause_s):
            return answers
        pending = retryable
        yield Sleep(pause_s)


def _write_head(scorer: str | None, options: ScoreOptions, wire: Wire) -> bytes:
    """The request as JSON, all but its items."""
    names = options.get("scorers")
    if scorer is not None and names is not None:
        raise BadArgument("give `scorer` or `scorers`, not both", param="scorers")
    if isinstance(names, str):
        raise BadArgument("must be a list of names; for one scorer use `scorer`", param="scorers")
    head: dict[str, Any] = {
        "encoding_format": "base64",
        "return_tokens": options.get("return_tokens", False),
    }
    if names is None:
        head["scorer"] = scorer or DEFAULT_SCORER
    else:
        head["scorers"] = list(names)
    for name in ("options", "credit", "combine", "min_version"):
        value = options.get(name)
        if value is not None:
            head[name] = value
    try:
        content = to_json(head, inf_nan_mode="constants")
        wire.body(content, [])  # msgpack has less room for whole numbers than JSON
    except ValueError as error:
        raise BadArgument(f"the request cannot be written as {wire.name}: {error}") from None
    return content
