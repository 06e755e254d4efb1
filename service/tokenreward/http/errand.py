"""One request's errand to the deployments: its parts are sent when their sources have told what
they fill.

Each source is asked once, however many parts wait for it. It knows who waits for whom; what bodies
say is for `parts` and `sources`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenreward.errors import InternalError, RequestError
from tokenreward.http.dependencies import (
    NO_TIME,
    Source,
    Told,
    needs_one_tokenizer,
    question,
    refuse_unlike_units,
    renumbered_error,
    told,
)
from tokenreward.http.guard import for_size
from tokenreward.http.route import Route
from tokenreward.http.subrequests import (
    NO_USAGE,
    Content,
    Part,
    Reply,
    completed,
    draft,
    no_reply,
    read_reply,
    written,
)
from tokenreward.http.upstream import Answer, Passage
from tokenreward.wire import RewardsRequest

Outcome = Reply | Answer | RequestError


class _Refused(Exception):
    """A deployment's answer that is no 200."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class Errand:
    """`content` is what `request` was read from, `num_bytes` its size."""

    def __init__(
        self,
        request: RewardsRequest,
        content: Content,
        routes: Mapping[str, Route],
        *,
        passage: Passage,
        num_bytes: int,
    ) -> None:
        self._request = request
        self._content = content
        self._routes = routes
        self._passage = passage
        self._num_bytes = num_bytes
        self._listings: dict[str, asyncio.Future[list[dict[str, Any]]]] = {}
        self._told: dict[Source, asyncio.Future[Told]] = {}
        self.num_bytes_back = 0

    async def outcome(self, part: Part) -> Outcome:
        """The part's reply about all items, or why there is none."""
        try:
            return await self._reply(part)
        except _Refused as refused:
            return refused.answer
        except RequestError as error:
            return error

    async def tokenizers(self, names: Sequence[str]) -> Mapping[str, str]:
        """By scorer, what is equal for equal tokenizers. Raises RequestError."""
        deployments = {name: self._routes[name].deployment for name in names}
        if len(set(deployments.values())) == 1:
            return deployments  # one deployment, one tokenizer
        listings = await asyncio.gather(
            *(self._listing(name) for name in dict.fromkeys(deployments.values()))
        )
        found = {name: tokenizer for listing in listings for name, tokenizer in listing.items()}
        for name in names:
            if name not in found:
                raise InternalError(f"`{deployments[name]}` does not list `{name}`")
        return found

    def stop(self) -> None:
        """Nothing that is still under way is waited for."""
        under_way: list[asyncio.Future[Any]] = [*self._listings.values(), *self._told.values()]
        for asked in under_way:
            asked.cancel()

    async def _reply(self, part: Part) -> Reply:
        await self._refuse_unlike_units(part)
        answers = dict(
            zip(part.sources, await asyncio.gather(*map(self._tell, part.sources)), strict=True)
        )
        drafted = await for_size(
            self._num_bytes, draft, self._content, part, answers, self._passage.sends
        )
        keyed = self._request.scorers is not None
        if drafted.positions:
            answer = await self._passage.post(part.deployment, drafted.body)
            if answer.status != 200:
                raise _Refused(
                    _restated(answer, lambda error: renumbered_error(error, drafted.positions))
                )
            reply = await self._read(
                answer, part.deployment, drafted.positions, part.names if keyed else ()
            )
        else:  # nobody is left to ask about
            reply = {"scorer": self._request.scorer, "model": None, "version": None, "items": []}
            reply |= {"usage": NO_USAGE, "timing": NO_TIME}
        return completed(reply, part, drafted, answers, keyed=keyed)

    async def _refuse_unlike_units(self, part: Part) -> None:
        """Raises UnitsDiffer, or why a deployment does not list its tokenizer."""
        asker, items = part.names[0], self._request.items
        for source in part.sources:
            if any(needs_one_tokenizer(source, item) for item in items):
                tokenizers = await self.tokenizers((asker, source.name))
                refuse_unlike_units(source, asker, items, tokenizers=tokenizers)

    async def _tell(self, source: Source) -> Told:
        """What a source says; parts that need the same wait for the one answer."""
        if source not in self._told:
            self._told[source] = asyncio.ensure_future(self._ask(source))
        return await self._told[source]

    async def _ask(self, source: Source) -> Told:
        route = self._routes[source.name]
        asked, positions = question(source, route.type, self._content["items"])
        if not positions:
            return Told()
        try:
            body = await for_size(self._num_bytes, written, asked, self._passage.sends)
            answer = await self._passage.post(route.deployment, body)
        except RequestError as error:
            raise type(error)(
                source.says(error.message), retry_after_s=error.retry_after_s
            ) from None
        if answer.status != 200:
            raise _Refused(_restated(answer, lambda error: source.restated(error, positions)))
        reply = await self._read(answer, route.deployment, positions, ())
        try:
            return await for_size(len(answer.body), told, source, reply, positions)
        except ValueError:
            raise no_reply(route.deployment) from None

    async def _read(
        self, answer: Answer, deployment: str, positions: Sequence[int], names: Sequence[str]
    ) -> Reply:
        self.num_bytes_back += len(answer.body)
        return await for_size(
            len(answer.body), read_reply, answer, deployment, len(positions), names
        )

    async def _listing(self, deployment: str) -> dict[str, str]:
        """The tokenizers of a deployment's scorers."""
        if deployment not in self._listings:
            self._listings[deployment] = asyncio.ensure_future(self._passage.scorers(deployment))
        return {entry["name"]: entry["tokenizer"] for entry in await self._listings[deployment]}


def _restated(answer: Answer, restate: Callable[[dict[str, Any]], dict[str, Any]]) -> Answer:
    """The same refusal, with its error in the words of the caller's request."""
    error = restate(answer.media.load(answer.body)["error"])
    return Answer(answer.status, answer.media.dump({"error": error}), answer.headers)
