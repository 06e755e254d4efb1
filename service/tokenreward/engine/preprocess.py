"""Before the queue: items become samples in the scorer's own tokens, and jobs with rows to read.

    item -> prompt ids, response ids -> units of the caller -> Sample -> rows of each scorer -> Job

What is wrong with an item is found here as far as it can be, before it costs device time. This
module knows no batches and no device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tokenreward import credit as credits
from tokenreward.contract import Needs, RequestBudget, Row, RowRequest, Sample
from tokenreward.engine.job import Job
from tokenreward.engine.plan import Plan, scorer_failed
from tokenreward.engine.skipped import without_skipped
from tokenreward.engine.units import check_ids, refuse_empty, units_of
from tokenreward.engine.whole import num_first_text, sequence_tokens, with_parts
from tokenreward.errors import (
    EmptyResponse,
    ItemError,
    RequestError,
    SequenceTooLong,
    TokenOutOfVocabulary,
)
from tokenreward.text.conversation import templated_tokens
from tokenreward.text.messages import refuse_answered
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import Item, RewardsRequest, decode_ids

Ids = Int64[np.ndarray, " _"]  # arrays of one function may differ in length
# By kind and text: a raw prompt may be the very text that stands for another item's messages.
Prompts = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Turns items into jobs for one checkpoint.

    Attributes:
        tokenizer: The checkpoint's.
        vocab_size: Number of ids that the model reads.
        num_labels: Number of ids that the model predicts.
        max_sequence_tokens: Longest row; None if there is no limit.
        suffix_ids: What a reward model reads after the response.
        skipped_id: The token that the model's class passes over at the end of a row, as padding.
        reads_conversation: Whether messages and a response of text are read as the chat template
            renders them together.
        predicts: Whether the model predicts tokens; if not, it has a value head at every token.
    """

    tokenizer: Tokenizer
    vocab_size: int
    num_labels: int
    max_sequence_tokens: int | None
    suffix_ids: Ids
    skipped_id: int | None = None
    reads_conversation: bool = False
    predicts: bool = True

    def jobs(
        self, request: RewardsRequest, plans: Sequence[Plan], is_abandoned: Callable[[], bool]
    ) -> Iterator[Job]:
        """Makes a job for each item, in order.

        Args:
            request: The request.
            plans: What it wants of each scorer.
            is_abandoned: Asked before each item. Once it is true, the caller has gone, and the
                remaining items are skipped.

        Raises:
            RequestError: A field cannot be decoded at all.
        """
        prompts: Prompts = {}
        budget = RequestBudget()
        for index, item in enumerate(request.items):
            if is_abandoned():
                break
            job = Job(index=index)
            try:
                self._read(job, item, prompts, budget)
            except ItemError as error:
                job.error = error.within(job.param)
            except RequestError as error:
                raise error.within(job.param) from None
            else:
                self._add_rows(job, plans)
            yield job

    def _read(self, job: Job, item: Item, prompts: Prompts, budget: RequestBudget) -> None:
        """Tokenises an item, and finds the unit of each token.

        Args:
            job: Gets the sample and its units.
            item: What the caller wrote.
            prompts: The prompts of the request so far, for the responses of a group, which bring
                the same prompt again and again.
            budget: Of the request.

        Raises:
            ItemError: The item cannot be scored.
            RequestError: A field cannot be decoded at all.
        """
        item = with_parts(item, self.tokenizer)
        prompt_ids, response_ids, ends, suffix_ids, num_first = self._tokens(item, prompts)
        check_ids(prompt_ids, self.vocab_size, param="prompt")
        check_ids(response_ids, self.num_labels, param="response")
        num_suffix = len(suffix_ids)
        total = len(prompt_ids) + len(response_ids) + num_suffix
        if self.max_sequence_tokens is not None and total > self.max_sequence_tokens:
            raise SequenceTooLong(
                f"{len(prompt_ids)} prompt + {len(response_ids)} response + {num_suffix} suffix = "
                f"{total} tokens, `max_sequence_tokens` is {self.max_sequence_tokens}",
                param="response",
            )
        job.unit_of_token, job.scored = units_of(item, len(response_ids), ends)
        job.sample = Sample(
            prompt_ids,
            response_ids,
            terminal=int(response_ids[-1]) in self.tokenizer.terminal_ids,
            keep=job.scored[job.unit_of_token],
            item=item,
            tokenizer=self.tokenizer,
            suffix_ids=suffix_ids,
            ends=ends,
            num_first=num_first,
            budget=budget,
        )
        if not job.sample.keep.any():
            raise EmptyResponse("no token is left to score", param="mask")

    def _tokens(self, item: Item, prompts: Prompts) -> tuple[Ids, Ids, Ids | None, Ids, int | None]:
        """The ids of an item's prompt and response, where the characters of each token of the
        response end, the ids that are read behind it, and `Sample.num_first`."""
        ends: Ids | None = None  # of a sequence, no unit of the caller is a place in the text
        suffix_ids, num_first = self.suffix_ids, None
        refuse_answered(item.messages or [], param="prompt")
        if self.reads_conversation and item.messages and isinstance(item.response, str):
            refuse_empty(item)
            prompt_ids, response_ids, ends, suffix_ids = templated_tokens(
                self.tokenizer,
                item.messages,
                item.response,
                tools=item.tools,
                variables=item.chat_template_kwargs,
                finished=item.finished is not False,
            )
            if item.whole == "sequence":
                response_ids = np.concatenate([prompt_ids, response_ids])
                num_first, prompt_ids, ends = len(prompt_ids), prompt_ids[:0], None
        elif item.whole == "sequence":
            prompt_ids, response_ids, suffix_ids, num_first = self._sequence(item, prompts)
        else:
            prompt_ids = self._shared_prompt(item, prompts)
            response_ids, ends = self._response(item)
        if not len(response_ids):
            raise EmptyResponse("the response has no tokens", param="response")
        return prompt_ids, response_ids, ends, suffix_ids, num_first

    def _add_rows(self, job: Job, plans: Sequence[Plan]) -> None:
        """Adds the rows of all scorers, each distinct row once."""
        places: dict[tuple[object, ...], int] = {}
        for plan in plans:
            try:
                requests = self._requests(job, plan)
            except ItemError as error:
                job.rows_of[plan.name] = error.within(job.param)
                continue
            except Exception as error:
                job.rows_of[plan.name] = scorer_failed(plan.name, error).within(job.param)
                continue
            own = []
            for whole, needs in requests:
                row = without_skipped(whole, needs, self.skipped_id)
                num_skipped = (len(whole.ids) - len(row.ids), whole.stop - row.stop)
                bounds = (row.start, row.stop, row.num_first)
                key = (row.model, bounds, num_skipped, row.ids.tobytes())
                place = places.setdefault(key, len(job.requests))
                if place == len(job.requests):
                    job.requests.append(RowRequest(row, needs))
                else:
                    job.requests[place] = RowRequest(row, job.requests[place].needs | needs)
                job.num_skipped[place] = num_skipped
                own.append(place)
            job.rows_of[plan.name] = own
        job.count_tokens()

    def _requests(self, job: Job, plan: Plan) -> list[RowRequest]:
        """What one scorer wants to be read of an item.

        Raises:
            ItemError: The item cannot be read so.
            Exception: The scorer does not keep to the contract.
        """
        item, scorer = job.sample.item, plan.scorer
        credits.check_logprobs(
            plan.credit, len(job.scored), item.policy_logprobs, item.ref_logprobs
        )
        rows, needs = scorer.rows(job.sample, plan.options), plan.needs
        if not {row.model for row in rows} <= scorer.models:
            # The deployment may not have loaded another model.
            raise ValueError("a scorer's rows go to the models that it names")
        if not isinstance(needs, Needs):
            # Needs of several scorers are joined below.
            raise TypeError("a scorer says what it needs as Needs")
        labels = scorer.labels(plan.options, job.sample.tokenizer)
        if labels:
            needs |= Needs(labels=labels)
        if needs.top_k is not None and needs.top_k > self.num_labels:
            raise TokenOutOfVocabulary(
                f"`top_k` is {needs.top_k}, the model predicts {self.num_labels} tokens"
            )
        for row in rows:
            self._check_row(row, needs)
            job.sample.budget.spend_numbers(needs.num_of_tokens(row.stop - row.start))
        return [RowRequest(row, needs) for row in rows]

    def _check_row(self, row: Row, needs: Needs) -> None:
        """Refuses a row that the model cannot read. Raises SequenceTooLong,
        TokenOutOfVocabulary."""
        predicted = np.concatenate([row.ids[row.start : row.stop], np.array([*needs.labels], int)])
        for ids, size, verb in (
            (row.ids, self.vocab_size, "reads"),
            (predicted, self.num_labels, "predicts"),
        ):
            if len(ids) and not 0 <= ids.min() <= ids.max() < size:
                raise TokenOutOfVocabulary(
                    f"the tokenizer or an option gives an id that is outside of the ids 0 to "
                    f"{size - 1} that the model {verb}"
                )
        if self.max_sequence_tokens is not None and len(row.ids) > self.max_sequence_tokens:
            raise SequenceTooLong(
                f"the item is {len(row.ids)} tokens as this scorer reads it, "
                f"`max_sequence_tokens` is {self.max_sequence_tokens}"
            )

    def _sequence(self, item: Item, prompts: Prompts) -> tuple[Ids, Ids, Ids, int]:
        """The ids of an item whose prompt is scored, too (see `sequence_tokens`), and how many are
        the first text's. An empty prompt is none: text begins as text does, and ids are read as
        they are."""
        is_lone = isinstance(item.prompt, str) and not item.prompt
        response_ids, _ = self._response(item, is_lone=is_lone)
        if is_lone:
            prompt_ids = np.empty(0, dtype=np.int64)
            if isinstance(item.response, str):
                response_ids = self.tokenizer.with_bos(response_ids)
        elif isinstance(item.prompt, str) or item.messages is not None:
            prompt_ids = self._shared_prompt(item, prompts)
        else:
            prompt_ids = decode_ids(item.prompt, param="prompt")  # type: ignore[arg-type]
        parts = (prompt_ids, response_ids, self.suffix_ids)
        num_first = num_first_text(item, self.tokenizer, *parts)
        return *sequence_tokens(*parts, predicts=self.predicts), num_first

    def _shared_prompt(self, item: Item, prompts: Prompts) -> Ids:
        """The ids of an item's prompt, read-only if other items may share them."""
        if item.whole == "conversation":
            return self.tokenizer.prompt_from_conversation(str(item.prompt), param="response")
        if isinstance(item.prompt, str):
            key = ("text", item.prompt)
        elif item.messages is not None:
            turns = json.dumps([item.messages, item.tools, item.chat_template_kwargs])
            key = ("messages", turns)
        else:  # ids need no tokenizer
            return self._prompt(item)
        if key not in prompts:
            prompts[key] = self._prompt(item)
            prompts[key].flags.writeable = False
        return prompts[key]

    def _prompt(self, item: Item) -> Ids:
        prompt, messages = item.prompt, item.messages
        if isinstance(prompt, str):
            return self.tokenizer.prompt_from_text(prompt, param="prompt")
        if messages is not None:
            return self.tokenizer.prompt_from_messages(
                messages, item.tools, item.chat_template_kwargs, param="prompt"
            )
        ids = decode_ids(prompt, param="prompt")  # type: ignore[arg-type]
        return self.tokenizer.prompt_from_ids(ids, param="prompt")

    def _response(self, item: Item, *, is_lone: bool = False) -> tuple[Ids, Ids | None]:
        """The tokens of an item's response, and where each one's characters end (see
        `Tokenizer.response`); None for ids. A lone text, without a prompt, gets no end-of-turn if
        the tokenizer ends such a text itself."""
        if not isinstance(item.response, str):
            return decode_ids(item.response, param="response"), None
        refuse_empty(item)
        finished = item.finished is not False and not (is_lone and self.tokenizer.around_text[1])
        return self.tokenizer.response(item.response, finished=finished, param="response")
