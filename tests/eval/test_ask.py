"""Asking: batches, each item once, interrupted and resumed, and a cache that a change of anything
empties."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.eval_service import ENTRY, Known
from tokenreward.eval import (
    Candidate,
    CandidateAnswer,
    EvalError,
    Subject,
    collect_answers,
    find_subject,
    groups_of,
    try_out,
)
from tokenreward.eval.ask import next_batch_items
from tokenreward.eval.cache import from_record, read_answers, to_record
from tokenreward_client import AsyncClient, DeadlineExceeded, ScorerInfo, ServerRefused


def candidates(num: int, **needs: bool) -> list[Candidate]:
    """Response i is written with i + 1 digits."""
    return [
        Candidate({"prompt": "p", "response": "7" * (n + 1)}, f"row {n}", **needs)
        for n in range(num)
    ]


def subject(**changes: Any) -> Subject:
    options = {name: changes.pop(name) for name in ("options", "credit") if name in changes}
    return Subject("known", ScorerInfo.model_validate({**ENTRY, **changes}), **options)


def answers(
    service: Known,
    targets: Sequence[Candidate],
    cache: Path | None = None,
    who: Subject | None = None,
    **run: Any,
) -> list[CandidateAnswer]:
    async def ask_all() -> list[CandidateAnswer]:
        async with AsyncClient(service.url, max_retries=0) as client:
            (results,) = await collect_answers(
                client, [who or subject()], targets, cache=cache, **run
            )
            return results

    return asyncio.run(ask_all())


def test_answers_are_in_order_in_batches_with_so_many_in_flight(service: Known) -> None:
    service.delay_s = 0.02
    steps: list[tuple[int, int, int]] = []
    results = answers(
        service, candidates(300), concurrency=3, on_answers=lambda *counts: steps.append(counts)
    )
    assert [answer.score for answer in results] == [float(n + 1) for n in range(300)]
    sizes = [len(body["items"]) for body in service.bodies]
    assert sizes[:3] == [2, 2, 2]
    assert sizes == sorted(sizes[:-1]) + sizes[-1:], "they grow to the last"
    assert max(sizes) == 64
    assert service.most_in_flight == 3
    assert sorted(steps) == [(size, 0, 0) for size in sorted(sizes)]
    assert not any(body["return_tokens"] for body in service.bodies)


def test_equal_candidates_are_asked_once(service: Known) -> None:
    results = answers(service, candidates(3) * 4)
    assert [answer.score for answer in results] == [1.0, 2.0, 3.0] * 4
    assert sorted(service.responses) == ["7", "77", "777"]


def test_units_come_with_their_characters_and_the_names_of_those_without(service: Known) -> None:
    targets = [
        Candidate({"prompt": "p", "response": "a5"}, "row", needs_units=True),
        *candidates(1),
    ]
    results, plain = answers(service, targets)
    rewards, spans = results.require_units()
    assert rewards.tolist() == [0, 5, 0]
    assert spans.tolist() == [[0, 1], [1, 2], [2, 2]]
    assert results.names == ("<|end|>",)
    assert (plain.rewards, plain.spans) == (None, None)
    assert [body["return_tokens"] for body in service.bodies] == [False, True]


def test_own_spans_are_the_units(service: Known) -> None:
    service.script.append(service.changed(0))
    item = {"prompt": "p", "response": "r5", "spans": [[0, 1], [1, 2]]}
    (results,) = answers(service, [Candidate(item, "row", needs_units=True)])
    _, spans = results.require_units()
    assert spans.tolist() == [[0, 1], [1, 2]]


def test_failed_item_is_an_error_without_its_place_in_the_request_and_is_asked_again(
    service: Known, tmp_path: Path
) -> None:
    targets = [*candidates(2), Candidate({"prompt": "p", "response": "fail"}, "row")]
    for _ in range(2):
        results = answers(service, targets, tmp_path / "cache")
        assert [answer.error is None for answer in results] == [True, True, False]
        assert results[2].error is not None
        assert results[2].error.message == "it is too long"
        assert results[2].error.param == "response"
    assert sorted(service.responses) == ["7", "77", "fail", "fail"]


@pytest.mark.parametrize(
    ("fields", "needs_units", "code"),
    [({"score": None}, False, "no_score"), ({"tokens": None}, True, "no_token_spans")],
)
def test_answer_without_what_is_needed_is_an_error(
    service: Known, fields: dict[str, Any], needs_units: bool, code: str
) -> None:
    def without(body: dict[str, Any]) -> Any:
        return service.reply(
            [service.answer(n, item, body) | fields for n, item in enumerate(body["items"])]
        )

    service.script.append(without)
    (results,) = answers(service, candidates(1, needs_units=needs_units))
    assert results.error is not None
    assert results.error.code == code


def test_interrupted_run_goes_on_where_it_stopped(service: Known, tmp_path: Path) -> None:
    service.script.extend(
        [service.ok, service.ok, service.says(422, "unknown_option", retryable=False)]
    )
    with pytest.raises(ServerRefused):
        answers(service, candidates(300), tmp_path / "cache", concurrency=1)
    assert len(service.responses) == 2 + 4 + 8
    started: list[tuple[int, int, int]] = []
    results = answers(
        service,
        candidates(300),
        tmp_path / "cache",
        on_start=lambda *counts: started.append(counts),
    )
    assert [answer.score for answer in results] == [float(n + 1) for n in range(300)]
    assert started == [(294, 6, 0)]
    assert len(service.responses) == 14 + 294
    answers(service, candidates(300), tmp_path / "cache")
    assert len(service.responses) == 14 + 294


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"version": 4},
        {"options": {"form": "logprob"}},
        {"credit": {"name": "last"}},
        {"tokenizer": "abc"},
        {"reference": "other"},
        {"name": "second"},
    ],
)
def test_change_of_what_an_answer_depends_on_asks_again(
    service: Known, tmp_path: Path, change: dict[str, Any]
) -> None:
    answers(service, candidates(3), tmp_path / "cache")
    version = change.get("version", 3)
    newer = lambda body: service.reply(  # noqa: E731
        [service.answer(n, i, body) for n, i in enumerate(body["items"])], version=version
    )
    service.script.extend([newer, newer])
    answers(service, candidates(3), tmp_path / "cache", subject(**change))
    assert len(service.responses) == 6


def test_change_of_the_servers_own_default_asks_again_and_of_its_route_does_not(
    service: Known, tmp_path: Path
) -> None:
    answers(service, candidates(3), tmp_path / "cache")
    elsewhere = Subject(
        "l", ScorerInfo.model_validate({**ENTRY, "route": "/elsewhere", "limits": {"x": 1}})
    )
    answers(service, candidates(3), tmp_path / "cache", elsewhere)
    assert len(service.responses) == 3
    default = Subject("l", ScorerInfo.model_validate({**ENTRY, "options": {"a": {"default": 2}}}))
    answers(service, candidates(3), tmp_path / "cache", default)
    assert len(service.responses) == 6


@pytest.mark.parametrize(
    ("options", "credit", "default"),
    [
        ({"score_from": "second"}, {}, None),
        ({}, {}, "second"),
        ({}, {"name": "last", "kl": {"coef": 0.1, "reference": "second"}}, None),
    ],
)
def test_change_of_the_scorer_that_is_asked_first_asks_again(
    options: dict[str, Any], credit: dict[str, Any], default: str | None
) -> None:
    def key(second_version: int) -> str:
        entry = {**ENTRY, "options": {"score_from": {"default": default}}}
        listing = [entry, {**ENTRY, "name": "second", "version": second_version}]
        infos = [ScorerInfo.model_validate(each) for each in listing]
        who = find_subject("known", "known", infos, options=options, credit=credit)
        return who.key(candidates(1)[0])

    assert key(3) == key(3)
    assert key(3) != key(4)


def test_both_dependencies_are_in_the_key_in_the_order_of_older_caches() -> None:
    names = ("known", "gives_score", "gives_logprobs")
    infos = [ScorerInfo.model_validate({**ENTRY, "name": name}) for name in names]
    options = {"score_from": "gives_score"}
    credit = {"name": "last", "kl": {"coef": 0.1, "reference": "gives_logprobs"}}
    who = find_subject("known", "known", infos, options=options, credit=credit)
    assert [info.name for info in who.dependencies] == ["gives_score", "gives_logprobs"]


@pytest.mark.parametrize(
    ("options", "credit", "path"),
    [
        ({"score_from": 5}, {}, "options.score_from"),
        ({}, {"kl": {"reference": 5}}, "credit.kl.reference"),
    ],
)
def test_dependency_that_is_no_name_is_refused(
    options: dict[str, Any], credit: dict[str, Any], path: str
) -> None:
    infos = [ScorerInfo.model_validate(ENTRY)]
    with pytest.raises(EvalError, match=f"scorer `mine`: invalid_field: `{path}`: must be"):
        find_subject("mine", "known", infos, options=options, credit=credit)


def test_change_of_a_scorer_that_is_not_asked_changes_nothing() -> None:
    def key(second_version: int) -> str:
        listing = [ENTRY, {**ENTRY, "name": "second", "version": second_version}]
        infos = [ScorerInfo.model_validate(each) for each in listing]
        return find_subject("known", "known", infos, options={"score_from": None}, credit={}).key(
            candidates(1)[0]
        )

    assert key(3) == key(4)


def test_units_are_not_found_where_only_the_score_was_kept(service: Known, tmp_path: Path) -> None:
    answers(service, candidates(2), tmp_path / "cache")
    results = answers(service, candidates(2, needs_units=True), tmp_path / "cache")
    assert all(answer.rewards is not None for answer in results)


def test_cached_answer_is_the_answer_that_was_cached(service: Known, tmp_path: Path) -> None:
    targets = candidates(5, needs_units=True)
    first, again = (answers(service, targets, tmp_path / "cache") for _ in range(2))
    assert [to_record(answer) for answer in first] == [to_record(answer) for answer in again]
    assert len(service.responses) == 5


def test_half_a_line_at_the_end_is_tolerated_and_does_not_take_the_next_line_with_it(
    service: Known, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    answers(service, candidates(3), cache)
    cache.write_bytes(cache.read_bytes()[:-20])
    results = answers(service, candidates(3), cache)
    assert [answer.score for answer in results] == [1.0, 2.0, 3.0]
    assert len(service.responses) == 4
    answers(service, candidates(3), cache)
    assert len(service.responses) == 4
    assert read_answers(cache, []) == ({}, 1)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '"x"',
        '{"key": ["list"]}',
        "{}",
        '{"key": "k"}',
        '{"key": "k", "score": NaN, "timing": [1, 1, 1, 1]}',
        "[" * 9999,
        '{"key": "k", "score": 1, "rewards": "!", "spans": [], "names": [], '
        '"timing": [1, 1, 1, 1]}',
    ],
)
def test_line_that_is_no_record_counts_as_absent(tmp_path: Path, line: str) -> None:
    (tmp_path / "cache").write_text(line + "\n")
    assert read_answers(tmp_path / "cache", ["k"]) == ({}, 1)


def test_record_that_was_never_written_is_refused() -> None:
    record = {
        "score": 1.0,
        "timing": [1, 1, 1, 1],
        "rewards": "AACAPw==",
        "spans": [[0, 1], [1, 2]],
        "names": [],
    }
    with pytest.raises(ValueError, match="do not go together"):
        from_record(record)


def test_weights_that_change_meanwhile_end_the_run(service: Known) -> None:
    service.script.append(
        lambda body: service.reply(
            [service.answer(n, i, body) for n, i in enumerate(body["items"])], version=4
        )
    )
    with pytest.raises(EvalError, match="`known` went from version 3 to 4"):
        answers(service, candidates(3))


@pytest.mark.parametrize("answered", [3, 4])
def test_weights_of_a_scorer_that_is_asked_first_and_change_meanwhile_end_the_run(
    service: Known, tmp_path: Path, answered: int
) -> None:
    """What the old weights' key would find again came of the new ones."""

    def reply(body: dict[str, Any]) -> Any:
        items = [service.answer(n, item, body) for n, item in enumerate(body["items"])]
        return service.reply(items, sources={"second": {"model": "m", "version": answered}})

    service.script.extend([reply, reply])
    infos = [ScorerInfo.model_validate({**ENTRY, "name": name}) for name in ("known", "second")]
    who = find_subject("known", "known", infos, options={"score_from": "second"}, credit={})
    if answered == 3:
        assert len(answers(service, candidates(3), tmp_path / "cache", who)) == 3
        return
    with pytest.raises(EvalError, match="`second` went from version 3 to 4"):
        answers(service, candidates(3), tmp_path / "cache", who)
    assert not (tmp_path / "cache").exists()


