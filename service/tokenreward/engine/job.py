"""A job: one item on its way through the engine, from its samples to its place in the reply.

Rows that several scorers ask for are read once. A job knows its own error; it never fails its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tokenreward import credit as credits
from tokenreward.batching import Entry
from tokenreward.contract import Needs, Outputs, RowRequest
from tokenreward.engine.postprocess import Plan, failed, judge, result, scorer_failed, shown_tokens
from tokenreward.engine.preprocess import Prepared, Preprocessor, Prompts
from tokenreward.errors import ItemError, RequestError
from tokenreward.forward.packing import shared_key
from tokenreward.wire import IdsB64, Item, Message, RewardsRequest

Rows = list[RowRequest]

# In characters, of which the tokenizer reads a thousand in some 0.3 ms: an item's own cost, and a
# thread's.
_ITEM = 250
_LIGHT = 1500

# In characters: options that name modes fit, and no template that shows an item more than a few
# times.
_SHORT_OPTIONS = 32

_CHARACTERS_OF_A_TOKEN = 8  # more than are in one of almost any text


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the device gave for one job: outputs of its rows or its error; how long it waited and
    its batch took."""

    outputs: list[Outputs] | ItemError
    batch_number: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """`rows_of[scorer]`: which of `rows` that scorer reads, or why it reads none. `entry`: its
    place in the queue."""

    index: int
    prepared: Prepared | None = None
    error: ItemError | None = None
    rows: Rows = field(default_factory=list)
    rows_of: dict[str, list[int] | ItemError] = field(default_factory=dict)
    entry: Entry[Rows, Outcome] | None = None

    @property
    def param(self) -> str:
        """Where the item stands in the request."""
        return f"items[{self.index}]"

    @property
    def num_tokens(self) -> int:
        """Tokens that the model will read for it."""
        return sum(len(row.ids) for row, _ in self.rows)

    @property
    def prompts(self) -> tuple[tuple[Hashable, int], ...]:
        """What a batch computes once for all jobs that read it: prompts long enough to share, with
        their tokens."""
        keyed = ((row, shared_key(row)) for row, _ in self.rows)
        return tuple(((row.model, key), row.start) for row, key in keyed if key is not None)

    @property
    def outcome(self) -> Outcome:
        """Of a job whose entry is done, or that needed no pass."""
        return Outcome([]) if self.entry is None else self.entry.future.result()


def is_light(request: RewardsRequest, plans: Sequence[Plan]) -> bool:
    """Whether its jobs and its reply are made sooner than another thread is told of them and has
    told the result.

    Texts among the options that somebody chose, request or operator, are read with every item, or
    show it many times.
    """
    items = request.items
    if (
        request.return_tokens
        or len(items) * _ITEM > _LIGHT
        or any(item.messages is not None for item in items)
    ):
        return False
    chosen = (
        getattr(plan.options, name) for plan in plans for name in plan.options.model_fields_set
    )
    if sum(len(str(value)) for value in chosen) > _SHORT_OPTIONS:
        return False
    return sum(_ITEM + _length(item.prompt) + _length(item.response) for item in items) <= _LIGHT


def num_tokens_at_least(request: RewardsRequest) -> int:
    """What its items count for until they are tokenised: one token each, or so few that hardly any
    text has fewer."""
    lengths = (_length(item.prompt) + _length(item.response) for item in request.items)
    return sum(max(1, length // _CHARACTERS_OF_A_TOKEN) for length in lengths)


def _length(part: Any) -> int:
    """Characters of a text, of its messages' contents or of packed ids; of a list, its ids."""
    if isinstance(part, list) and part and isinstance(part[0], Message):
        return sum(len(message.content or ()) for message in part)
    return len(part.ids_b64 if isinstance(part, IdsB64) else part)


def make_jobs(
    request: RewardsRequest,
    plans: Sequence[Plan],
    intake: Preprocessor,
    is_over: Callable[[], bool],
) -> list[Job]:
    """A job for each item; those left once it `is_over` are not made, as nobody waits for them."""
    prompts = Prompts()
    left = takewhile(lambda _: not is_over(), enumerate(request.items))
    return [_make_job(item, index, plans, intake, prompts) for index, item in left]


def _make_job(
    item: Item, index: int, plans: Sequence[Plan], intake: Preprocessor, prompts: Prompts
) -> Job:
    """The item's rows for all scorers, each distinct row once."""
    job = Job(index)
    try:
        job.prepared = intake.prepare(item, index=index, prompts=prompts)
    except ItemError as error:
        job.error = error.within(job.param)
        return job
    except RequestError as error:
        raise error.within(job.param) from None
    places: dict[tuple[str, int, int, bytes], int] = {}
    for plan in plans:
        try:
            requests = _requests(job.prepared, plan, intake)
        except ItemError as error:
            job.rows_of[plan.name] = error.within(job.param)
            continue
        except Exception as error:
            job.rows_of[plan.name] = scorer_failed(plan.name, error).within(job.param)
            continue
        own = []
        for row, needs in requests:
            key = (row.model, row.start, row.stop, row.ids.tobytes())
            place = places.setdefault(key, len(job.rows))
            if place == len(job.rows):
                job.rows.append(RowRequest(row, needs))
            else:
                job.rows[place] = RowRequest(row, job.rows[place].needs | needs)
            own.append(place)
        job.rows_of[plan.name] = own
    return job


def _requests(prepared: Prepared, plan: Plan, intake: Preprocessor) -> list[RowRequest]:
    """What one scorer wants to be read of an item. Raises ItemError, and ValueError or TypeError
    for a scorer that does not keep to the contract."""
    item = prepared.item
    credits.check_logprobs(
        plan.credit, len(prepared.scored), item.policy_logprobs, item.ref_logprobs
    )
    rows, needs = plan.scorer.rows(prepared.sample, plan.options), plan.needs
    if not {row.model for row in rows} <= plan.scorer.models:
        # Another model might not be there.
        raise ValueError("a scorer's rows go to the models that it names")
    if not isinstance(needs, Needs):
        # The needs of several scorers are joined.
        raise TypeError("a scorer says what it needs as Needs")
    labels = plan.scorer.labels(plan.options, prepared.sample.tokenizer)
    if labels:
        needs |= Needs(labels=labels)
    for row in rows:
        intake.check_row(row, needs)
    return [RowRequest(row, needs) for row in rows]


def reply_item(
    job: Job, request: RewardsRequest, plans: Sequence[Plan], intake: Preprocessor
) -> dict[str, Any]:
    """The item as the reply shows it; with `scorers`, results are keyed by name."""
    results = {plan.name: _result(job, plan, request.encoding_format) for plan in plans}
    tokens = None
    if request.return_tokens and job.prepared is not None:
        tokens = shown_tokens(job.prepared, intake.vocabulary)
    if request.scorer is not None:
        return {"index": job.index, **results[request.scorer], "tokens": tokens}
    return {
        "index": job.index,
        "rewards": None,
        "score": None,
        "tokens": tokens,
        "error": None,
        "scorers": results,
    }


def _result(job: Job, plan: Plan, encoding: str) -> dict[str, Any]:
    if job.prepared is None:
        assert job.error is not None
        return failed(job.error)
    places, outputs = job.rows_of[plan.name], job.outcome.outputs
    for error in (places, outputs):
        if isinstance(error, ItemError):
            return failed(error)
    assert isinstance(places, list)
    assert isinstance(outputs, list)
    try:
        judged = judge(plan, job.prepared, [outputs[place] for place in places])
    except ItemError as error:
        return failed(error.within(job.param))
    return result(judged, encoding=encoding)
