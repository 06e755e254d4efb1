"""The facts that a response states are read back, and counted right or wrong."""

from __future__ import annotations

from tokenreward.demo.facts import num_right, stated_facts
from tokenreward.demo.world import sample_pairs

PAIRS = sample_pairs(200, 11, "held_out")


def test_a_faithful_response_has_all_right_and_a_corrupted_one_all_but_the_wrong_ones() -> None:
    for pair in PAIRS:
        num, num_stated = num_right(pair, pair.faithful)
        assert num == num_stated == len(pair.ranges)
        num, num_stated = num_right(pair, pair.corrupted)
        assert num_stated - num == len(pair.wrong)


def test_the_values_are_those_of_the_response() -> None:
    text = "It pays 123K with a bonus of 7%."
    assert stated_facts(text) == {"salary": "123K", "bonus": "7%"}
    assert stated_facts(f" {text}\n") == stated_facts(text)


def test_what_is_no_response_of_this_world_states_nothing() -> None:
    for text in ("", "It pays 123K.", "It pays 1, 2 with a bonus of 7%.", "Hello there."):
        assert stated_facts(text) is None
        assert num_right(PAIRS[0], text) == (0, 0)


def test_a_fact_that_the_prompt_does_not_have_is_wrong() -> None:
    pair = next(pair for pair in PAIRS if "salary" not in dict(pair.facts))
    assert num_right(pair, "It pays 123K with a bonus of 7%.")[0] in (0, 1)
    assert num_right(pair, "The salary is 123K and you start on 31 May 2099.") == (0, 2)
