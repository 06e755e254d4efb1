"""Items that bring prompt and response in one piece: which tokens are scored, and as which numbers.
The oracle is the checkpoint's own class of transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fakes import tiny
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import Item, ItemResult, RewardsRequest

IDS = [0, 20, 30, 40, 50, 1]
QUESTION = [{"role": "user", "content": "2+2?"}]
TEXT = "<|user|>2+2?<|end|>\n<|assistant|>It is 4.<|end|>\n"
OWN = {"causal_lm": AutoModelForCausalLM, "reward_model": AutoModelForSequenceClassification}
SCORERS = {"causal_lm": "endogenous", "reward_model": "reward_model"}


@pytest.fixture(params=[(task, None) for task in OWN] + [("reward_model", "conversation")], ids=str)
async def served(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[str, Engine, Any]]:
    """The task, an engine, and the checkpoint as its own class has it."""
    task, scored_text = request.param
    folder = tiny.save(tmp_path, task=task)
    settings = DeploymentSettings.model_validate(
        {
            "name": "x",
            "task": task,
            "scored_text": scored_text,
            "checkpoint": str(folder),
            "device": "cpu",
            "scorers": [{"type": SCORERS[task]}],
        }
    )
    engine = Engine.load(settings)
    yield task, engine, OWN[task].from_pretrained(folder, dtype=torch.float64)
    await engine.close()


async def score(engine: Engine, task: str, *items: Item) -> list[ItemResult]:
    options = {"form": "logprob"} if task == "causal_lm" else {}
    request = RewardsRequest(
        scorer=SCORERS[task],
        items=list(items),
        options=options,
        credit={"name": "values"},
        return_tokens=True,
    )
    return (await engine.score(request)).items


def truth(task: str, model: Any, ids: list[int]) -> np.ndarray:
    """The log-prob of each id but the first; or the value at every id, each prefix read alone."""
    with torch.no_grad():
        if task == "causal_lm":
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            return logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        prefixes = [ids[: stop + 1] for stop in range(len(ids))]
        return np.array([model(torch.tensor([each])).logits[0, 0].item() for each in prefixes])


async def test_every_token_of_a_sequence_is_scored_and_a_language_models_from_the_second(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    (item,) = await score(engine, task, Item(prompt=[], response=IDS, whole="sequence"))
    np.testing.assert_allclose(item.rewards, truth(task, model, IDS), atol=1e-5)
    assert item.tokens is not None
    assert [token.id for token in item.tokens] == IDS


async def test_a_prompt_before_a_sequence_is_scored_with_it(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    items = [
        Item(prompt=IDS[:2], response=IDS[2:], whole="sequence"),
        Item.model_validate({"prompt": QUESTION, "response": IDS, "whole": "sequence"}),
    ]
    split, chat = await score(engine, task, *items)
    np.testing.assert_allclose(split.rewards, truth(task, model, IDS), atol=1e-5)
    assert chat.tokens is not None
    ids = [token.id for token in chat.tokens]
    assert ids[-len(IDS) :] == IDS
    np.testing.assert_allclose(chat.rewards, truth(task, model, ids), atol=1e-5)


async def test_a_text_is_a_sequence_as_its_tokenizer_begins_one(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    item = Item(prompt="", response="2+2? 4", finished=False, whole="sequence")
    (result,) = await score(engine, task, item)
    ids = tiny.tokenizer()("2+2? 4")["input_ids"]
    np.testing.assert_allclose(result.rewards, truth(task, model, ids), atol=1e-5)


async def test_a_text_behind_messages_is_a_sequence_with_them(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    fields = {"prompt": QUESTION, "response": "It is 4.", "whole": "sequence"}
    (item,) = await score(engine, task, Item.model_validate(fields))
    ids = tiny.tokenizer()(TEXT.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    assert [token.id for token in item.tokens or ()] == ids
    assert len(item.rewards) == len(ids) - (task == "causal_lm")
    np.testing.assert_allclose(item.rewards, truth(task, model, ids), atol=1e-5)


async def test_a_conversation_is_scored_as_its_prompt_and_its_last_turn(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    whole = Item(prompt="", response=TEXT, whole="conversation")
    cut = Item.model_validate({"prompt": QUESTION, "response": "It is 4."})
    one, other = await score(engine, task, whole, cut)
    assert one.tokens == other.tokens
    np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-6)
    ids = tiny.tokenizer()(TEXT.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    num_scored = len(one.tokens or ())
    np.testing.assert_allclose(one.rewards, truth(task, model, ids)[-num_scored:], atol=1e-5)


async def test_a_sequence_of_one_token_has_a_value_and_no_log_prob(
    served: tuple[str, Engine, Any],
) -> None:
    task, engine, model = served
    (item,) = await score(engine, task, Item(prompt=[], response=[7], whole="sequence"))
    if task == "causal_lm":
        assert item.error is not None
        assert item.error.code == "empty_response"
    else:
        np.testing.assert_allclose(item.rewards, truth(task, model, [7]), atol=1e-5)


async def test_increments_need_a_prompt(served: tuple[str, Engine, Any]) -> None:
    task, engine, _ = served
    if task == "causal_lm":
        return
    request = RewardsRequest(
        scorer="reward_model",
        items=[Item(prompt=[], response=IDS, whole="sequence")],
        options={"red": True},
        credit={"name": "values"},
    )
    (item,) = (await engine.score(request)).items
    assert item.error is not None
    assert item.error.code == "empty_prompt"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a", "response": "b", "whole": "conversation"}, "empty text"),
        ({"prompt": "", "response": [1], "whole": "conversation"}, "text response"),
        ({"prompt": "", "response": "b", "spans": [[0, 1]], "whole": "sequence"}, "`spans`"),
        ({"prompt": "", "response": "b", "steps": ["b"], "whole": "conversation"}, "`steps`"),
        ({"prompt": "", "response": "b", "whole": "all"}, "conversation"),
    ],
)
def test_what_does_not_go_with_a_whole_text_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Item.model_validate(fields)
