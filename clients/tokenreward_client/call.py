"""One `score` call: its items cut into requests, sent, re-sent where that helps, and put back in
order.

It knows the two wire models and yields flows; which path a request takes and when it is retried is
`flow`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar

from pydantic_core import to_json

from tokenreward.errors import Overloaded, RequestError
from tokenreward.wire import ErrorDetail, ItemReply, RewardsRequest, ScorerResult, parse_json
from tokenreward.wire.numbering import renumbered
from tokenreward_client.errors import BadArgument, BadReply, ClientError, ItemFailed, ServerRefused
from tokenreward_client.flow import Attempts, Flow, Road, Sleep, answered
from tokenreward_client.items import ItemLike, pack
from tokenreward_client.media import JSON, Wire, read_reply
from tokenreward_client.rewards import Rewards, first_error, read_keyed, read_single

DEFAULT_SCORER = "endogenous"

ResultT = TypeVar("ResultT", bound=ScorerResult)


class Asked(TypedDict, total=False):
    """What `score` may be asked besides items and scorer.

    `options`, `credit`: as on the wire; keyed by scorer name with `scorers`. `combine`: weights per
    scorer name. `on_error`: "raise" (default) raises ItemFailed for the first failed item, once all
    are done, and what ends a request at once. "return" leaves the error in its Rewards: the item's,
    or what ended its request, with the service's code where it gave one, else `deadline_exceeded`,
    `connection_failed`, `bad_reply` or, from a proxy, `http_502` and the like. Only if no item was
    answered is what ended the first request raised. `timeout_s`: deadline of this call, in place of
    the client's. `fingerprint`: of the tokenizer that made the items' ids,
    `fingerprint(tokenizer.get_vocab())`. Ids are sent only if every scorer asked lists the same
    one; else, nothing sent, BadArgument, or the error that kept the listing away. Without it ids
    are trusted.
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


