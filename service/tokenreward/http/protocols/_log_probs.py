"""The log-probabilities of sequences that are there already, for protocols of servers that
generate: one table, which five of them write each in their own shape.

    ids         i_0    i_1          i_2      ...
    log_probs          log pi(i_1)  ...            none for i_0, which nothing predicts
    ranks, top_*, candidates        the same places

These servers give such tables on the side, to a request that generates one token or none. Here
nothing is generated: whoever asks for more is refused. This module knows tables, and no program's
bodies.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tokenreward.errors import InternalError, InvalidField, RequestError, UnknownScorer
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._answers import item_at, param_of
from tokenreward.wire import Item, ItemResult, Reply, RewardsRequest, decode_rewards, decode_table
from tokenreward.wire.media import JSON
from tokenreward.wire.reply import INTEGER_TABLES, TABLES

GENERATES_NOTHING = "this service scores the tokens that are sent, and generates none"

_NUM_AT_A_TIME = 2048  # numbers of a table that are texts of Python at a time
# What stands between the numbers of two tokens in vLLM's entries.
_VALUE_ENDS = ',"decoded_token":null}'
_NEXT_KEY = _VALUE_ENDS + ',"'
_NEXT_ENTRY = _VALUE_ENDS + '},{"'


@dataclass(frozen=True, slots=True, eq=False)
class PromptTable:
    """What a language model gives the tokens of one sequence.

    Attributes:
        ids: All n tokens.
        start: The first place that has numbers, at least 1.
        log_probs: float32 [n - start], of the tokens from there on.
        ranks: int32 [n - start], 1 for the most likely; None if the scorer gives none.
        top_ids: int32 [n - start, k], the most likely tokens.
        top_log_probs: float32 [n - start, k], theirs.
        candidate_log_probs: float32 [n - start, c], of the tokens that the caller names.
    """

    ids: list[int]
    start: int
    log_probs: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int32] | None = None
    top_ids: npt.NDArray[np.int32] | None = None
    top_log_probs: npt.NDArray[np.float32] | None = None
    candidate_log_probs: npt.NDArray[np.float32] | None = None


class LogProbProtocol(Protocol):
    """A protocol whose answers are such tables.

    Class attributes:
        top_k_field: What the protocol calls the number of most likely tokens.
        temperature_field: What it calls the temperature.

    Attributes:
        items: What it calls its sequences, for the place of an error.
    """

    asks_for: ClassVar[Literal["reward", "log_probs"] | None] = "log_probs"
    # Most of these clients give a request up at the first refusal, within 300 s at the earliest.
    patience_s: ClassVar[float] = 240.0
    top_k_field: ClassVar[str]
    temperature_field: ClassVar[str] = "temperature"
    items: str

    def ask(
        self,
        sequences: Sequence[list[int] | Item],
        *,
        starts: Sequence[int] | None = None,
        top_k: int | None = None,
        candidates: list[int] | None = None,
        temperature: float | None = None,
    ) -> RewardsRequest | None:
        """The request for the tables of some sequences.

        Args:
            sequences: Ids; or an item of a text or of messages, which is `whole`.
            starts: For each sequence of ids, the first place whose numbers are wanted, at least 1;
                None for the first that has any.
            top_k: The number of most likely tokens; 0 for ranks alone, None for neither.
            candidates: Tokens whose log-probs are wanted at every place.
            temperature: Divides the logits. 0 means greedy decoding to these servers, which has no
                log-probs of its own: the logits are then left as they are.

        Raises:
            InvalidField: A sequence is empty, or no scorer here gives more than log-probs.
            UnknownScorer: No scorer gives these.
        """
        self._sequences = sequences
        self._places: list[int] = []
        items = []
        for place, (sequence, start) in enumerate(
            zip(sequences, starts or [1] * len(sequences), strict=True)
        ):
            if isinstance(sequence, Item):
                items.append(sequence)
            elif not sequence:
                raise InvalidField("it has no tokens", param=f"{self.items}[{place}]")
            elif start < len(sequence):
                where = f"{self.items}[{place}]"
                items.append(item_at(where, prompt=sequence[:start], response=sequence[start:]))
            else:  # nothing to compute
                continue
            self._places.append(place)
        options = self._options(top_k, candidates, temperature)
        shows = any(isinstance(sequence, Item) for sequence in sequences)
        request = self.request(items, options=options, return_tokens=shows)
        if request is None:
            return None
        # A deployment's answer to the gateway is compact then.
        return request.model_copy(update={"encoding_format": "base64"})

    def _options(
        self, top_k: int | None, candidates: list[int] | None, temperature: float | None
    ) -> dict[str, Any]:
        """The scorer's options. Raises as `ask`."""
        if self.plan is None:
            raise UnknownScorer(self.missing())
        options: dict[str, Any] = {}
        if "top_k" in self.plan.options:
            options = {"top_k": top_k, "candidates": candidates}
        elif top_k or candidates:
            raise InvalidField(
                f"`{self.plan.scorer}` gives the log-probs of the sequence's own tokens alone: "
                "serve a scorer of type `logprob`, or ask for no others",
                param=self.top_k_field,
            )
        if temperature is not None and temperature < 0:
            raise InvalidField("it must not be negative", param=self.temperature_field)
        if temperature:
            options["temperature"] = temperature
        return options

    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        param = param_of(error, self.items)
        names = {
            "options.top_k": self.top_k_field,
            "options.candidates": "token_ids_logprob",
            "options.temperature": self.temperature_field,
        }
        if param is not None:
            param = names.get(param, param.removeprefix("options."))
        return error.status, JSON.dump(self.error_content(error, param))

    @staticmethod
    @abstractmethod
    def error_content(error: RequestError, param: str | None) -> dict[str, Any]:
        """A failure in the protocol's own form, whose place in its body is `param`."""

    def tables(self, reply: Reply) -> list[PromptTable]:
        """The table of each sequence, in order.

        Raises:
            InvalidField: One of them cannot be scored: there is no place for the error of one.
            InternalError: The same, and it may not fail again.
        """
        results = dict(zip(self._places, reply.items, strict=True))
        return [self._table(place, results.get(place)) for place in range(len(self._sequences))]

    def _table(self, place: int, result: ItemResult | None) -> PromptTable:
        sequence = self._sequences[place]
        if result is None:
            assert isinstance(sequence, list)
            return PromptTable(sequence, len(sequence), np.empty(0, dtype=np.float32))
        if result.error is not None:
            kind = InternalError if result.error.retryable else InvalidField
            message = f"{result.error.message} ({result.error.code})"
            raise kind(message, param=f"{self.items}[{place}]")
        if result.rewards is None:
            raise InternalError("the scorer gives no log-probs", param=f"{self.items}[{place}]")
        log_probs = decode_rewards(result.rewards)
        tables = {
            name: decode_table(
                getattr(result, name),
                num_rows=len(log_probs),
                is_integer=name in INTEGER_TABLES,
            )
            for name in TABLES
            if getattr(result, name) is not None
        }
        if isinstance(sequence, list):
            ids = sequence
        else:
            ids = [token.id for token in result.tokens or ()]
        ranks = tables.get("ranks")
        return PromptTable(
            ids=ids,
            start=len(ids) - len(log_probs),
            log_probs=log_probs,
            ranks=None if ranks is None else ranks.reshape(-1),
            top_ids=tables.get("top_token_ids"),
            top_log_probs=tables.get("top_logprobs"),
            candidate_log_probs=tables.get("candidate_logprobs"),
        )


