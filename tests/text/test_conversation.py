"""A response that is read as its chat template renders it has the tokens of the whole templated
conversation, and each token has its characters of the response that was sent. Templates of the
kinds that popular models have; the truth is transformers' own `apply_chat_template`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes import vocabularies
from tokenreward.errors import UnsupportedText
from tokenreward.text.conversation import templated_tokens
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.text.trained_tokens import SHAPES

_OPEN = "{% if add_generation_prompt %}"
TEMPLATES = {
    # Qwen2.5 and SmolLM: a system message of their own.
    "chatml": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + _OPEN + "<|im_start|>assistant\n{% endif %}",
    # Llama 2 and Mistral: white space that SentencePiece joins with what follows.
    "instructions": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}"
    "{% endif %}{% endfor %}",
    # Llama 3: every content trimmed, a date in front.
    "headers": "{{ bos_token }}Today: {{ '26 Jul 2024' }}\n{% for m in messages %}"
    "<|{{ m.role }}|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    + _OPEN
    + "{{ '<|assistant|>\n\n' }}{% endif %}",
    # Gemma: the assistant is the model.
    "turns": "{{ bos_token }}{% for m in messages %}<start>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    + _OPEN
    + "<start>model\n{% endif %}",
    # Phi and Zephyr: end-of-text behind the turns.
    "tags": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    + _OPEN
    + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    # QwQ: a generation prompt that opens a think block.
    "thoughts": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}" + _OPEN + "<|im_start|>assistant\n<think>\n{% endif %}",
    # Qwen3: an empty block in front of an answer without one.
    "empty_thoughts": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' and '</think>' not in m.content %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content.lstrip('\n') }}<|im_end|>\n{% endfor %}"
    + _OPEN
    + "<|im_start|>assistant\n{% endif %}",
    # Qwen3.5: the same, and a generation prompt that opens a block.
    "opened_thoughts": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' and '</think>' not in m.content %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    + _OPEN
    + "<|im_start|>assistant\n<think>\n{% endif %}",
    # Vicuna: nothing but words around the turns.
    "words": "A chat. {% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}</s>{% endif %}{% endfor %}"
    + _OPEN
    + "ASSISTANT:{% endif %}",
    # DeepSeek R1: what stands before a think block's end is cut out.
    "cut": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% else %}<Assistant>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}" + _OPEN + "<Assistant><think>\n{% endif %}",
    # One that stops at a line break.
    "first_line": "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('\n')[0] }}<|end|>"
    "{% endfor %}" + _OPEN + "<|assistant|>{% endif %}",
}
REWRITES: dict[str, Callable[[str], bool]] = {
    "cut": lambda response: "</think>" in response,
    "first_line": lambda response: bool(response.partition("\n")[2].strip()),
}
QUESTION = {"role": "user", "content": "What is 2+2?"}
PROMPTS = (
    [QUESTION],
    [
        QUESTION,
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": " And?\n"},
    ],
)
RESPONSES = [
    *SHAPES.values(),
    "\n\nIt is 4.  \n",
    "<think>\nLet me add.\n</think>\n\nIt is 4.",
    "a = 1\n\tb\u00a0= 2  \n\n\ncafe\u0301 \U0001f600",
]


@pytest.mark.parametrize("vocabulary", ["byte_level", "llama_2", "unigram", "byte_level_nfc"])
@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_tokens_are_those_of_the_whole_templated_conversation_and_keep_their_characters(
    kind: str, vocabulary: str
) -> None:
    own: Any = vocabularies.KINDS[vocabulary]()
    own.chat_template = TEMPLATES[kind]
    tokenizer = Tokenizer(own)
    is_rewritten = REWRITES.get(kind, lambda response: False)
    for prompt in PROMPTS:
        for response in RESPONSES:
            turns = [*prompt, {"role": "assistant", "content": response}]
            expected = own.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
            if is_rewritten(response):
                with pytest.raises(UnsupportedText, match="rewrites this response"):
                    templated_tokens(tokenizer, prompt, response)
                continue
            before, ids, ends, behind = templated_tokens(tokenizer, prompt, response)
            assert np.concatenate([before, ids, behind]).tolist() == expected
            assert (np.diff(ends) >= 0).all()
            assert len(response.rstrip()) <= ends[-1] <= len(response)
            starts = np.append(0, ends[:-1])
            for token_id, start, end in zip(ids.tolist(), starts, ends, strict=False):
                text = own.decode([token_id]).strip()
                if text.isascii() and text and vocabulary != "unigram":
                    assert text == response[start:end].strip()


@pytest.mark.parametrize("vocabulary", ["byte_level", "llama_2", "unigram", "byte_level_nfc"])
@pytest.mark.parametrize("kind", ["instructions", "tags", "cut", "first_line"])
def test_an_end_of_turn_that_the_response_spells_is_the_one_that_the_template_writes(
    kind: str, vocabulary: str
) -> None:
    own: Any = vocabularies.KINDS[vocabulary]()
    own.chat_template = TEMPLATES[kind]
    tokenizer = Tokenizer(own)
    for response in ("It is 4.", "It is 4. \n", ""):
        spelled = response + tokenizer.end_of_turn_text
        expected = templated_tokens(tokenizer, [QUESTION], response)
        before, ids, ends, behind = templated_tokens(tokenizer, [QUESTION], spelled)
        assert before.tolist() == expected[0].tolist()
        assert [*ids, *behind] == [*expected[1], *expected[3]]
        assert ids[-1] == tokenizer.end_of_turn
        assert len(ends) == len(ids)
        assert (np.diff(ends) >= 0).all()
        assert ends[-1] == len(spelled)


@pytest.mark.parametrize(("kind", "finished"), [("chatml", True), ("tags", False)])
def test_an_end_of_turn_that_nothing_writes_but_the_response_is_read_as_sent(
    kind: str, finished: bool
) -> None:
    own: Any = vocabularies.byte_level()
    own.chat_template = TEMPLATES[kind]
    tokenizer = Tokenizer(own)
    spelled = f"It is 4.{tokenizer.end_of_turn_text}"
    _, ids, ends, _ = templated_tokens(tokenizer, [QUESTION], spelled, finished=finished)
    assert ids.tolist() == tokenizer.encoder.ids(spelled).tolist()
    assert ends[-1] == len(spelled)
