"""Texts that tokenizers disagree about, as hypothesis draws them."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = [
    "It is 4.",
    "the answer",
    "naïve café",
    "x = {1: 'a'}",
    "def f():",
    "don't",
    "Straße",
    "İstanbul",
    "ǅ",
]
SPACES = [" ", "  ", "\t", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028"]
MARKS = [
    "\u0301",
    "\u0302",
    "\u0323",
    "\u0315\u0301",
    "\u0651\u064e",
    "\u093c",
    "\u094d",
    "\u3099",
    "\ufe0f",
    "\u20e3",
]
SCRIPTS = [
    "日本語",
    "か",
    "한국어",
    "\u1112\u1161\u11ab",
    "ㅎㅏㄴ",
    "ｶﾞ",
    "مرحبا",
    "लिए",
    "สวัสดี",
    "தொ",
]
EMOJI = ["👩‍👩‍👧‍👦", "👍🏽", "🇯🇵", "🎉", "🏴‍☠️"]
COMPATIBLE = ["ﬁ", "½", "…", "™", "㍿", "ﷺ", "Å", "Ω", "ẛ̣", "①"]
INVISIBLE = ["\u200d", "\u200b", "\ufeff", "\u00ad", "\u0000", "\u0007", "\u007f", "\u0085"]
SPELLINGS = ["<0x41>", "▁", "##ing", "Ġ", "``", "_", "<unk>", "\ufffd"]

# Marks twice, so that runs of them behind one letter are common.
PIECES = st.sampled_from(
    WORDS + SPACES + MARKS + MARKS + SCRIPTS + EMOJI + COMPATIBLE + INVISIBLE + SPELLINGS
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=10).map("".join),
    st.lists(st.sampled_from("ae日क ") | st.sampled_from(MARKS), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
