"""A language head with fewer rows than the embedding, as models with tokens for images have: ids
beyond it are read and never predicted. On a GPU an index beyond the head takes the process down."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import tiny
from fakes.tiny import tokenizer_of
from tokenreward.checkpoints.checkpoint import load_checkpoint
from tokenreward.engine import Engine
from tokenreward.engine.plan import needs_of, served_scorers
from tokenreward.forward.pair import choose_layouts
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import ItemResult, RewardsRequest, parse

SIZE = tiny.VOCAB_SIZE
MORE = 8


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_tokens([f"token-{n}" for n in range(len(tokenizer), SIZE + MORE)])
    tokenizer.save_pretrained(tiny.save(tmp_path))
    settings = DeploymentSettings(
        name="x",
        checkpoint=str(tmp_path),
        task="causal_lm",
        scorers=[{"type": "endogenous"}, {"type": "generative", "options": {"yes": ["Y"]}}],
    )
    checkpoint = load_checkpoint(settings)
    own = checkpoint.model.get_input_embeddings().weight
    wide = torch.nn.Embedding.from_pretrained(torch.cat([own, own[:MORE]]))
    checkpoint.model.set_input_embeddings(wide)
    layout = choose_layouts(
        checkpoint, needs_of(served_scorers(settings).values()), say=lambda line: None
    )
    return Engine(
        settings, checkpoint, layout, lambda *args, **labels: None, tokenizer_of(checkpoint)
    )


async def ask(engine: Engine, scorer: str, item: dict[str, Any], **options: Any) -> ItemResult:
    body = {"scorer": scorer, "items": [item], "options": options}
    (found,) = (await engine.score(parse(RewardsRequest, body))).items
    return found


async def test_an_id_that_is_read_and_not_predicted_may_stand_in_the_prompt(engine: Engine) -> None:
    found = await ask(
        engine, "endogenous", {"prompt": [5, SIZE + MORE - 1], "response": [5, SIZE - 1]}
    )
    assert found.error is None
    assert np.isfinite(found.rewards).all()


@pytest.mark.parametrize(
    ("item", "where", "largest"),
    [
        ({"prompt": [5], "response": [5, SIZE]}, "items[0].response[1]", SIZE - 1),
        ({"prompt": [5, SIZE + MORE], "response": [5]}, "items[0].prompt[1]", SIZE + MORE - 1),
    ],
)
async def test_an_id_beyond_what_reads_or_predicts_it_is_refused_with_the_largest(
    engine: Engine, item: dict[str, Any], where: str, largest: int
) -> None:
    error = (await ask(engine, "endogenous", item)).error
    assert error.code == "token_out_of_vocabulary"
    assert error.param == where.rpartition("[")[0]
    assert f"entry {where[-2]} is " in error.message
    assert f"0 to {largest} " in error.message


async def test_a_label_that_is_not_predicted_is_its_items_error(engine: Engine) -> None:
    item = {"prompt": "2+2?", "response": "It is 4."}
    assert (await ask(engine, "generative", item)).error is None
    error = (await ask(engine, "generative", item, yes=[f"token-{SIZE}"])).error
    assert error.code == "token_out_of_vocabulary"
    assert f"the ids 0 to {SIZE - 1} that the model predicts" in error.message
