"""Which credit a scorer supports, and that a rule's parameters are refused with any other rule."""

from __future__ import annotations

import itertools

import pytest

from tokenreward.contract import Gives
from tokenreward.credit import NEEDS, check
from tokenreward.errors import CreditNotSupported, InvalidField
from tokenreward.wire import Credit, CreditName

# The rules of section 3 and the signals in their formulas.
READS: dict[CreditName, set[Gives]] = {
    "values": {"values"},
    "last": {"score"},
    "uniform": {"score"},
    "attention": {"score", "weights"},
    "discount": {"score"},
}
GIVES: list[frozenset[Gives]] = [
    frozenset(some)
    for size in range(1, 4)
    for some in itertools.combinations(("values", "score", "weights"), size)  # type: ignore[misc]
]


def test_each_rule_needs_the_signals_in_its_formula() -> None:
    assert {name: set(needs) for name, needs in NEEDS.items()} == READS


@pytest.mark.parametrize("gives", GIVES, ids=lambda gives: "+".join(sorted(gives)))
@pytest.mark.parametrize("name", READS)
def test_a_credit_is_supported_exactly_if_the_scorer_gives_all_it_reads(
    name: CreditName, gives: frozenset[Gives]
) -> None:
    if READS[name] <= gives:
        assert check(Credit(name=name), default="last", gives=gives) == name
        return
    with pytest.raises(CreditNotSupported) as caught:
        check(Credit(name=name), default="last", gives=gives)
    assert (caught.value.status, caught.value.code) == (422, "credit_not_supported")
    assert caught.value.param == "credit.name"
    assert all(missing in caught.value.message for missing in READS[name] - gives)


@pytest.mark.parametrize("default", READS)
def test_without_a_name_the_credit_is_the_scorers_default(default: CreditName) -> None:
    assert (
        check(Credit(), default=default, gives=frozenset({"values", "score", "weights"})) == default
    )


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(("parameter", "owner"), [("beta", "attention"), ("gamma", "discount")])
@pytest.mark.parametrize("as_default", [True, False])
def test_beta_and_gamma_are_refused_with_every_rule_but_their_own(
    name: CreditName, parameter: str, owner: str, as_default: bool
) -> None:
    everything: frozenset[Gives] = frozenset({"values", "score", "weights"})
    credit = Credit.model_validate({"name": None if as_default else name, parameter: 0.5})
    if name == owner:
        assert check(credit, default=name, gives=everything) == name
        return
    with pytest.raises(InvalidField, match=f"belongs to credit `{owner}`, not `{name}`") as caught:
        check(credit, default=name, gives=everything)
    assert caught.value.param == f"credit.{parameter}"