def text_item(text: str) -> Item:
    """Raw text as it is, all of whose tokens are scored."""
    return Item(prompt="", response=text, finished=False, whole="sequence")


def texts_of(array: npt.NDArray[Any]) -> list[str]:
    """The numbers of an array as JSON writes them, in float32's own digits."""
    if not array.size:
        return []
    flat = np.ascontiguousarray(array).reshape(-1)
    return JSON.dump(flat)[1:-1].decode("ascii").split(",")


def vllm_entries(table: PromptTable) -> str:
    """A table as vLLM writes it in JSON, one entry for each token: null before the first number;
    then objects whose keys are ids, the sequence's own token first, then the most likely ones.

    A table may have millions of numbers. Each as an object of Python would take gigabytes, so some
    thousand at a time become text.
    """
    own_ids = np.asarray(table.ids[table.start :], dtype=np.int32)[:, None]
    ids, log_probs = own_ids, table.log_probs[:, None]
    if table.top_ids is not None and table.top_log_probs is not None:
        ids = np.concatenate([own_ids, table.top_ids], axis=1)
        log_probs = np.concatenate([log_probs, table.top_log_probs], axis=1)
    num_places, num_columns = ids.shape
    is_own = np.zeros(ids.shape, dtype=bool)
    is_own[:, 0] = True
    is_written = is_own | (ids != own_ids)  # one key an id: a token may be among the most likely
    ranks = None
    if table.ranks is not None:
        ranks = np.tile(np.arange(num_columns, dtype=np.int32), (num_places, 1))
        ranks[:, 0] = table.ranks
    pieces = ["null"] * table.start
    num_rows = max(1, _NUM_AT_A_TIME // num_columns)
    for first in range(0, num_places, num_rows):
        rows = slice(first, first + num_rows)
        mask = is_written[rows]
        pieces.append(
            _vllm_tokens(
                texts_of(ids[rows][mask]),
                texts_of(log_probs[rows][mask]),
                None if ranks is None else texts_of(ranks[rows][mask]),
                is_own[rows][mask].tolist(),
            )
        )
    return "[" + ",".join(pieces) + "]"


def _vllm_tokens(
    ids: list[str], log_probs: list[str], ranks: list[str] | None, is_own: list[bool]
) -> str:
    """Some of these entries, of their tokens one after the other. A token that `is_own` begins an
    entry. The texts between the numbers and the numbers are joined at once."""
    parts = [""] * (6 * len(ids))
    parts[0::6] = [_NEXT_ENTRY if begins else _NEXT_KEY for begins in is_own]
    parts[1::6] = ids
    parts[2::6] = ['":{"logprob":'] * len(ids)
    parts[3::6] = log_probs
    parts[4::6] = [',"rank":'] * len(ids)
    parts[5::6] = ["null"] * len(ids) if ranks is None else ranks
    parts[0] = '{"'  # nothing is before it
    parts.append(_VALUE_ENDS + "}")
    return "".join(parts)


def with_raw(content: dict[str, Any], name: str, raw: str) -> bytes:
    """An object as JSON, with one more field that is JSON already."""
    return JSON.dump(content)[:-1] + f',"{name}":{raw}}}'.encode("ascii")


def fastapi_content(error: RequestError, param: str | None) -> dict[str, Any]:
    """A failure as servers say it that are made with FastAPI."""
    return {"detail": {"code": error.code, "message": error.message, "param": param}}
