"""Whose tokens: every kind of tokenizer as the policy's and as the scorer's, through the client and
the real engine.

Each response token is owned by one unit and each unit gets the sum of its own, so sums are
conserved, whatever the two tokenizers do to the text. A scorer whose tokens cannot be placed
refuses the item, and only where spans are asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.offsets_truth import KNOWN, has_definition, true_ends
from fakes.texts import TEXTS
from fakes.vocabularies import KINDS
from tokenreward_client import NotText, text_and_spans

Items = list[dict[str, Any]]
Score = Callable[..., Items]

THROUGH_THE_ENGINE = settings(
    max_examples=5, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
REFUSES = {
    "python_bytes",
    "characters",
}  # the first always, the second where it leaves characters out


def policy_items(text: str, *, finished: bool, policies: Iterable[str] = KINDS) -> Items:
    """The text as each policy would have written it, one span per token of that policy."""
    items = []
    for policy in policies:
        tokenizer = KINDS[policy]()
        ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * finished
        try:
            response, spans, ended = text_and_spans(tokenizer, ids)
        except NotText:  # decoders that join with spaces cannot say what a U+FFFD is
            assert "\ufffd" in tokenizer.decode(ids)
            continue
        assert ended == finished
        if response or finished:
            items.append(
                {"prompt": [3, 4], "response": response, "spans": spans, "finished": finished}
            )
    return items


def without_spans(items: Items) -> Items:
    return [{key: value for key, value in item.items() if key != "spans"} for item in items]


def bound(rewards: np.ndarray) -> float:
    """The contract's, for sums."""
    return 1e-5 * max(1.0, float(np.abs(rewards).sum()))


def expected_units(kind: str, item: dict[str, Any], whole: dict[str, Any]) -> np.ndarray:
    """Each token's reward, given to the unit that holds the last character of the token."""
    text, spans, tokens = item["response"], item["spans"], whole.tokens
    if has_definition(kind, text):
        ids, ends = true_ends(kind, KINDS[kind]().backend_tokenizer, text)
        assert [token.id for token in tokens[: len(ids)]] == ids
    else:
        ends = [token.span[1] for token in tokens[: len(tokens) - item["finished"]]]
    units = np.zeros(len(spans))
    for position, reward in enumerate(whole.rewards):
        last = max(ends[position] - 1, 0) if position < len(ends) else None
        owner = (
            len(spans) - 1
            if last is None
            else next(i for i, (a, b) in enumerate(spans) if a <= last < b)
        )
        units[owner] += reward
    return units


def check(kind: str, item: dict[str, Any], cut: dict[str, Any], whole: dict[str, Any]) -> None:
    if whole.error is not None:  # the scorer's tokenizer leaves nothing of this text
        assert whole.error.code == "empty_response"
        assert cut.error.code in ("empty_response", "unsupported_text")
        return
    if cut.error is not None:
        assert kind in REFUSES
        assert cut.error.code == "unsupported_text"
        return
    assert kind != "python_bytes"
    assert cut.rewards.shape == (len(item["spans"]),)
    assert abs(cut.rewards.sum(dtype=np.float64) - whole.rewards.sum(dtype=np.float64)) <= bound(
        whole.rewards
    )
    for index, (start, end) in enumerate(item["spans"]):
        if start == end and not (item["finished"] and index == len(item["spans"]) - 1):
            assert cut.rewards[index] == 0.0


@pytest.mark.parametrize("kind", KINDS)
@THROUGH_THE_ENGINE
@given(text=TEXTS, finished=st.booleans())
def test_increments_of_every_policys_tokens_add_up(
    score: Score, kind: str, text: str, finished: bool
) -> None:
    items = policy_items(text, finished=finished)
    if not items:
        return
    replies = score(kind, "endogenous", items + without_spans(items), return_tokens=True)
    for item, cut, whole in zip(items, replies[: len(items)], replies[len(items) :], strict=True):
        check(kind, item, cut, whole)
        if cut.error is None:
            expected = expected_units(kind, item, whole)
            np.testing.assert_allclose(cut.rewards, expected, rtol=0, atol=bound(whole.rewards))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.8, 1.0])
@THROUGH_THE_ENGINE
@given(text=TEXTS, finished=st.booleans())
def test_weights_of_every_policys_tokens_add_up_to_the_score(
    score: Score, kind: str, beta: float, text: str, finished: bool
) -> None:
    items = policy_items(text, finished=finished)
    if not items:
        return
    replies = score(
        kind,
        "attention_dense",
        items + without_spans(items),
        credit={"beta": beta},
        return_tokens=True,
    )
    for item, cut, whole in zip(items, replies[: len(items)], replies[len(items) :], strict=True):
        check(kind, item, cut, whole)
        if cut.error is None:
            assert abs(cut.rewards.sum(dtype=np.float64) - whole.score) <= bound(cut.rewards)
            if beta == 1.0:
                expected = expected_units(kind, item, whole)
                np.testing.assert_allclose(cut.rewards, expected, rtol=0, atol=bound(whole.rewards))