def test_options_and_credit_travel_and_the_label_does_not(service: Known) -> None:
    who = Subject("my label", ScorerInfo.model_validate(ENTRY), {"alpha": 2}, {"name": "last"})
    answers(service, candidates(1), who=who)
    (body,) = service.bodies
    assert (body["scorer"], body["options"], body["credit"]) == (
        "known",
        {"alpha": 2},
        {"name": "last"},
    )


def test_scorer_that_is_not_served_is_named_with_those_that_are() -> None:
    listing = [ScorerInfo(name="a"), ScorerInfo(name="b")]
    with pytest.raises(EvalError, match="no scorer `c`; it has a, b"):
        find_subject("c", "c", listing, options={}, credit={})


def test_times_add_up_to_the_time_of_the_run(service: Known) -> None:
    service.delay_s = 0.1
    began = time.monotonic()
    results = answers(service, candidates(256), concurrency=2)
    took_s = time.monotonic() - began
    timings = [answer.timing for answer in results if answer.timing is not None]
    total = sum(since_last_s / num_items for _, since_last_s, num_items, _ in timings)
    num_rounds = len(service.bodies) / 2
    assert 0.1 * num_rounds <= total <= took_s
    assert all(seconds >= 0.1 for seconds, *_ in timings)


def test_the_package_is_light() -> None:
    heavy = (
        "torch",
        "transformers",
        "ray",
        "fastapi",
        "yaml",
        "tokenreward.engine",
        "tokenreward.demo",
    )
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import tokenreward.eval, "
        "tokenreward.eval.report\n"
    )
    code += f"print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_cache_is_json_lines_of_ascii(service: Known, tmp_path: Path) -> None:
    targets = [Candidate({"prompt": "p", "response": "é日"}, "row", needs_units=True)]
    answers(service, targets, tmp_path / "cache")
    (line,) = (tmp_path / "cache").read_bytes().splitlines()
    assert json.loads(line.decode("ascii"))["spans"] == [[0, 1], [1, 2], [2, 2]]


