"""Whose tokens? Ids leave only for scorers that list the caller's tokenizer, if the caller says
which that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.edge import keyed
from fakes.eval_service import replica
from tokenreward_client import BadArgument, Client, ServerRefused, fingerprint

OURS, THEIRS = fingerprint({"a": 0, "b": 1}), fingerprint({"b": 0, "a": 1})
LISTING = {
    "scorers": [
        {"name": "endogenous", "deployment": "sft", "tokenizer": OURS},
        {"name": "reward_model", "deployment": "rm", "tokenizer": THEIRS},
        {"name": "silent", "deployment": "sft"},
    ]
}
RESULT = {"rewards": [1.0, 2.0]}
IDS = {"prompt": "p", "response": [0, 1]}
IDS_IN_PROMPT = {"prompt": [0], "response": "r1", "spans": [[0, 1], [1, 2]]}


@pytest.mark.parametrize("item", [IDS, IDS_IN_PROMPT])
def test_ids_of_the_scorers_own_tokenizer_are_sent(edge: Any, score: Any, item: Any) -> None:
    edge.listing = LISTING
    edge.script.append(lambda body: edge.reply([{"index": 0, **RESULT}]))
    [answer] = score([item], fingerprint=OURS)
    assert answer.rewards.tolist() == [1, 2]
    assert edge.num_listed == 1


@pytest.mark.parametrize("item", [IDS, IDS_IN_PROMPT])
@pytest.mark.parametrize(
    "arguments", [{"scorer": "reward_model"}, {"scorers": ["endogenous", "reward_model"]}]
)
def test_ids_of_another_tokenizer_are_refused_and_both_are_named(
    edge: Any, score: Any, items: Any, item: Any, arguments: Any
) -> None:
    edge.listing = LISTING
    with pytest.raises(BadArgument, match=f"{OURS}.*reward_model.*{THEIRS}") as caught:
        score([*items(1), item], fingerprint=OURS, **arguments)
    assert caught.value.param == "fingerprint"
    assert edge.seen == []


@pytest.mark.parametrize("scorer", ["silent", "unlisted"])
def test_scorer_without_a_known_tokenizer_gets_no_ids(edge: Any, score: Any, scorer: str) -> None:
    edge.listing = LISTING
    with pytest.raises(BadArgument, match=f"{scorer}.*{OURS}"):
        score([IDS], scorer, fingerprint=OURS)
    assert edge.seen == []


def test_listing_that_cannot_be_had_is_an_error(edge: Any, score: Any) -> None:
    with pytest.raises(ServerRefused):
        score([IDS], fingerprint=OURS, settings={"max_retries": 1})
    assert (edge.num_listed, edge.seen) == (2, [])


def test_text_needs_no_fingerprint_and_ids_without_one_are_trusted(
    edge: Any, score: Any, items: Any
) -> None:
    edge.listing = LISTING
    score(items(1), "reward_model", fingerprint=OURS)
    edge.script.append(lambda body: edge.reply([keyed(0, endogenous=RESULT, reward_model=RESULT)]))
    score([IDS], scorers=["endogenous", "reward_model"])
    assert len(edge.seen) == 2


def test_known_listing_is_used_but_not_to_refuse(edge: Any) -> None:
    edge.listing = {"scorers": [LISTING["scorers"][0] | {"tokenizer": THEIRS}]}
    with Client(edge.url) as client:
        client.scorers()
        edge.listing = LISTING
        for _ in range(2):
            edge.script.append(lambda body: edge.reply([{"index": 0, **RESULT}]))
            client.score([IDS], fingerprint=OURS)
    assert edge.num_listed == 2


def test_a_real_service_takes_ids_of_its_own_tokenizer_and_gets_no_others(
    language_model: Path,
) -> None:
    """As the README has it."""
    from transformers import AutoTokenizer

    policy_tokenizer = AutoTokenizer.from_pretrained(language_model)
    item = {"prompt": [7, 8], "response": [5, 6]}
    with (
        replica(str(language_model), "causal_lm", [{"type": "endogenous"}]) as url,
        Client(url) as client,
    ):
        [answer] = client.score([item], fingerprint=fingerprint(policy_tokenizer.get_vocab()))
        assert answer.rewards is not None
        assert len(answer.rewards) == 2
        policy_tokenizer.add_tokens(["<extra>"])
        with pytest.raises(BadArgument, match="endogenous"):
            client.score([item], fingerprint=fingerprint(policy_tokenizer.get_vocab()))
