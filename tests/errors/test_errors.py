"""The error tree: what its docstring draws, what the contract's table says and what the classes are
is one thing."""

from __future__ import annotations

import inspect
import re

import pytest

from tokenreward import errors
from tokenreward.errors import ItemError, RequestError, RewardError

# Section 4 of the contract: status, codes, retryable.
CONTRACT = {
    (400, False): "malformed_json malformed_body",
    (401, False): "unauthorized",
    (404, False): "unknown_scorer unknown_route",
    (408, True): "body_timeout",
    (409, True): "version_not_reached",
    (409, False): "version_conflict",
    (413, False): "body_too_large too_many_items larger_than_queue",
    (422, False): "unknown_field invalid_field unknown_option credit_not_supported units_differ",
    (503, True): "overloaded loading updating",
    (500, True): "internal",
    (504, True): "deadline_exceeded",
    (
        200,
        False,
    ): "sequence_too_long token_out_of_vocabulary spans_do_not_tile length_mismatch empty_response "
    "empty_prompt unsupported_text non_finite scorer_failed",
    (200, True): "out_of_memory",
}
EXPECTED = {code: key for key, codes in CONTRACT.items() for code in codes.split()}

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, RewardError)]
ANSWERS = [c for c in CLASSES if c not in (RewardError, RequestError, ItemError)]

_LINE = re.compile(
    r"^( +)(\w+)(?: +(\d{3}))?(?:  +([a-z_ ]+?))?(?: +(retryable)(?:, Retry-After)?)?$"
)


def drawn_tree() -> dict[str, tuple[str | None, int | None, str | None, bool]]:
    """Of each class in the docstring's drawing: its parent, status, code and whether it says
    retryable."""
    tree: dict[str, tuple[str | None, int | None, str | None, bool]] = {}
    parents: list[tuple[int, str]] = []
    drawing = (errors.__doc__ or "").split("The tree:")[1].split("\n\n")[1]
    for line in drawing.splitlines():
        match = _LINE.match(line)
        assert match, line
        indent, name, status, words, retryable = match.groups()
        while parents and parents[-1][0] >= len(indent):
            parents.pop()
        code = words if words and re.fullmatch(r"[a-z]+(_[a-z]+)*", words) else None
        tree[name] = (
            parents[-1][1] if parents else None,
            int(status) if status else None,
            code,
            bool(retryable),
        )
        parents.append((len(indent), name))
    return tree


def test_the_drawn_tree_holds_exactly_the_classes() -> None:
    assert set(drawn_tree()) == {c.__name__ for c in CLASSES}


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_a_class_stands_where_the_tree_draws_it(error: type[RewardError]) -> None:
    parent = drawn_tree()[error.__name__][0]
    assert error.__bases__[0].__name__ == (parent or "Exception")


@pytest.mark.parametrize("error", ANSWERS, ids=lambda c: c.__name__)
def test_a_class_has_the_status_code_and_retryable_that_the_tree_draws(
    error: type[RewardError],
) -> None:
    _, status, code, retryable = drawn_tree()[error.__name__]
    if issubclass(error, ItemError):
        status = drawn_tree()["ItemError"][1]
    assert (error.status, error.code, error.retryable) == (status, code, retryable)


def test_the_codes_are_exactly_the_contracts() -> None:
    assert sorted(c.code for c in ANSWERS) == sorted(EXPECTED)


@pytest.mark.parametrize("error", ANSWERS, ids=lambda c: c.code)
def test_a_code_has_the_contracts_status_and_retryable(error: type[RewardError]) -> None:
    assert (error.status, error.retryable) == EXPECTED[error.code]


def test_no_two_classes_share_a_code() -> None:
    codes = [c.code for c in ANSWERS]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", ANSWERS, ids=lambda c: c.__name__)
def test_a_class_is_named_for_its_code(error: type[RewardError]) -> None:
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower()
    assert words.removesuffix("_error") == error.code


@pytest.mark.parametrize("error", ANSWERS, ids=lambda c: c.__name__)
def test_every_answer_fails_a_request_or_an_item_and_never_both(error: type[RewardError]) -> None:
    assert issubclass(error, RequestError) != issubclass(error, ItemError)
    assert issubclass(error, ItemError) == (error.status == 200)


@pytest.mark.parametrize("error", ANSWERS, ids=lambda c: c.__name__)
def test_the_body_has_exactly_the_four_keys(error: type[RewardError]) -> None:
    raised = error("too long: 9, the limit is 8", param="items[0].response", retry_after_s=2.0)
    assert raised.detail() == {
        "code": error.code,
        "message": "too long: 9, the limit is 8",
        "param": "items[0].response",
        "retryable": error.retryable,
    }
    assert raised.retry_after_s == 2.0


def test_without_a_field_at_fault_param_is_null_and_not_missing() -> None:
    assert errors.Unauthorized("no key").detail()["param"] is None


def test_the_message_is_what_python_prints() -> None:
    assert str(errors.Loading("reading weights")) == "reading weights"
