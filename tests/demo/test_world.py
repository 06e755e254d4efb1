"""The generator: what is called wrong is wrong, and nothing but the prompt tells wrong from
right."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.demo import example_pair, phrasing, values
from tokenreward.demo.world import OfferPair, differing_ranges, sample_pair, sample_pairs, split_of

PAIRS = sample_pairs(4000, seed=11)
WORDS = st.lists(st.text("ab12", min_size=1, max_size=4), min_size=1, max_size=3).map(" ".join)


def right_and_wrong(field: str) -> list[tuple[str, str]]:
    """The right and the wrong value of this field, of all pairs that have it wrong."""
    return [(dict(pair.facts)[field], pair.wrong[field]) for pair in PAIRS if field in pair.wrong]


def test_same_seed_gives_the_same_pairs() -> None:
    assert sample_pairs(20, seed=5) == sample_pairs(20, seed=5)
    assert sample_pairs(20, seed=5) != sample_pairs(20, seed=6)


def test_prompt_holds_every_right_value_that_the_response_restates() -> None:
    for pair in PAIRS[:500]:
        assert all(value in pair.prompt for _, value in pair.facts)
        facts = dict(pair.facts)
        assert all(facts[field] in pair.faithful for field in pair.wrong)


def test_corrupted_is_faithful_with_the_errors_put_in() -> None:
    for pair in PAIRS:
        text = pair.corrupted
        for field, wrong in reversed(pair.wrong.items()):
            right, (start, end) = dict(pair.facts)[field], pair.ranges[field]
            assert text[start:end] == wrong != right
            text = text[:start] + right + text[end:]
        assert text == pair.faithful


def test_one_or_two_facts_are_wrong() -> None:
    counts = Counter(len(pair.wrong) for pair in PAIRS)
    assert set(counts) == {1, 2}
    assert 0.5 < counts[1] / len(PAIRS) < 0.8


def test_differing_ranges_lie_inside_the_wrong_value_and_are_not_empty() -> None:
    for pair in PAIRS:
        for field in pair.wrong:
            start, end = pair.ranges[field]
            differing = pair.differing_in(field)
            assert differing
            assert all(start <= first < last <= end for first, last in differing)


@pytest.mark.parametrize(
    ("right", "wrong", "differing"),
    [
        ("150K", "250K", ["2"]),
        ("14 March 2027", "17 March 2027", ["7"]),
        ("14 March 2027", "3 October 2028", ["3", "October", "8"]),
        ("Olga Pellkamp", "Olga Pellwick", ["wick"]),
        ("Aerobyte Labs", "Aerobyte Bank", ["Bank"]),
        ("15%", "5%", ["5%"]),
        ("two words", "one", ["one"]),
    ],
)
def test_differing_ranges_by_example(right: str, wrong: str, differing: list[str]) -> None:
    assert [wrong[first:last] for first, last in differing_ranges(right, wrong)] == differing


@given(WORDS, WORDS)
def test_differing_ranges_are_empty_only_for_equal_values(right: str, wrong: str) -> None:
    ranges = differing_ranges(right, wrong)
    assert bool(ranges) == (right != wrong)
    assert all(0 <= first < last <= len(wrong) for first, last in ranges)
    assert list(ranges) == sorted(ranges)


def test_held_out_shares_no_tuple_of_facts_with_train() -> None:
    held_out = sample_pairs(1000, seed=11, split="held_out")
    assert all(split_of(pair.facts) == "held_out" for pair in held_out)
    assert all(split_of(pair.facts) == "train" for pair in PAIRS)
    assert not {frozenset(pair.facts) for pair in held_out} & {
        frozenset(pair.facts) for pair in PAIRS
    }


def test_split_does_not_depend_on_the_order_of_the_facts() -> None:
    facts = PAIRS[0].facts
    assert split_of(facts) == split_of(facts[::-1])


def test_right_and_wrong_values_are_exchangeable() -> None:
    """If swapping right and wrong changes nothing in law, no statistic prefers either."""
    for field in values.DRAWS:
        couples = right_and_wrong(field)
        for statistic in (str, len, lambda text: sum(map(ord, text)), lambda text: text[-2:]):
            signs = [
                (statistic(a) > statistic(b)) - (statistic(a) < statistic(b)) for a, b in couples
            ]
            spread = sum(map(abs, signs)) ** 0.5
            assert abs(sum(signs)) <= 4 * max(spread, 1), field


def test_wrong_values_are_as_frequent_as_right_ones() -> None:
    for field in ("role", "company", "city", "manager"):
        couples = right_and_wrong(field)
        right = Counter(value.split()[0][:3] for value, _ in couples)
        wrong = Counter(value.split()[0][:3] for _, value in couples)
        for key in right | wrong:
            assert abs(right[key] - wrong[key]) <= 5 * (right[key] + wrong[key]) ** 0.5


def test_place_of_the_error_is_uniform_over_the_slots() -> None:
    places = [row for row in map(_wrong_places, PAIRS) if len(row) == 5]
    for place in range(5):
        share = sum(row[place] for row in places) / sum(map(sum, places))
        assert share == pytest.approx(0.2, abs=0.05)


def _wrong_places(pair: OfferPair) -> list[bool]:
    """For each fact that the response restates, in order, whether the corrupted response has it
    wrong."""
    found = {
        field: re.search(rf"(?<!\w){re.escape(value)}(?!\w)", pair.faithful)
        for field, value in pair.facts
    }
    restated = sorted((match.start(), field) for field, match in found.items() if match)
    return [field in pair.wrong for _, field in restated]


def test_no_sentence_begins_with_a_slot() -> None:
    assert not [
        text for text in phrasing.JOB_SENTENCES + phrasing.TERMS_SENTENCES if text.startswith("{")
    ]


def test_every_field_is_restated_by_some_sentence() -> None:
    mentioned = {
        slot
        for text in phrasing.JOB_SENTENCES + phrasing.TERMS_SENTENCES
        for slot in phrasing.slots(text)
    }
    assert mentioned == set(values.DRAWS) == set(phrasing.LABELS)


def test_draw_other_never_returns_the_same_value() -> None:
    rng = random.Random(0)
    assert all(values.draw_other("bonus", "7%", rng) != "7%" for _ in range(500))


def test_sample_pair_draws_from_the_generator_that_it_is_given() -> None:
    rng = random.Random(3)
    assert sample_pair(rng) != sample_pair(rng)


def test_example_pair_is_held_out_and_stable() -> None:
    assert example_pair() == example_pair()
    assert split_of(example_pair().facts) == "held_out"