class Batch:
    """Items ready to travel and what was asked about them. Raises BadArgument for what the wire
    would refuse."""

    def __init__(
        self, items: Iterable[ItemLike], scorer: str | None, asked: Asked, wire: Wire = JSON
    ) -> None:
        for name in asked.keys() - Asked.__annotations__.keys():
            raise TypeError(f"score() got an unexpected keyword argument {name!r}")
        self.wire = wire
        self.parcels = pack(items, wire)
        self.on_error = asked.get("on_error", "raise")
        if self.on_error not in ("raise", "return"):
            raise BadArgument(
                f'`on_error` must be "raise" or "return", got {self.on_error!r}', param="on_error"
            )
        self._head = _head(scorer, asked, wire)
        try:
            request = parse_json(
                RewardsRequest, JSON.body(self._head, [b'{"prompt":"","response":""}'])
            )
            # Only the gateway asks one scorer on behalf of another; this is where the request names
            # it.
            self.names_another = _names_another(request)
        except RequestError as error:
            raise BadArgument(error.message, param=error.param) from None
        self.names = request.names
        self.fingerprint = (
            asked.get("fingerprint") if any(parcel.has_ids for parcel in self.parcels) else None
        )
        self.keyed = request.scorers is not None
        self.combined = request.combine is not None
        self._unanswered: dict[int, ClientError] = {}

    def body(self, positions: Sequence[int]) -> bytes:
        """The request for these items, in this order."""
        return self.wire.body(
            self._head, [self.parcels[position].written for position in positions]
        )

    def parts(self, *, max_items: int, max_bytes: int) -> Iterator[list[int]]:
        """Positions in order, cut into requests of about equal size; an item larger than
        `max_bytes` goes alone."""
        num_items = len(self.parcels)
        num_parts = -(-num_items // max_items)
        part: list[int] = []
        num_bytes = 0
        for position, parcel in enumerate(self.parcels):
            new_share = position * num_parts // num_items > (position - 1) * num_parts // num_items
            if part and (new_share or num_bytes + len(parcel.written) > max_bytes):
                yield part
                part, num_bytes = [], 0
            part.append(position)
            num_bytes += len(parcel.written)
        if part:
            yield part

    def read(self, content: bytes | dict[str, Any], positions: Sequence[int]) -> dict[int, Rewards]:
        """A 200's body, or the same as an object: one answer per position asked. Raises
        BadReply."""
        reply = self.wire.reply(content) if isinstance(content, bytes) else read_reply(content)
        by_index = {item.index: item for item in reply.items}
        if len(by_index) != len(reply.items) or set(by_index) != set(range(len(positions))):
            raise BadReply(f"the reply's indices are not 0 to {len(positions) - 1}, each once")
        answers = {}
        for index, position in enumerate(positions):
            item, units, where = by_index[index], self.parcels[position].units, f"items[{position}]"
            item = _renumbered(item, positions)
            if self.keyed:
                answer = read_keyed(
                    item, self.names, combined=self.combined, units=units, where=where
                )
            else:
                answer = read_single(item, reply, units=units, where=where)
            answers[position] = replace(answer, sources=reply.sources, request_id=reply.id)
        return answers

    def merged(self, old: Rewards | None, new: Rewards) -> Rewards:
        """A re-sent item's answer. A scorer that was fine before and failed now keeps its result,
        unless the results are combined, or its sources have other weights now: such vectors belong
        to the one reply they came with."""
        if (
            old is None
            or old.scorers is None
            or self.combined
            or new.scorers is None
            or new.error is not None
        ):
            return new
        if any(
            old.sources[name] != new.sources[name]
            for name in old.sources.keys() & new.sources.keys()
        ):
            return new
        kept = {
            name: _better(old.scorers.get(name), result) for name, result in new.scorers.items()
        }
        return replace(new, scorers=kept, sources={**old.sources, **new.sources})

    def given_up(self, error: ClientError, positions: Iterable[int]) -> dict[int, Rewards]:
        """The answers where none came: what ended the request. Raises it if errors are to be
        raised."""
        if self.on_error == "raise":
            raise error
        code = (
            f"http_{error.status}"
            if isinstance(error, ServerRefused) and error.code is None
            else error.code
        )
        param = error.param if isinstance(error, ServerRefused) else None
        detail = ErrorDetail(
            code=code or "failed",
            message=str(error.args[0]),
            param=param,
            retryable=error.retryable,
        )
        answer = Rewards(None, error=detail, scorers={} if self.keyed else None)
        answers = dict.fromkeys(positions, answer)
        self._unanswered |= dict.fromkeys(answers, error)
        return answers

    def in_order(self, parts: Iterable[Mapping[int, Rewards]]) -> list[Rewards]:
        """The answers of all parts in the caller's order. Raises ItemFailed if errors are to be
        raised, and what ended the first request if no item was answered."""
        if self.parcels and len(self._unanswered) == len(self.parcels):
            raise self._unanswered[0]
        by_position = {position: rewards for part in parts for position, rewards in part.items()}
        answers = [by_position[position] for position in range(len(self.parcels))]
        failed = [
            position for position, rewards in enumerate(answers) if first_error(rewards) is not None
        ]
        if failed and self.on_error == "raise":
            raise _item_failed(failed[0], answers[failed[0]], others=len(failed) - 1)
        return answers


def part_flow(
    batch: Batch, positions: list[int], road: Road, attempts: Attempts
) -> Flow[dict[int, Rewards]]:
    """One request, and again for the items whose error says that a retry may help. A 413 is sent
    again in halves.

    Once items have an answer, giving up on the rest leaves their last error in place. Raises as
    `answered`, unless errors are to be returned.
    """
    answers: dict[int, Rewards] = {}
    pending = positions
    while pending:
        try:
            response = yield from answered(
                road, partial(batch.body, pending), attempts, batch.wire.content_type
            )
            for position, rewards in batch.read(response.content, pending).items():
                answers[position] = batch.merged(answers.get(position), rewards)
            codes = {
                position: found
                for position in pending
                if (found := _may_improve(answers[position]))
            }
            pending = list(codes)
            said: set[str] = set().union(*codes.values())
            if said != {Overloaded.code}:
                attempts.window.advance()
            if pending:
                error = _item_failed(pending[0], answers[pending[0]], others=len(pending) - 1)
                error.retryable = True
                yield Sleep(attempts.pause_s(error, codes=said))
        except ClientError as error:
            if isinstance(error, ServerRefused) and error.status == 413 and len(pending) > 1:
                for half in (pending[: len(pending) // 2], pending[len(pending) // 2 :]):
                    answers |= yield from part_flow(batch, half, road, attempts)
                return answers
            if error.retryable and all(position in answers for position in pending):
                return answers
            if isinstance(error, ServerRefused) and error.param is not None:
                error.param = renumbered(error.param, pending)
            return answers | batch.given_up(
                error, [position for position in pending if position not in answers]
            )
    return answers


def _names_another(request: RewardsRequest) -> str | None:
    """Path of the first reference or score source. Raises RequestError: options or credit that the
    wire refuses."""
    found = []
    for name in request.names:
        below = "" if request.scorer is not None else f".{name}"
        kl, options = request.credit_of(name).kl, request.options_of(name)
        if kl is not None and kl.reference is not None:
            found.append(f"credit{below}.kl.reference")
        if options.get("score_from") is not None:
            found.append(f"options{below}.score_from")
    return next(iter(found), None)


def _head(scorer: str | None, asked: Asked, wire: Wire) -> bytes:
    """The request as JSON, all but its items."""
    if scorer is not None and asked.get("scorers") is not None:
        raise BadArgument("give `scorer` or `scorers`, not both", param="scorers")
    names = asked.get("scorers")
    if isinstance(names, str):
        raise BadArgument("must be a list of names; for one scorer use `scorer`", param="scorers")
    head: dict[str, Any] = {
        "encoding_format": "base64",
        "return_tokens": asked.get("return_tokens", False),
    }
    head |= {"scorer": scorer or DEFAULT_SCORER} if names is None else {"scorers": list(names)}
    for name in ("options", "credit", "combine", "min_version"):
        value = asked.get(name)
        if value is not None:
            head[name] = value
    try:
        written = to_json(head, inf_nan_mode="constants")
        wire.body(written, [])
    except ValueError as error:
        raise BadArgument(f"the request cannot be written as {wire.name}: {error}") from None
    return written


def _renumbered(result: ResultT, positions: Sequence[int]) -> ResultT:
    """The same result with `items[...]` in its errors counting the caller's items."""
    changes: dict[str, Any] = {}
    if isinstance(result, ItemReply) and result.scorers is not None:
        changes["scorers"] = {
            name: _renumbered(each, positions) for name, each in result.scorers.items()
        }
    if result.error is not None:
        param = result.error.param
        if param is not None:
            param = renumbered(param, positions)
        changes["error"] = result.error.model_copy(update={"param": param})
    return result.model_copy(update=changes) if changes else result


def _better(old: Rewards | None, new: Rewards) -> Rewards:
    return old if old is not None and old.error is None and new.error is not None else new


def _may_improve(rewards: Rewards) -> set[str]:
    """The codes of the errors that another try may cure."""
    errors: list[ErrorDetail | None] = [
        rewards.error,
        *(result.error for result in (rewards.scorers or {}).values()),
    ]
    return {error.code for error in errors if error is not None and error.retryable}


def _item_failed(position: int, rewards: Rewards, *, others: int) -> ItemFailed:
    found = first_error(rewards)
    if found is None:
        raise BadReply(f"items[{position}] failed without an error")
    scorer, detail = found
    where = detail.param or f"items[{position}]"
    scorer_note = f" ({scorer})" if scorer is not None else ""
    more = f"; and {others} more items failed" if others else ""
    message = f"{where}{scorer_note}: {detail.code}: {detail.message}{more}"
    return ItemFailed(message, index=position, code=detail.code, param=detail.param, scorer=scorer)
