"""Which scorer answers another program's protocol, and with which options and credit.

The operator's settings say so. Without them it is the first scorer that gives what the protocol
asks for, and for log-probabilities rather one that gives other tokens', too. This module knows the
types of scorers, and no bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from tokenreward import credit as credits
from tokenreward.contract import merged_options
from tokenreward.errors import InvalidField, RequestError, UnknownOption
from tokenreward.http.protocols import Protocol, find_protocols
from tokenreward.scorers import resolve
from tokenreward.settings import ProtocolSettings, Settings, SettingsError
from tokenreward.wire import Credit, parse, refusal
from tokenreward.wire.dependencies import dependencies
from tokenreward.wire.increments import why_not_added_up

REWARD_TYPE = "reward_model"

ProtocolPlans = Mapping[str, ProtocolSettings]


def plan_for(
    protocol: type[Protocol], types: Mapping[str, str], plans: ProtocolPlans
) -> ProtocolSettings | None:
    """The scorer that answers a protocol.

    Args:
        protocol: The protocol.
        types: The type of each scorer that is served here, by name.
        plans: The operator's settings, by the protocol's name. They do not count where their scorer
            is served elsewhere.

    Returns:
        The scorer, with the options and the credit that it is asked with; None if no scorer here
        gives what the protocol asks for.
    """
    if protocol.asks_for is None:
        return None
    plan = plans.get(protocol.name, ProtocolSettings())
    if plan.scorer is not None and plan.scorer not in types:
        plan = ProtocolSettings()
    scorer = plan.scorer or _first(protocol, types)
    if scorer is None:
        return None
    options, credit = plan.options, plan.credit
    if protocol.asks_for == "log_probs":
        options = {**(log_probs_options(types[scorer]) or {}), **options}
        credit = {"name": "values", **credit}
    return ProtocolSettings(scorer=scorer, options=options, credit=credit)


def _first(protocol: type[Protocol], types: Mapping[str, str]) -> str | None:
    if protocol.asks_for != "log_probs":
        return next((name for name, type_ in types.items() if type_ == REWARD_TYPE), None)
    fit = [name for name, type_ in types.items() if log_probs_options(type_) is not None]
    # Most of these protocols ask for other tokens' log-probs, too.
    ranking = [name for name in fit if "top_k" in (log_probs_options(types[name]) or {})]
    return next(iter(ranking + fit), None)


@cache
def log_probs_options(type_: str) -> Mapping[str, Any] | None:
    """The options under which a type of scorer gives log-probabilities; None if it gives none, or
    if it cannot be imported here."""
    try:
        return resolve(type_).log_probs_options
    except LookupError:
        return None


def check_plans(settings: Settings) -> None:
    """Refuses settings of protocols that no request could be answered with.

    Raises:
        SettingsError: Names the protocol, and what is wrong with it.
    """
    scorers = {each.served_name: each for d in settings.deployments for each in d.scorers}
    types = {name: scorer.type for name, scorer in scorers.items()}
    protocols = {each.name: each for each in find_protocols().values() if each.asks_for}
    for name in settings.protocols:
        where = f"protocols.{name}"
        if name not in protocols:
            raise SettingsError(
                f"`{where}`: no such protocol; there are {', '.join(sorted(protocols))}"
            )
        plan = plan_for(protocols[name], types, settings.protocols)
        if plan is None or plan.scorer is None:
            raise SettingsError(f"`{where}`: {protocols[name].missing()}")
        if protocols[name].asks_for == "log_probs" and not log_probs_options(types[plan.scorer]):
            raise SettingsError(
                f"`{where}.scorer`: `{plan.scorer}` is of type `{types[plan.scorer]}`, which gives "
                "no log-probabilities"
            )
        try:
            _check(protocols[name], plan, types[plan.scorer], defaults=scorers[plan.scorer].options)
            sources = dependencies(plan.options, plan.credit)
        except RequestError as error:
            raise SettingsError(f"`{where}`: {error}") from None
        for source in sources:
            if source.name not in types:
                raise SettingsError(f"`{where}.{source.param}`: no scorer `{source.name}`")


def _check(
    protocol: type[Protocol], plan: ProtocolSettings, type_: str, *, defaults: Mapping[str, Any]
) -> None:
    """Raises RequestError for options or a credit that the scorer does not take, or whose rewards
    the protocol's programs must not have."""
    try:
        scorer = resolve(type_)
    except LookupError:  # of another package, which the replica has
        return
    try:
        options = merged_options(scorer, defaults, plan.options)
    except ValidationError as error:
        raise refusal(error, prefix=("options",), unknown=UnknownOption) from None
    credit = parse(Credit, plan.credit, prefix=("credit",))
    rule = credits.check(credit, default=scorer.default_credit, gives=scorer.gives, param="credit")
    if protocol.gives_token_rewards:
        is_red = getattr(options, "red", False)
        reason = why_not_added_up(plan.scorer or "", type_=type_, credit=rule, is_red=is_red)
        if reason is not None:
            raise InvalidField(reason, param="credit.name")
