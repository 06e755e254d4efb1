"""The demo world: a prompt with the facts of a job offer, a response that restates some of them,
and one that gets some wrong.

After the figure of "From r to Q*" (arXiv 2404.12358): a summary that says 250K where the post said
150K.

A wrong value is another draw of the same field from the same distribution, in the same template, so
nothing but the prompt tells right from wrong. Which characters are wrong is said twice.
`OfferPair.whole_values` are the wrong values in full. `OfferPair.differing` are the characters that
really differ, found word by word after taking off what a word shares with the right one at its
start and at its end (in 250K for 150K only the 2). A word that differs only by lacking something
(5% for 15%) counts as wrong in full.

It does not know tokens, models or training; it is seeded by the generator that the caller hands in.
"""

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenreward.demo import phrasing, values

Range = tuple[int, int]
Split = Literal["train", "held_out"]

EVALUATION_SEED = 1234
"""No training stage draws with this seed, and the held-out split shares no tuple of facts with
training anyway."""
EXTRA_FACTS = (1, 3)
"""Facts in the prompt beyond those that the response restates: fewest and most."""
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class OfferPair:
    """A prompt, a response that is faithful to it, and the same response with one or two facts
    wrong. Ranges are half-open character ranges of the corrupted response.

    Attributes:
        facts: The right value of each field, in the order of the prompt.
        prompt: Says all facts.
        faithful: Restates some of them.
        corrupted: The same, with wrong values.
        wrong: The wrong value of each field that the corrupted response has wrong, in the order of
            the response.
        ranges: Where the corrupted response restates each field, right or wrong.
    """

    facts: tuple[tuple[str, str], ...]
    prompt: str
    faithful: str
    corrupted: str
    wrong: Mapping[str, str]
    ranges: Mapping[str, Range]

    @property
    def differing(self) -> list[Range]:
        """The characters of the corrupted response that differ from the right values."""
        return [item for field in self.wrong for item in self.differing_in(field)]

    @property
    def whole_values(self) -> list[Range]:
        """The wrong values in full."""
        return [self.ranges[field] for field in self.wrong]

    @property
    def values(self) -> list[Range]:
        """All values that the corrupted response restates."""
        return list(self.ranges.values())

    def differing_in(self, field: str) -> list[Range]:
        """The characters that differ from the right value of one field that is wrong."""
        start, _ = self.ranges[field]
        differing = differing_ranges(dict(self.facts)[field], self.wrong[field])
        return [(start + first, start + last) for first, last in differing]


def split_of(facts: tuple[tuple[str, str], ...]) -> Split:
    """The split that a tuple of facts belongs to, by its hash: no tuple can be in both."""
    digest = hashlib.sha256(repr(sorted(facts)).encode()).digest()
    is_held_out = digest[0] * 256 + digest[1] < 65536 // HELD_OUT_ONE_IN
    return "held_out" if is_held_out else "train"


def sample_pair(rng: random.Random, split: Split = "train") -> OfferPair:
    """Draw one pair of the given split."""
    while True:
        template = phrasing.draw_template(rng)
        used = phrasing.slots(template)
        others = [field for field in values.DRAWS if field not in used]
        fields = used + rng.sample(others, rng.randint(*EXTRA_FACTS))
        facts = tuple((field, values.draw(field, rng)) for field in fields)
        if split_of(facts) == split:
            return _build(template, facts, rng)


def sample_pairs(num_pairs: int, seed: int, split: Split = "train") -> list[OfferPair]:
    """A list of pairs, the same for the same seed."""
    rng = random.Random(seed)
    return [sample_pair(rng, split) for _ in range(num_pairs)]


def differing_ranges(right: str, wrong: str) -> tuple[Range, ...]:
    """The ranges of `wrong` that differ from `right`, word by word; all of it if the numbers of
    words differ."""
    rights, wrongs = right.split(" "), wrong.split(" ")
    if len(rights) != len(wrongs):
        return ((0, len(wrong)),)
    ranges, start = [], 0
    for right_word, wrong_word in zip(rights, wrongs, strict=True):
        if right_word != wrong_word:
            head = _num_shared(right_word, wrong_word)
            tail = _num_shared(right_word[head:][::-1], wrong_word[head:][::-1])
            if head + tail == len(wrong_word):
                head = tail = 0  # it only lacks something, so all of it counts as wrong
            ranges.append((start + head, start + len(wrong_word) - tail))
        start += len(wrong_word) + 1
    return tuple(ranges)


def overlaps(token: Range, ranges: Sequence[Range]) -> bool:
    """Whether a token's characters and any of the ranges have a character in common."""
    return any(token[0] < last and first < token[1] for first, last in ranges)


def _num_shared(one: str, other: str) -> int:
    """How many characters two words share at their start."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return sum(itertools.takewhile(bool, same))


def _build(template: str, facts: tuple[tuple[str, str], ...], rng: random.Random) -> OfferPair:
    right, used = dict(facts), phrasing.slots(template)
    wrong_fields = rng.sample(used, min(len(used), rng.choice((1, 1, 2))))
    wrong = right | {field: values.draw_other(field, right[field], rng) for field in wrong_fields}
    faithful, _ = phrasing.render(template, right)
    corrupted, ranges = phrasing.render(template, wrong)
    return OfferPair(
        facts,
        phrasing.render_prompt(right, rng),
        faithful,
        corrupted,
        wrong={field: wrong[field] for field in used if field in wrong_fields},
        ranges=ranges,
    )
