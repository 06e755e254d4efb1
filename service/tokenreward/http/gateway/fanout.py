"""A request that no one deployment answers by itself: its dependencies are asked first, its
sub-requests side by side, and their replies are merged into one.

A deployment that cannot answer now costs only the results that need it. A request that is wrong
for one deployment is wrong. This module knows who waits for whom, and leaves what bodies say to
`subrequests` and `questions`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tokenreward.combine import combine, has_id_units, refuse_unequal_units
from tokenreward.errors import InternalError, InvalidField, Loading, RequestError
from tokenreward.http.body import for_size
from tokenreward.http.gateway.questions import (
    needs_one_tokenizer,
    question,
    read_values,
    refuse_unlike_units,
    restated_error,
)
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.gateway.subrequests import (
    SubRequest,
    merge,
    no_reply,
    read_answer,
    subrequests_of,
    write_content,
)
from tokenreward.http.gateway.upstream import LISTING_S, ListedScorer, UpstreamCall, is_old
from tokenreward.http.gateway.upstream_answers import UpstreamRefusal
from tokenreward.http.guard import Report
from tokenreward.wire import Reply, RewardsRequest, served_name
from tokenreward.wire.dependencies import Dependency
from tokenreward.wire.reply import reply_without_work

T = TypeVar("T")
KeyT = TypeVar("KeyT")


class Fanout:
    """Answers one request with several calls.

    Args:
        request: The request.
        routes: Where each scorer is served.
        call: The calls to the deployments.
        num_bytes: The size of the body that the request was read from.
        report: Called with the errors that items get here.

    Attributes:
        num_reply_bytes: The size of all replies together, so far.
    """

    def __init__(
        self,
        request: RewardsRequest,
        routes: Mapping[str, ScorerRoute],
        *,
        call: UpstreamCall,
        num_bytes: int,
        report: Report,
    ) -> None:
        self._request = request
        self._routes = routes
        self._call = call
        self._num_bytes = num_bytes
        self._report = report
        self._content: dict[str, Any] = {}
        # Listings, by deployment, and what dependencies say. All sub-requests wait for the same.
        self._shared: dict[object, asyncio.Future[Any]] = {}
        self._codes = Counter[str]()  # of the errors that items get here
        self.num_reply_bytes = 0

    async def reply(self) -> Reply:
        """The merged reply.

        Raises:
            RequestError: The request is wrong as a whole, or its one scorer cannot answer.
        """
        subrequests = subrequests_of(self._request, self._routes)
        self._content = await for_size(
            self._num_bytes, self._request.model_dump, exclude_unset=True
        )
        tasks: list[asyncio.Future[Reply | RequestError]] = []
        try:
            await self._doubt()  # of a deployment that is down its sub-request may tell
            tasks += [asyncio.ensure_future(self._outcome(each)) for each in subrequests]
            outcomes = await asyncio.gather(*tasks)
            doubt = await self._doubt()  # again: other weights may have answered
        finally:
            # They have ended before anybody counts what the request holds: each gives back its own.
            await _end([*tasks, *self._shared.values()])
        for outcome in outcomes:
            is_alone = self._request.scorer is not None
            if isinstance(outcome, RequestError) and (is_alone or outcome.status < 500):
                raise outcome
        reply = await for_size(self.num_reply_bytes, self._merge, subrequests, outcomes, doubt)
        for code, count in self._codes.items():
            self._report("errors_total", count, code=code)
        return reply

    async def _outcome(self, subrequest: SubRequest) -> Reply | RequestError:
        try:
            return await self._answer(subrequest)
        except RequestError as error:
            return error

    async def _answer(self, subrequest: SubRequest) -> Reply:
        """The sub-request's reply about all items of the caller. Raises RequestError."""
        await self._refuse_unlike_units(subrequest)
        answers = await asyncio.gather(
            *(self._once(each, self._ask_dependency) for each in subrequest.dependencies)
        )
        subrequest.answers = dict(zip(subrequest.dependencies, answers, strict=True))
        content, positions = await for_size(self._num_bytes, subrequest.fill, self._content)
        is_keyed = self._request.scorer is None
        if positions:
            names = subrequest.names if is_keyed else ()
            try:
                reply = await self._post(subrequest.deployment, content, len(positions), names)
            except RequestError as error:
                raise restated_error(error, positions, fillers=subrequest.dependencies) from None
        else:  # no item is left to ask about
            reply = reply_without_work("", scorer=self._request.scorer)
        await self._refuse_unlike_units(subrequest)  # again: other weights may have answered
        return subrequest.complete(reply, positions, is_keyed=is_keyed)

    async def _ask_dependency(self, dependency: Dependency) -> Reply:
        """Asks a dependency about the items that lack the field which it fills. Raises
        RequestError."""
        deployment = self._routes[dependency.name].deployment
        options = await self._log_probs_options(dependency)
        content, positions = question(dependency, self._content["items"], options)
        if not positions:
            return reply_without_work("")
        try:
            reply = await self._post(deployment, content, len(positions))
        except RequestError as error:
            raise restated_error(error, positions, dependency) from None
        try:
            reply, codes = await for_size(
                self.num_reply_bytes, read_values, dependency, reply, positions
            )
        except ValueError:
            raise no_reply(deployment) from None
        self._codes.update(codes)
        return reply

    async def _log_probs_options(self, dependency: Dependency) -> Mapping[str, Any] | None:
        """The options under which a reference's values are log-probs; None for a score.

        Raises:
            InvalidField: The scorer gives no log-probs.
            RequestError: Its deployment does not list it.
        """
        if dependency.fills == "score":
            return None
        try:
            entry = await self._listing_of(dependency.name)
        except RequestError as error:
            raise restated_error(error, (), dependency) from None
        if entry.log_probs_options is None:
            kind = self._routes[dependency.name].type
            raise InvalidField(
                f"`{dependency.name}` is of type `{kind}`, which gives no log-probs",
                param=dependency.param,
            )
        return entry.log_probs_options

    async def _post(
        self, deployment: str, content: object, num_items: int, names: Sequence[str] = ()
    ) -> Reply:
        """The deployment's reply. Raises RequestError."""
        body = await for_size(self._num_bytes, write_content, content, self._call.sends)
        self._call.hold(len(body))
        answer = await self._call.post(deployment, body)
        if answer.status_code != 200:
            raise UpstreamRefusal(answer)
        num_bytes = len(answer.body)
        self.num_reply_bytes += num_bytes
        reply = await for_size(num_bytes, read_answer, answer, deployment, num_items, names)
        self._call.forget_old_listing(deployment, reply.version)
        listing = self._shared.get(deployment)
        # A listing that failed is the error of those who need it, and not of this answer.
        is_listed = listing is not None and listing.done() and listing.exception() is None
        if is_listed and is_old(self._shared[deployment].result(), reply.version):
            del self._shared[deployment]
        return reply

    async def _doubt(self) -> RequestError | None:
        """Why a deployment does not list its tokenizer now, so that rewards must not be added up.
        Raises InvalidField, and UnitsDiffer if they never can."""
        request = self._request
        if request.combine is None:
            return None
        refuse_unequal_units(request, dict.fromkeys(request.names, ""))  # spans need no tokenizer
        if not any(has_id_units(item) for item in request.items):
            return None
        try:
            async with asyncio.timeout(LISTING_S):
                refuse_unequal_units(request, await self._tokenizers(list(request.combine)))
                return None
        except TimeoutError:
            doubt: RequestError = Loading(f"tokenizers were not listed within {LISTING_S:g} s")
        except RequestError as error:
            if error.status < 500:
                raise
            doubt = error
        await _end(self._shared.values())
        self._shared.clear()  # who needs a listing later asks anew
        return doubt

    async def _refuse_unlike_units(self, subrequest: SubRequest) -> None:
        """Raises UnitsDiffer if a scorer and one of its dependencies count tokens
        otherwise; another RequestError if a deployment does not list its tokenizer."""
        name, items = subrequest.names[0], self._request.items
        for dependency in subrequest.dependencies:
            if any(needs_one_tokenizer(dependency, item) for item in items):
                tokenizers = await self._tokenizers((name, dependency.name))
                refuse_unlike_units(dependency, name, items, tokenizers)

    async def _tokenizers(self, names: Sequence[str]) -> Mapping[str, str]:
        """A string for each scorer, equal for equal tokenizers. Raises RequestError."""
        deployments = {name: self._routes[served_name(name)].deployment for name in names}
        if len(set(deployments.values())) == 1:
            return deployments  # one deployment, one tokenizer
        entries = await asyncio.gather(*(self._listing_of(name) for name in names))
        tokenizers = (entry.tokenizer for entry in entries)
        return dict(zip(names, tokenizers, strict=True))

    async def _listing_of(self, name: str) -> ListedScorer:
        """A scorer as its deployment lists it. Raises RequestError."""
        name = served_name(name)
        deployment = self._routes[name].deployment
        listing: Mapping[str, ListedScorer] = await self._once(deployment, self._call.listing)
        if name not in listing:
            raise InternalError(f"`{deployment}` does not list `{name}`")
        return listing[name]

    def _once(self, key: KeyT, ask: Callable[[KeyT], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """The answer of `ask(key)`, which is called once, however many sub-requests wait for it."""
        if key not in self._shared:
            self._shared[key] = asyncio.ensure_future(ask(key))
        return self._shared[key]

    def _merge(
        self,
        subrequests: Sequence[SubRequest],
        outcomes: Sequence[Reply | RequestError],
        doubt: RequestError | None,
    ) -> Reply:
        """The merged reply."""
        request = self._request
        replies = []
        for subrequest, outcome in zip(subrequests, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                self._codes[outcome.code] += len(request.items) * len(subrequest.names)
                outcome = subrequest.fail(outcome, len(request.items))
            replies.append(outcome)
        reply = replies[0] if request.scorer is not None else merge(replies, request.names)
        reply.id = self._call.request_id
        if request.combine is not None:
            self._codes.update(combine(reply.items, request.combine, doubt=doubt))
        return reply


async def _end(futures: Collection[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