@pytest.mark.parametrize(
    ("batch_items", "num_items", "seconds", "following"),
    [
        (2, 2, 0.01, 4),  # fast: twice as many
        (48, 48, 0.01, 64),  # but no more than a request of the client holds
        (32, 32, 16.0, 8),  # a quarter of them takes four seconds
        (8, 8, 300.0, 1),  # one item at least
        (1, 1, 3.0, 1),
        (64, 2, 9.0, 64),  # it waited behind larger ones
    ],
)
def test_request_holds_what_the_service_answers_in_a_few_seconds(
    batch_items: int, num_items: int, seconds: float, following: int
) -> None:
    assert next_batch_items(batch_items, num_items, seconds) == following


LATE = {"code": "deadline_exceeded", "message": "too late", "retryable": True}


def late_above(service: Known, most_items: int) -> None:
    """Requests with more items than that pass their deadline."""
    plain = service.ok

    def answer(body: dict[str, Any]) -> Any:
        if len(body["items"]) > most_items:
            return service.says(504, "deadline_exceeded", retryable=False)(body)
        return plain(body)

    service.ok = answer  # type: ignore[method-assign]


@pytest.fixture
def slow_service(service: Known) -> Iterator[Known]:
    yield service
    vars(service).pop("ok", None)


def test_request_past_its_deadline_is_asked_again_in_halves(slow_service: Known) -> None:
    late_above(slow_service, 5)
    results = answers(slow_service, candidates(60), concurrency=2)
    assert [answer.score for answer in results] == [float(n + 1) for n in range(60)]


