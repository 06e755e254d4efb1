"""The demo tokenizer: any text goes in and comes back; the chat template closes every turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from tokenreward.demo import checkpoint_path, values
from tokenreward.demo.world import sample_pairs

TOKENIZER = AutoTokenizer.from_pretrained(checkpoint_path("sft"))
TEXTS = [
    "",
    " ",
    "a\r\nb\r\n",
    "\t\t x  ",
    "naïve café",
    "漢字かな交じり文",
    "👩‍🚀🇩🇪 ok",
    "\x00\x7f",
    "½ ٣ Ⅷ",
    "  150K,  14 March\n\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


@given(st.text(max_size=60))
def test_any_text_round_trips_and_offsets_tile_it(text: str) -> None:
    encoding = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)
    assert TOKENIZER.decode(encoding["input_ids"]) == text
    reached = 0
    for start, end in encoding["offset_mapping"]:
        assert start <= reached <= end  # tokens inside one character share its range
        reached = end
    assert reached == len(text)


def test_every_byte_has_a_token() -> None:
    alphabet = {token for token in TOKENIZER.get_vocab() if len(token) == 1}
    assert len(alphabet) == 256
    for code in range(0x800):
        text = chr(code)
        assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_bos_comes_first_and_once() -> None:
    plain = TOKENIZER("hello")["input_ids"]
    chat = TOKENIZER.apply_chat_template([{"role": "user", "content": "hello"}], return_dict=False)
    assert plain.count(TOKENIZER.bos_token_id) == chat.count(TOKENIZER.bos_token_id) == 1
    assert plain[0] == chat[0] == TOKENIZER.bos_token_id


def test_assistant_turn_ends_with_end_of_turn() -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    ids = TOKENIZER.apply_chat_template(messages, return_dict=False)
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.eos_token == "<|end|>"


def test_conversation_is_prompt_then_response_then_end_of_turn() -> None:
    """What a service builds from parts is what the template writes in one go."""
    pair = sample_pairs(1, seed=0)[0]
    prompt = [{"role": "user", "content": pair.prompt}]
    whole = TOKENIZER.apply_chat_template(
        [*prompt, {"role": "assistant", "content": pair.faithful}], return_dict=False
    )
    opening = TOKENIZER.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    response = TOKENIZER(pair.faithful, add_special_tokens=False)["input_ids"]
    assert whole == opening + response + [TOKENIZER.eos_token_id]


def test_unknown_role_is_refused() -> None:
    with pytest.raises(TemplateError, match="not tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}])


def test_digits_are_tokens_of_their_own() -> None:
    tokens = TOKENIZER.tokenize("pays 250K from 14 March 2027")
    assert [token for token in tokens if any(sign.isdigit() for sign in token)] == list("250142027")


@pytest.mark.parametrize("field", values.DRAWS)
def test_at_least_thirty_percent_of_the_values_take_several_tokens(field: str) -> None:
    found = [
        value for pair in sample_pairs(300, seed=1) for name, value in pair.facts if name == field
    ]
    several = [
        value for value in found if len(TOKENIZER.tokenize(f" {value}")) > 1 + (value[0].isdigit())
    ]
    assert len(several) >= 0.3 * len(found)
