"""What `Engine.load` settles, so that no request meets it first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from fakes import lora, tiny
from tokenreward.engine.loading import load_checkpoint_of
from tokenreward.settings import DeploymentSettings, SettingsError

TEMPLATE_FILE = "chat_template.jinja"


def test_a_setting_beyond_the_models_table_of_positions_is_refused(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path, "gpt2")
    with pytest.raises(
        SettingsError, match="`max_sequence_tokens` is 513, the model has 512 positions"
    ):
        make_engine("causal_lm", ["constant"], checkpoint=folder, max_sequence_tokens=513)


def test_a_setting_beyond_rotary_positions_is_the_operators_choice(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["constant"], max_sequence_tokens=513)
    assert engine.describe()[0]["limits"]["max_sequence_tokens"] == 513


def test_each_vocabulary_is_read_once_and_not_when_the_scorers_are_listed(
    make_engine: Callable[..., Any], language_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large one, that takes so long that the event loop would stand still."""
    read: Counter[int] = Counter()
    own = PreTrainedTokenizerFast.get_vocab

    def counted(self: Any) -> dict[str, int]:
        read[id(self)] += 1
        return own(self)

    monkeypatch.setattr(PreTrainedTokenizerFast, "get_vocab", counted)
    engine = make_engine("causal_lm", ["implicit"], reference_checkpoint=str(language_model))
    policy = engine.checkpoint
    tokenizers = {id(policy.tokenizer): 1, id(policy.reference.tokenizer): 1}
    assert {key: read[key] for key in tokenizers} == tokenizers
    before = read.total()
    assert engine.describe()[0]["tokenizer"]
    assert read.total() == before


def test_an_adapter_that_was_saved_with_another_chat_template_is_told(
    language_model: Path, tmp_path: Path
) -> None:
    adapter, template = lora.save(tmp_path, target_modules=["q_proj"]), tmp_path / TEMPLATE_FILE
    named = {"name": "x", "checkpoint": str(language_model), "adapter": str(adapter)}

    def says_so(**more: Any) -> bool:
        lines: list[str] = []
        settings = DeploymentSettings(
            task="causal_lm", scorers=[{"type": "constant"}], **named, **more
        )
        load_checkpoint_of(settings, {}, lines.append)
        return any("saved with another chat template" in line for line in lines)

    assert not says_so()
    template.write_text(tiny.TEMPLATE, encoding="utf-8")
    assert not says_so()
    template.write_text("{{ messages }}", encoding="utf-8")
    assert says_so()
    assert not says_so(chat_template=tiny.TEMPLATE)
