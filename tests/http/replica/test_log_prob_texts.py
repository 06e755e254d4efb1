"""Tables of log-probs as vLLM and TRL write them: the same as one token after the other, to the
last digit, however long a table is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tokenreward.http.protocols._log_probs import PromptTable, vllm_entries
from tokenreward.http.protocols.trl import Trl
from tokenreward.wire.media import JSON

START = 2
FEW_IDS = 40  # so that a sequence's own token is often among the most likely


def table(num_tokens: int, num_top: int, *, has_ranks: bool = True) -> PromptTable:
    random = np.random.default_rng(num_tokens + num_top)
    num_places = num_tokens - START
    top_ids = [random.permutation(FEW_IDS)[:num_top] for _ in range(num_places)]
    shape = (num_places, num_top)
    return PromptTable(
        ids=random.integers(0, FEW_IDS, num_tokens).tolist(),
        start=START,
        log_probs=-random.random(num_places, dtype=np.float32),
        ranks=random.integers(1, 1000, num_places, dtype=np.int32) if has_ranks else None,
        top_ids=np.array(top_ids, dtype=np.int32).reshape(shape) if num_top else None,
        top_log_probs=-random.random(shape, dtype=np.float32) if num_top else None,
    )


def places(each: PromptTable) -> list[tuple[int, float, int | None, list[tuple[int, float]]]]:
    """Of each place: the token, its log-prob and rank, and the most likely ones."""
    rows = []
    for place, own_id in enumerate(each.ids[START:]):
        top: list[tuple[int, float]] = []
        if each.top_ids is not None and each.top_log_probs is not None:
            pairs = zip(each.top_ids[place], each.top_log_probs[place], strict=True)
            top = [(int(other), digits(log_prob)) for other, log_prob in pairs]
        rank = None if each.ranks is None else int(each.ranks[place])
        rows.append((own_id, digits(each.log_probs[place]), rank, top))
    return rows


def digits(number: np.float32) -> float:
    """A float32 as a reader of JSON has it."""
    return float(json.loads(JSON.dump(number)))


@pytest.mark.parametrize("has_ranks", [True, False])
@pytest.mark.parametrize("num_top", [0, 1, 5])
@pytest.mark.parametrize("num_tokens", [START, START + 1, 3000])
def test_vllm_entries_have_the_own_token_first_and_every_other_once(
    num_tokens: int, num_top: int, has_ranks: bool
) -> None:
    each = table(num_tokens, num_top, has_ranks=has_ranks)
    expected: list[Any] = [None] * START
    for own_id, log_prob, rank, top in places(each):
        entry = {str(own_id): {"logprob": log_prob, "rank": rank, "decoded_token": None}}
        for place, (other, value) in enumerate(top, start=1):
            other_rank = place if has_ranks else None
            number = {"logprob": value, "rank": other_rank, "decoded_token": None}
            entry.setdefault(str(other), number)
        expected.append(entry)
    entries = json.loads(vllm_entries(each))
    assert entries == expected
    assert [list(entry) for entry in entries[START:]] == [list(each) for each in expected[START:]]


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_trl_lists_have_the_own_token_last_unless_it_is_among_the_most_likely(
    num_top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = table(300, num_top)
    values: list[Any] = [[]]
    ids: list[Any] = [[]]
    for own_id, log_prob, _, top in places(each):
        numbers = dict(top)
        numbers.setdefault(own_id, log_prob)
        values.append(list(numbers.values()))
        ids.append(list(numbers))
    body = {"sequences": [each.ids], "prompt_lengths": [START - 1], "top_logprobs": num_top}
    monkeypatch.setattr(Trl, "ask", lambda *_, **__: None)
    monkeypatch.setattr(Trl, "tables", lambda *_: [each])
    protocol = Trl({})
    protocol.read(JSON.dump(body))
    reply: Any = None
    written = json.loads(protocol.write(reply))
    assert written == {"logprobs": [values], "logprob_token_ids": [ids]}
