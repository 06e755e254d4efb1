"""Scorers that are asked first, on behalf of others: `credit.kl.reference` gives `ref_logprobs`,
`score_from` gives `score`.

Here a request says which it needs, a source gets its question, and its answer becomes a field of
the caller's items. It knows what stands in a request and a reply, and no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenreward.combine import has_ids, has_token_units, refuse_two_tokenizers
from tokenreward.errors import InvalidField, ScorerFailed
from tokenreward.http.route import Route, find
from tokenreward.wire import Item, RewardsRequest, decode_rewards, renumbered

LOG_PROBS: Mapping[str, dict[str, Any]] = {
    "endogenous": {"form": "logprob"}
}  # by type: the options that give them

NO_TIME = {"queue_s": 0.0, "tokenize_s": 0.0, "compute_s": 0.0}

_READ = ("prompt", "response", "finished", "tools", "chat_template_kwargs")
_CALLED = {"ref_logprobs": "reference", "score": "score from"}


@dataclass(frozen=True, slots=True)
class Source:
    """A scorer and the field of the items that it fills."""

    name: str
    fills: Literal["ref_logprobs", "score"]

    def says(self, message: str) -> str:
        """A message of its own, for a caller who asked another scorer."""
        return f"{_CALLED[self.fills]} `{self.name}`: {message}"

    def restated(self, error: Mapping[str, Any], positions: Sequence[int]) -> dict[str, Any]:
        """An error of its own the same way; of its params, those that name items are the caller's,
        too."""
        param = error.get("param") or ""
        own = {
            **error,
            "message": self.says(error["message"]),
            "param": param if param.startswith("items[") else None,
        }
        return renumbered_error(own, positions)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a source answered: a value or an error per item that it was asked about, by the caller's
    index."""

    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=NO_TIME.copy)
    model: str | None = None
    version: int | None = None


def names_another(options: object, credit: object) -> bool:
    """Whether a scorer's options and credit, not yet checked, name another scorer."""
    kl = credit.get("kl") if isinstance(credit, dict) else None
    named = (kl, "reference"), (options, "score_from")
    return any(isinstance(holder, dict) and holder.get(key) is not None for holder, key in named)


def sources_of(
    request: RewardsRequest, name: str, routes: Mapping[str, Route]
) -> tuple[Source, ...]:
    """Who has to be asked before the scorer `name`. Raises RequestError: that cannot be, or is not
    clear."""
    below = "" if request.scorer is not None else f".{name}"
    kl = request.credit_of(name).kl
    options = request.options_of(name)
    found = []
    if kl is not None and kl.reference is not None:
        where = f"credit{below}.kl.reference"
        found.append(_reference(kl.reference, routes, where=where))
        _refuse_own(request, "ref_logprobs", where=where)
    if "score_from" not in options:
        default = routes[name].score_from
        found += [] if default is None else [Source(default, "score")]
    elif options["score_from"] is not None:
        where = f"options{below}.score_from"
        found.append(_score_source(options["score_from"], name, routes, where=where))
        _refuse_own(request, "score", where=where)
    return tuple(found)


def _reference(name: str, routes: Mapping[str, Route], *, where: str) -> Source:
    kind = find(routes, name, param=where).type
    if kind not in LOG_PROBS:
        raise InvalidField(
            f"`{name}` is of type `{kind}`, which has no log-probs; {_listed(LOG_PROBS)} has",
            param=where,
        )
    return Source(name, "ref_logprobs")


def _score_source(given: object, asker: str, routes: Mapping[str, Route], *, where: str) -> Source:
    if not isinstance(given, str):
        raise InvalidField("must be the name of a scorer, or null", param=where)
    route = find(routes, given, param=where)
    if given == asker:
        raise InvalidField(f"must name another scorer than `{asker}` itself", param=where)
    if route.score_from is not None:
        raise InvalidField(f"`{given}` takes its own score from `{route.score_from}`", param=where)
    return Source(given, "score")


def _refuse_own(request: RewardsRequest, name: str, *, where: str) -> None:
    """An item that brings what a source was named for: one of the two would be lost."""
    for index, item in enumerate(request.items):
        if getattr(item, name) is not None:
            param = f"items[{index}].{name}"
            raise InvalidField(
                f"`{where}` names a scorer to ask for what the item brings", param=param
            )


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def needs_one_tokenizer(source: Source, item: Item) -> bool:
    """Whether scorer and source must share a tokenizer: they read ids, or a list that counts tokens
    passes between them."""
    counts_tokens = source.fills == "ref_logprobs" or item.mask is not None
    return has_ids(item) or (counts_tokens and has_token_units(item))


def refuse_unlike_units(
    source: Source, asker: str, items: Sequence[Item], *, tokenizers: Mapping[str, str]
) -> None:
    """`tokenizers`: fingerprint by scorer. Raises UnitsDiffer."""
    between = f"`{asker}` and its {_CALLED[source.fills]} `{source.name}`"
    refuse_two_tokenizers(
        items,
        {tokenizers[asker], tokenizers[source.name]},
        concerned=lambda item: needs_one_tokenizer(source, item),
        message=f"{between} have different tokenizers: give the prompt as text or messages, the response as text, "
        "and `spans`",
    )


def question(
    source: Source, kind: str, items: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[int]]:
    """The request for a source of type `kind`, and the positions of the items in it: those that
    lack the field."""
    positions = [index for index, item in enumerate(items) if item.get(source.fills) is None]
    asked = [_asked(source, items[position]) for position in positions]
    body: dict[str, Any] = {"scorer": source.name, "items": asked, "encoding_format": "base64"}
    if source.fills == "ref_logprobs":
        body |= {"options": LOG_PROBS[kind], "credit": {"name": "values"}}
    return body, positions


def _asked(source: Source, item: Mapping[str, Any]) -> dict[str, Any]:
    """The item as its source reads it. A masked unit's log-prob is a log-prob all the same; a
    score's sums leave it out."""
    masked = source.fills == "score" and item.get("mask") is not None
    units = ("spans", "mask") if masked else ("spans",) if source.fills == "ref_logprobs" else ()
    return {key: item[key] for key in (*_READ, *units) if key in item}


def told(source: Source, reply: Mapping[str, Any], positions: Sequence[int]) -> Told:
    """What a source's reply says of the caller's items. Raises ValueError: it says nothing of the
    kind."""
    values: dict[int, Any] = {}
    errors: dict[int, dict[str, Any]] = {}
    for position, item in zip(positions, reply["items"], strict=True):
        if item.get("error") is not None:
            errors[position] = source.restated(item["error"], positions)
        elif source.fills == "ref_logprobs":
            values[position] = _log_probs(item.get("rewards"))
        elif item.get("score") is not None:
            values[position] = float(item["score"])
        else:
            errors[position] = source.restated(
                ScorerFailed("it gives no score").detail(), positions
            )
    return Told(values, errors, reply["timing"], reply.get("model"), reply.get("version"))


def _log_probs(encoded: object) -> list[float]:
    if not isinstance(encoded, (str, bytes)):
        raise ValueError("log-probs were asked for as base64, or came as msgpack")
    log_probs: list[float] = decode_rewards(encoded).tolist()
    return log_probs


def renumbered_error(error: Mapping[str, Any], positions: Sequence[int]) -> dict[str, Any]:
    """An error's detail with `items[i]` counting the caller's items."""
    param = error.get("param")
    return {**error, "param": None if param is None else renumbered(param, positions)}
