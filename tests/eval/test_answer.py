"""What is said of an answer that is an error: the message, and the field where it is not plain."""

from __future__ import annotations

import pytest

from tokenreward.eval import Candidate, CandidateAnswer
from tokenreward.eval.answer import answer_of
from tokenreward.wire import ErrorDetail
from tokenreward_client import Rewards

CANDIDATE = Candidate({"prompt": "p", "response": "r"}, "row 1, `chosen`")


@pytest.mark.parametrize(
    ("param", "own_param", "fault"),
    [
        ("items[12].response", "response", "it is long"),
        ("items[12]", None, "it is long"),
        (None, None, "it is long"),
        ("items[12].prompt[0].role", "prompt[0].role", "`prompt[0].role`: it is long"),
    ],
)
def test_error_loses_its_place_in_the_request_and_names_a_field_other_than_the_response(
    param: str | None, own_param: str | None, fault: str
) -> None:
    error = ErrorDetail(code="sequence_too_long", message="it is long", param=param)
    answer = answer_of(CANDIDATE, Rewards(None, error=error), (1.0, 1.0, 1, 1))
    assert answer.error is not None
    assert (answer.error.param, answer.error.message) == (own_param, "it is long")
    assert answer.fault == fault


def test_answer_without_an_error_has_no_fault_and_an_error_has_no_score() -> None:
    assert CandidateAnswer(1.5).fault == ""
    assert CandidateAnswer(1.5).require_score() == 1.5
    with pytest.raises(ValueError, match="no score"):
        CandidateAnswer(error=ErrorDetail(code="x", message="y")).require_score()
    with pytest.raises(ValueError, match="no units"):
        CandidateAnswer(1.5).require_units()