@pytest.mark.parametrize("kind", KNOWN)
@THROUGH_THE_ENGINE
@given(text=TEXTS)
def test_if_both_tokenizers_are_one_spans_give_what_ids_give(
    score: Score, kind: str, text: str
) -> None:
    """A token that ends inside a character gives its reward to the one that completes it."""
    tokenizer = KINDS[kind]()
    (item,) = policy_items(text, finished=True, policies=[kind])
    # Not always the policy's ids: some tokenizers do not read their own writing as they wrote it.
    ids = [*tokenizer.encode(item["response"], add_special_tokens=False), tokenizer.eos_token_id]
    by_ids = {"prompt": [3, 4], "response": ids}
    cut, whole = score(kind, "endogenous", [item, by_ids], return_tokens=True)
    if has_definition(kind, item["response"]) and not (kind in REFUSES and cut.error):
        expected = expected_units(kind, item, whole)
        np.testing.assert_allclose(cut.rewards, expected, rtol=0, atol=bound(whole.rewards))


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_nfc", "gemma"])
def test_tokens_that_end_at_characters_get_exactly_their_own_reward(
    score: Score, kind: str
) -> None:
    tokenizer = KINDS[kind]()
    ids = [
        *tokenizer.encode("the answer is 4, and so on", add_special_tokens=False),
        tokenizer.eos_token_id,
    ]
    response, spans, finished = text_and_spans(tokenizer, ids)
    item = {"prompt": [3, 4], "response": response, "spans": spans, "finished": finished}
    by_spans, by_ids = score(kind, "endogenous", [item, {"prompt": [3, 4], "response": ids}])
    np.testing.assert_allclose(by_spans.rewards, by_ids.rewards, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("byte_level_nfc", ("NFC", "NFD")),
        ("byte_level_nfd", ("NFC", "NFD")),
        ("unigram_folded", ("NFC", "NFD")),
        ("unigram_nfkc", ("NFC", "NFD", "NFKC", "NFKD")),
    ],
)
@pytest.mark.parametrize("scorer", ["endogenous", "attention_dense"])
def test_a_words_reward_does_not_depend_on_the_form_that_its_text_came_in(
    score: Score, kind: str, forms: tuple[str, ...], scorer: str
) -> None:
    words = ["Cafés ", "Å ", "한국어 ", "Việt ", "がぎ ", "q\u0323\u0307 ", "ﬁn", "é"]
    items = []
    for form in forms:
        written = [unicodedata.normalize(form, word) for word in words]
        ends = np.cumsum([len(word) for word in written]).tolist()
        spans = [[end - len(word), end] for word, end in zip(written, ends, strict=True)]
        items.append({"prompt": [3, 4], "response": "".join(written), "spans": spans})
    assert len({item["response"] for item in items}) > 1
    first, *others = score(kind, scorer, items)
    assert first.error is None
    assert all(first.rewards)
    for other in others:
        np.testing.assert_allclose(other.rewards, first.rewards, rtol=0, atol=bound(first.rewards))


def test_a_letter_and_its_mark_in_two_spans_give_the_composed_token_to_the_mark(
    score: Score,
) -> None:
    item = {"prompt": [3, 4], "response": "e\u0301", "spans": [[0, 1], [1, 2]], "finished": False}
    composed, apart = (
        score(kind, "endogenous", [item])[0].rewards for kind in ("byte_level_nfc", "byte_level")
    )
    assert composed[0] == 0.0
    assert composed[1] != 0.0
    assert all(apart)


@pytest.mark.parametrize("kind", ["python_bytes", "characters"])
def test_offsets_that_cannot_be_trusted_refuse_spans_and_only_them(score: Score, kind: str) -> None:
    text = "a\u4e01b"  # the second character is none of those that `characters` knows
    whole = {"prompt": [3, 4], "response": text}
    cut = {**whole, "spans": [[0, 1], [1, 3]]}
    neighbour = {"prompt": [3, 4], "response": [5, 6]}
    first, refused, last = score(kind, "endogenous", [whole, cut, neighbour])
    assert refused.error.code == "unsupported_text"
    assert refused.error.param == "items[1].spans"
    assert not refused.error.retryable
    assert first.error is None
    assert last.error is None


def test_an_appended_end_of_turn_shows_no_character_even_if_no_token_holds_the_last_ones(
    score: Score,
) -> None:
    item = {"prompt": [3, 4], "response": "the  "}
    tokens = score("bert", "endogenous", [item], return_tokens=True)[0].tokens
    assert [token.span for token in tokens] == [(0, 3), (5, 5)]
    assert [token.text for token in tokens] == ["the", "<|end|>"]
