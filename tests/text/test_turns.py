"""A conversation in one text is cut where its template lets the last assistant turn begin."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fakes import tiny
from tokenreward.errors import UnsupportedText
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.text.turns import last_turn

HISTORY = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "No."},
]
ANSWER = "It is\n 4. "
LOOP = "{% for m in messages %}"
# As the templates of these families write turns.
TEMPLATES = {
    "chatml": LOOP
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "think": LOOP  # opens a think block for a turn to come
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "mistral": "<|bos|>"
    + LOOP  # marks the user's turns alone, and ignores the generation prompt
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    + "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
    "llama": "<|bos|>"
    + LOOP
    + "<|{{ m.role }}|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    + "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}",
}


def tokenizer_with(template: str | None) -> tuple[Tokenizer, Any]:
    own = copy.deepcopy(tiny.tokenizer())
    own.chat_template = template
    return Tokenizer(own), own


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_response_is_the_last_assistant_turn_and_the_prompt_what_the_template_renders(
    family: str,
) -> None:
    tokenizer, own = tokenizer_with(TEMPLATES[family])
    turns = [*HISTORY, {"role": "assistant", "content": ANSWER}]
    text = own.apply_chat_template(turns, tokenize=False)
    prompt, response, is_ended = last_turn(tokenizer, text, param="response")
    assert is_ended
    assert response == (ANSWER.strip() if family == "llama" else ANSWER)
    rendered = own.apply_chat_template(HISTORY, tokenize=False, add_generation_prompt=True)
    assert prompt == rendered.removesuffix("<think>\n")
    assert text.startswith(prompt)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_turn_that_is_not_ended_is_told(family: str) -> None:
    tokenizer, own = tokenizer_with(TEMPLATES[family])
    turns = [*HISTORY, {"role": "assistant", "content": "It is 4."}]
    text = own.apply_chat_template(turns, tokenize=False).removesuffix("\n").removesuffix("<|end|>")
    assert last_turn(tokenizer, text, param="response")[1:] == ("It is 4.", False)


def test_a_think_block_that_the_generation_prompt_opens_belongs_to_the_prompt() -> None:
    tokenizer, own = tokenizer_with(TEMPLATES["think"])
    prompt = own.apply_chat_template(HISTORY, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<think>\n")
    text = prompt + "Hm.</think>It is 4.<|end|>\n"
    cut = last_turn(tokenizer, text, param="response")
    assert cut == (prompt, "Hm.</think>It is 4.", True)


@pytest.mark.parametrize(
    ("template", "text", "words"),
    [
        (None, "2+2? It is 4.", "no chat template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "2+2? 4", "no chat template that"),
        (TEMPLATES["chatml"], "2+2? It is 4.", "no assistant turn"),
        (TEMPLATES["chatml"], "<|im_start|>assistant\n4<|end|>\n<|im_start|>user\nSo", "goes on"),
        ("{{ raise_exception('no') }}", "2+2?", "no chat template that"),
    ],
)
def test_a_text_without_such_a_turn_at_its_end_is_refused(
    template: str | None, text: str, words: str
) -> None:
    tokenizer, _ = tokenizer_with(template)
    with pytest.raises(UnsupportedText, match=words) as failure:
        last_turn(tokenizer, text, param="response")
    assert failure.value.param == "response"


def test_bos_is_put_back_where_the_template_writes_it_and_nowhere_else() -> None:
    for family, writes_bos in (("llama", True), ("chatml", False)):
        tokenizer, own = tokenizer_with(TEMPLATES[family])
        text = own.apply_chat_template(HISTORY, tokenize=False, add_generation_prompt=True)
        ids = own(text, add_special_tokens=False)["input_ids"]
        assert (ids[0] == tiny.BOS_ID) == writes_bos
        for given in (text, text.removeprefix("<|bos|>")):
            assert tokenizer.prompt_from_conversation(given, param=None).tolist() == ids
