"""How an offer is written down: the layouts of the prompt and the sentences of the response.

It does not know the values, only the slots that they go into. No sentence begins with a slot: the
first word of a response has no space before it and would be other tokens than the same word in the
prompt.
"""

import random
import string
from collections.abc import Mapping

LABELS: dict[str, tuple[str, ...]] = {
    "role": ("Role", "Position"),
    "company": ("Company", "Employer"),
    "salary": ("Salary", "Pay"),
    "city": ("City", "Office"),
    "start": ("Start", "First day"),
    "manager": ("Manager", "Reports to"),
    "leave": ("Leave", "Holiday"),
    "bonus": ("Bonus", "Yearly bonus"),
    "reference": ("Reference", "Offer number"),
}
HEADINGS = ("Job offer", "Offer notes", "Notes from the call", "Offer sheet")
LINES = (
    "{label}: {value}\n",
    "- {label}: {value}\n",
    "{label} = {value}\n",
    "* {label} - {value}\n",
)
ASKS = (
    "Sum up the offer.",
    "Write one or two sentences about this offer.",
    "What does the offer say?",
    "Tell the candidate about the offer.",
)

JOB_SENTENCES = (
    "You would join {company} as {role}.",
    "The offer from {company} is for {role} in {city}.",
    "They want you as {role} at {company}, based in {city}.",
    "This is {role} at {company}, reporting to {manager}.",
    "The position is {role} in {city}, and {manager} will be your manager.",
    "Your new employer is {company} in {city}, under offer number {reference}.",
    "Offer {reference} makes you {role} at {company}.",
    "At {company} you would work as {role} with {manager}.",
)
TERMS_SENTENCES = (
    "The salary is {salary} and you start on {start}.",
    "It pays {salary} with a bonus of {bonus}.",
    "Pay is {salary} a year, plus {leave} of leave.",
    "You begin on {start} and get {leave} off each year.",
    "From {start} you earn {salary}, and the bonus is {bonus}.",
    "You get {salary}, a bonus of {bonus} and {leave} of holiday.",
    "The first day is {start}, the pay {salary}.",
    "There is a bonus of {bonus} and you have {leave} of holiday from {start}.",
)


def slots(template: str) -> list[str]:
    """The fields that a template mentions, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def draw_template(rng: random.Random) -> str:
    """One or two sentences with slots."""
    job, terms = rng.choice(JOB_SENTENCES), rng.choice(TERMS_SENTENCES)
    return rng.choice((f"{job} {terms}", f"{job} {terms}", job, terms))


def render(template: str, values: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The filled text, and for each slot the half-open range of characters that its value takes."""
    text, ranges = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            ranges[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
    return text, ranges


def render_facts(facts: Mapping[str, str], rng: random.Random) -> str:
    """The facts as lines, in a random layout and order."""
    names, line = list(facts), rng.choice(LINES)
    rng.shuffle(names)
    return "".join(line.format(label=rng.choice(LABELS[name]), value=facts[name]) for name in names)


def render_prompt(facts: Mapping[str, str], rng: random.Random) -> str:
    """A heading, the facts, and what to do with them."""
    return f"{rng.choice(HEADINGS)}\n{render_facts(facts, rng)}\n{rng.choice(ASKS)}"
