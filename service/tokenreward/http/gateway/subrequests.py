"""The requests that one request is split into: one for each deployment and set of dependencies.

An item is sent with the fields that its dependencies fill. An item whose dependency failed is not
sent, and has the dependency's error. It knows what stands in bodies, and no HTTP.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from pydantic_core import to_json

from tokenreward.errors import InternalError, MalformedBody, MalformedJson, RequestError
from tokenreward.http.gateway.questions import restated_reply
from tokenreward.http.gateway.scorer_routes import ScorerRoute, dependencies_of
from tokenreward.http.gateway.upstream_answers import read_body
from tokenreward.wire import (
    ErrorDetail,
    ItemResult,
    ModelVersion,
    Reply,
    RewardsRequest,
    ScorerResult,
    Timing,
    Usage,
    read_reply,
    served_name,
)
from tokenreward.wire.dependencies import Dependency
from tokenreward.wire.media import JSON, Media
from tokenreward.wire.reply import NO_TIME, reply_without_work

Content = Mapping[str, Any]


@dataclass(slots=True, eq=False)
class SubRequest:
    """Scorers of one deployment whose items are filled by the same dependencies.

    Attributes:
        deployment: Where the scorers are served.
        names: The scorers.
        dependencies: The scorers that are asked first.
        answers: The dependencies' replies about the caller's items, once they have been asked.
            A reply without items is of a dependency that nobody had to ask.
    """

    deployment: str
    names: tuple[str, ...]
    dependencies: tuple[Dependency, ...] = ()
    answers: Mapping[Dependency, Reply] = field(default_factory=dict)

    @property
    def errors(self) -> dict[int, ErrorDetail]:
        """Why an item cannot be sent, by its index: the error of the first dependency that has
        one."""
        errors: dict[int, ErrorDetail] = {}
        for dependency in self.dependencies:
            for item in self.answers[dependency].items:
                if item.error is not None:
                    errors.setdefault(item.index, item.error)
        return errors

    def fill(self, content: Content) -> tuple[dict[str, Any], list[int]]:
        """Makes the body of the sub-request.

        Args:
            content: The caller's request, as plain objects.

        Returns:
            The sub-request's plain objects, and the positions of its items among the caller's.
        """
        items, errors = content["items"], self.errors
        positions = [index for index in range(len(items)) if index not in errors]
        if self.dependencies:
            items = [dict(item) for item in items]
            for dependency in self.dependencies:
                is_score = dependency.fills == "score"
                for answer in self.answers[dependency].items:
                    value = answer.score if is_score else answer.rewards
                    items[answer.index][dependency.fills] = value
            items = [items[index] for index in positions]
        return {**self._head(content), "items": items}, positions

    def complete(self, reply: Reply, positions: Sequence[int], *, is_keyed: bool) -> Reply:
        """The reply about all items of the caller.

        Args:
            reply: The reply about the items that were sent, which is changed and returned.
            positions: Where those items stand among the caller's.
            is_keyed: Whether results are keyed by scorer name.
        """
        results = {
            index: failed_item(index, error, self.names if is_keyed else None)
            for index, error in self.errors.items()
        }
        for item in restated_reply(reply, positions, fillers=self.dependencies).items:
            results[item.index] = item
        reply.items = [results[index] for index in sorted(results)]
        answers = [self.answers[dependency] for dependency in self.dependencies]
        before = longest([answer.timing for answer in answers])
        reply.timing = Timing(
            queue_s=before.queue_s + reply.timing.queue_s,
            tokenize_s=before.tokenize_s + reply.timing.tokenize_s,
            compute_s=before.compute_s + reply.timing.compute_s,
        )
        reply.sources = {
            dependency.name: ModelVersion(model=answer.model, version=answer.version)
            for dependency, answer in zip(self.dependencies, answers, strict=True)
            if answer.items
        }
        return reply

    def fail(self, error: RequestError, num_items: int) -> Reply:
        """The reply of a deployment that could not answer: its error in each result."""
        detail = ErrorDetail.of(error)
        items = [failed_item(index, detail, self.names) for index in range(num_items)]
        return reply_without_work("", items)

    def _head(self, content: Content) -> dict[str, Any]:
        """The fields of the sub-request without its items, and without `combine`, which the
        gateway does."""
        head = {key: value for key, value in content.items() if key not in ("items", "combine")}
        if content.get("scorer") is not None:
            return {**head, **self._without_dependencies(head.get("options"), head.get("credit"))}
        head["scorers"] = list(self.names)
        head["options"], head["credit"] = {}, {}
        for name in self.names:
            options, credit = (content.get(key, {}).get(name) for key in ("options", "credit"))
            for key, entry in self._without_dependencies(options, credit).items():
                head[key][name] = entry
        return head

    def _without_dependencies(
        self, options: Mapping[str, Any] | None, credit: Mapping[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """A scorer's options and credit without the names of its dependencies, which have been
        asked."""
        options, credit = dict(options or {}), dict(credit or {})
        fields = {dependency.fills for dependency in self.dependencies}
        if "score" in fields:
            options["score_from"] = None  # not absent: the operator's default would count
        if "ref_logprobs" in fields:
            kl = credit["kl"].items()
            credit["kl"] = {key: value for key, value in kl if key != "reference"}
        return {"options": options, "credit": credit}


def subrequests_of(request: RewardsRequest, routes: Mapping[str, ScorerRoute]) -> list[SubRequest]:
    """The sub-requests of a request, in the order in which it names their first scorers. Raises as
    `dependencies_of`."""
    names: dict[tuple[str, tuple[Dependency, ...]], list[str]] = {}
    for name in request.names:
        deployment = routes[served_name(name)].deployment
        key = deployment, dependencies_of(request, name, routes)
        names.setdefault(key, []).append(name)
    return [SubRequest(key[0], tuple(group), key[1]) for key, group in names.items()]


def write_content(content: object, media: Media) -> bytes:
    """Plain objects as a body.

    Numbers that JSON does not have (NaN, 1e999, beyond 64 bits) reach the deployments as they came,
    and the deployments refuse them.

    Raises:
        MalformedJson, MalformedBody: The media cannot carry the content: it may nest less deep
            than a request may.
    """
    try:
        if media is JSON:
            return to_json(content, inf_nan_mode="constants")
        return media.dump(content)
    except (ValueError, OverflowError) as error:
        malformed = MalformedJson if media is JSON else MalformedBody
        raise malformed(f"the body cannot be split: {type(error).__name__}") from None


def read_answer(
    answer: Response, deployment: str, num_items: int, names: Sequence[str] = ()
) -> Reply:
    """The reply that a deployment's answer holds.

    Args:
        answer: The answer, with status 200.
        deployment: Who answered.
        num_items: How many items it was asked about.
        names: The scorers that its results must be keyed by; none if the request had one `scorer`.

    Raises:
        InternalError: The answer is no such reply.
    """
    try:
        content = read_body(answer)
        indices = [item["index"] for item in content["items"]]
        reply = read_reply({"id": "", **content})
    except (ValueError, TypeError, KeyError):
        raise no_reply(deployment) from None
    in_order = indices == list(range(num_items))
    if not in_order or not all((item.scorers or {}).keys() >= set(names) for item in reply.items):
        raise no_reply(deployment)
    return reply


def no_reply(deployment: str) -> InternalError:
    """A deployment answered, but not what it was asked."""
    return InternalError(
        f"`{deployment}` answered 200 with a body that is no reply to what it was asked"
    )


def failed_item(index: int, error: ErrorDetail, names: Sequence[str] | None) -> ItemResult:
    """The result of an item that no deployment has answered; keyed by `names` if there are any."""
    if names is None:
        return ItemResult(index=index, error=error)
    return ItemResult(index=index, scorers={name: ScorerResult(error=error) for name in names})


def merge(replies: Sequence[Reply], names: Sequence[str]) -> Reply:
    """One reply with every scorer's result in each item, in the caller's order.

    Stages ran side by side, so the longest counts. Tokens were read by each deployment, so they add
    up.
    """
    columns = zip(*(reply.items for reply in replies), strict=True)
    sources = [reply.sources or {} for reply in replies]
    return Reply(
        id="",
        items=[_merge_item(column, names) for column in columns],
        usage=Usage(
            prompt_tokens=sum(reply.usage.prompt_tokens for reply in replies),
            response_tokens=sum(reply.usage.response_tokens for reply in replies),
        ),
        timing=longest([reply.timing for reply in replies]),
        sources=dict(ChainMap(*sources)),
    )


def _merge_item(column: Sequence[ItemResult], names: Sequence[str]) -> ItemResult:
    results = ChainMap(*(item.scorers or {} for item in column))
    tokens = [item.tokens for item in column if item.tokens is not None]
    # Deployments with other tokenizers scored other tokens: then no one list is the item's.
    is_same = all(other == tokens[0] for other in tokens)
    return ItemResult(
        index=column[0].index,
        tokens=tokens[0] if tokens and is_same else None,
        scorers={name: results[name] for name in names},
    )


def longest(timings: Sequence[Timing]) -> Timing:
    """The longest time of each stage: the timing of requests that ran side by side."""
    if not timings:
        return NO_TIME
    return Timing(
        queue_s=max(timing.queue_s for timing in timings),
        tokenize_s=max(timing.tokenize_s for timing in timings),
        compute_s=max(timing.compute_s for timing in timings),
    )
