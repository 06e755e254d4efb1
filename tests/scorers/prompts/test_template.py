"""Templates that callers write: what they show, and that nothing they ask for runs long, grows
large or reaches out."""

from __future__ import annotations

import time

import pytest

from tokenreward.contract import MAX_OPTION_CHARACTERS, RequestBudget
from tokenreward.errors import SequenceTooLong, UnsupportedText
from tokenreward.scorers._prompts import template as templates
from tokenreward.scorers._prompts.template import template

MESSAGES = [{"role": "user", "content": " 2+2? "}, {"role": "assistant", "content": "4"}]


def show(text: str) -> str:
    return template(text).render(
        RequestBudget(), prompt="2+2?", response=" It is 4. ", messages=MESSAGES
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q: {{ prompt }}\nA:{{ response }}\n", "Q: 2+2?\nA: It is 4. \n"),
        ("{{ response | trim | upper }} {{ prompt | length }}", "IT IS 4. 4"),
        (
            "{% for m in messages %}\n{{ loop.index }} {{ m.role }}: "
            "{{ m['content'] | trim }}\n{% endfor %}",
            None,
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
            " 2+2? ",
        ),
        ("{{ messages[-1].content }}{{ messages[0].name | default('nobody') }}", "4nobody"),
        ("{% if '4' in response and not prompt is none %}yes{% else %}no{% endif %}", "yes"),
        (
            "{{ 'a' if messages[0].name is defined else 'b' }}{# a note #}"
            "{% raw %}{{ x }}{% endraw %}",
            "b{{ x }}",
        ),
        ("<b>{{ prompt }}</b> & {{ response }}", "<b>2+2?</b> &  It is 4. "),
    ],
)
def test_a_template_shows_what_it_says(text: str, expected: str | None) -> None:
    assert show(text) == (expected if expected is not None else "1 user: 2+2?\n2 assistant: 4\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ range(10) }}", "Call"),
        ("{{ prompt.upper() }}", "Call"),
        ("{{ 'a' * 1000000000 }}", "Mul"),
        ("{{ 9 ** 9 ** 9 }}", "Pow"),
        ("{{ '%1000000000d' % 1 }}", "Mod"),
        ("{{ prompt ~ prompt }}", "Concat"),
        ("{% set x = prompt %}", "Assign"),
        ("{% macro f() %}{% endmacro %}", "Macro"),
        ("{% include 'x' %}", "Include"),
        ("{% import 'x' as x %}", "Import"),
        ("{{ prompt | replace('2', prompt) }}", "Filters"),
        ("{{ prompt | trim(response) }}", "constants"),
        ("{{ prompt | default(value=response) }}", "constants"),
        ("{{ prompt is sameas response }}", "Tests"),
        ("{% for a in messages %}{{ prompt }}{% endfor %}", "its own variable"),
        (
            "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}",
            "not inside another",
        ),
        (
            "{% for a in messages %}{% if prompt == response %}{% endif %}{% endfor %}",
            "its own variable",
        ),
        ("{% for a in messages if prompt %}{% endfor %}", "its own variable"),
        ("{% for a in prompt %}{% endfor %}", "goes over `messages`"),
        ("{% for a in messages[0].content %}{% endfor %}", "goes over `messages`"),
        ("{% for a, b in messages %}{% endfor %}", "one variable"),
        ("{% for a in messages recursive %}{% endfor %}", "not recursive"),
        ("{{ " + "not " * 30 + "1 }}", "nested deeper"),
        ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "nested too deep"),
        ("{% if prompt %}", "is not Jinja: line 1"),
        ("first\n{{ }", "is not Jinja: line 2"),
        ("x" * (MAX_OPTION_CHARACTERS + 1), f"the limit is {MAX_OPTION_CHARACTERS}"),
    ],
)
def test_what_could_run_long_or_grow_large_is_refused_before_it_runs(text: str, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnsupportedText, match=why):
        template(text)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "text", ["{{ ''.__class__ }}", "{{ prompt.__init__.__globals__ }}", "{{ messages[0].name }}"]
)
def test_what_is_not_there_or_not_safe_fails_as_its_own_fault(text: str) -> None:
    with pytest.raises(
        UnsupportedText, match=r"failed on this item: (SecurityError|UndefinedError)"
    ):
        show(text)


def test_a_template_says_what_it_reads_and_nothing_is_there_by_itself() -> None:
    compiled = template(
        "{{ prompt }}{% for m in messages %}{{ m }}{{ loop.index }}{% endfor %}"
        "{{ cycler }}{{ dict }}"
    )
    assert compiled.variables == {"prompt", "messages", "cycler", "dict"}


def test_a_text_that_grows_past_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARACTERS", 100)
    assert len(template("{{ prompt }}" * 25).render(RequestBudget(), prompt="2+2?")) == 100
    with pytest.raises(UnsupportedText, match="more than 100 characters"):
        template("{{ prompt }}" * 26).render(RequestBudget(), prompt="2+2?")


def test_what_a_template_shows_is_spent_from_the_budget_of_its_request() -> None:
    budget, shown_twice = RequestBudget(10), template("{{ prompt }}{{ prompt }}")
    assert shown_twice.render(budget, prompt="2+2?") == "2+2?2+2?"
    assert budget.num_characters == 2
    with pytest.raises(SequenceTooLong):
        shown_twice.render(budget, prompt="2+2?")