def test_items_alone_past_the_deadline_are_errors_and_three_in_a_row_end_the_run(
    slow_service: Known, tmp_path: Path
) -> None:
    plain = slow_service.answer

    def answer(index: int, item: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        if item["response"].startswith("slow"):
            return {"index": index, "error": {**LATE, "retryable": False}}
        return plain(index, item, body)

    slow_service.answer = answer  # type: ignore[method-assign]
    try:
        some = [*candidates(4), *(Candidate({"prompt": "p", "response": "slow"}, "row"),)]
        results = answers(slow_service, some, concurrency=3)
        assert [each.error.code for each in results if each.error] == ["deadline_exceeded"]
        assert [each.score for each in results[:4]] == [1.0, 2.0, 3.0, 4.0]
        many = [Candidate({"prompt": "p", "response": f"slow {n}"}, "row") for n in range(9)]
        with pytest.raises(DeadlineExceeded, match="3 items in a row"):
            answers(slow_service, [*candidates(4), *many], tmp_path / "cache", concurrency=3)
        assert len((tmp_path / "cache").read_bytes().splitlines()) == 4
    finally:
        del slow_service.answer  # type: ignore[method-assign]


def test_item_that_is_too_large_for_any_request_is_an_error_and_the_others_are_answered(
    slow_service: Known,
) -> None:
    plain = slow_service.ok

    def answer(body: dict[str, Any]) -> Any:
        if any(item["response"] == "huge" for item in body["items"]):
            return slow_service.says(413, "larger_than_queue", retryable=False)(body)
        return plain(body)

    slow_service.ok = answer  # type: ignore[method-assign]
    huge = Candidate({"prompt": "p", "response": "huge"}, "row")
    results = answers(slow_service, [huge, *candidates(9)], concurrency=1)
    assert [each.error.code for each in results if each.error] == ["larger_than_queue"]
    assert [each.score for each in results[1:]] == [float(n + 1) for n in range(9)]
    (alone,) = answers(slow_service, [huge])
    assert alone.error is not None
    assert alone.error.code == "larger_than_queue"
    # Where no item of a request fits, too.
    several = [replace(huge, item={**huge.item, "prompt": f"p{n}"}) for n in range(5)]
    results = answers(slow_service, [*several, *candidates(9)], concurrency=1)
    assert [each.error is not None for each in results] == [True] * 5 + [False] * 9


@pytest.mark.parametrize(
    ("status", "code"), [(413, "larger_than_queue"), (504, "deadline_exceeded")]
)
def test_first_item_that_is_too_large_or_late_does_not_refuse_the_run(
    service: Known, status: int, code: str
) -> None:
    async def try_first() -> None:
        async with AsyncClient(service.url, max_retries=0) as client:
            await try_out(client, [subject()], candidates(1)[0])

    service.script.append(service.says(status, code, retryable=False))
    asyncio.run(try_first())
    service.script.append(service.says(422, "unknown_option", retryable=False))
    with pytest.raises(EvalError, match="unknown_option"):
        asyncio.run(try_first())


def of_deployment(label: str, name: str, deployment: str | None, **more: Any) -> Subject:
    entry = {**ENTRY, "name": name, "deployment": deployment}
    return Subject(label, ScorerInfo.model_validate(entry), **more)


def test_scorers_of_one_deployment_are_asked_in_one_request(service: Known, tmp_path: Path) -> None:
    group = [
        of_deployment("a", "first", "lm", options={"alpha": 2}),
        of_deployment("b", "second", "lm", credit={"name": "last"}),
    ]
    targets = [*candidates(5), *candidates(7, needs_units=True)]

    async def ask(subjects: list[Subject]) -> list[list[CandidateAnswer]]:
        async with AsyncClient(service.url, max_retries=0) as client:
            return await collect_answers(client, subjects, targets, cache=tmp_path / "cache")

    answers(service, candidates(2), tmp_path / "cache", group[0])
    service.seen.clear()
    first, second = asyncio.run(ask(group))
    expected = [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert [each.score for each in first] == [each.score for each in second] == expected
    assert [len(each.require_units()[1]) for each in second[5:]] == [2, 3, 4, 5, 6, 7, 8]
    together = [body for body in service.bodies if "scorers" in body]
    assert {tuple(body["scorers"]) for body in together} == {("first", "second")}
    assert together[0]["options"] == {"first": {"alpha": 2}, "second": {}}
    assert together[0]["credit"] == {"first": {}, "second": {"name": "last"}}
    # The cache had two answers of the first: those items are asked of the second alone.
    alone = [body for body in service.bodies if "scorer" in body]
    assert [(body["scorer"], len(body["items"])) for body in alone] == [("second", 2)]
    service.seen.clear()
    asyncio.run(ask(group))
    assert service.seen == []


def test_one_scorer_under_several_options_is_asked_in_one_request(service: Known) -> None:
    group = [
        of_deployment("a", "first", "lm", options={"alpha": 2}),
        of_deployment("b", "first", "lm", options={"alpha": 3}),
    ]

    async def ask() -> list[list[CandidateAnswer]]:
        async with AsyncClient(service.url, max_retries=0) as client:
            return await collect_answers(client, group, candidates(2))

    first, second = asyncio.run(ask())
    assert [each.score for each in first] == [each.score for each in second] == [1.0, 2.0]
    (body,) = service.bodies
    assert body["scorers"] == ["0=first", "1=first"]
    assert body["options"] == {"0=first": {"alpha": 2}, "1=first": {"alpha": 3}}


def test_groups_are_of_one_deployment_and_a_scorer_that_asks_another_is_alone() -> None:
    subjects = [
        of_deployment("a", "first", "lm"),
        of_deployment("b", "rm", "rm"),
        of_deployment("c", "second", "lm"),
        of_deployment("d", "first", "lm", options={"alpha": 2}),
        of_deployment("e", "third", "lm", dependencies=[ScorerInfo(name="rm")]),
        of_deployment("f", "x", None),
        of_deployment("g", "y", None),
        of_deployment("h", "second", "lm", options={"alpha": 2}),
    ]
    labels = ["".join(subject.label for subject in group) for group in groups_of(subjects)]
    assert labels == ["acdh", "b", "e", "f", "g"]
