"""A prompt template that a caller may write: Jinja, cut down until its rendering is harmless and
ends soon.

Sandboxed, so that it reaches nothing of ours; and as a sandbox bounds neither time nor memory,
there are no calls, no arithmetic, no assignments, and no loop but one over `messages`, which reads
nothing else. What is left costs at most the length of the template times that of what it shows. It
knows no tokenizer and no scorer.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenreward.contract import TextBudget
from tokenreward.errors import SequenceTooLong

MAX_TEMPLATE_CHARACTERS = 20_000
MAX_RENDERED_CHARACTERS = 4_000_000

_MAX_DEPTH = 20
_LOOPED = "messages"
_FILTERS = frozenset({"default", "first", "last", "length", "lower", "trim", "upper"})
_TESTS = frozenset({"defined", "mapping", "none", "string", "undefined"})
_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.CondExpr),
    *(
        nodes.Compare,
        nodes.Operand,
        nodes.And,
        nodes.Or,
        nodes.Not,
        nodes.Neg,
        nodes.Filter,
        nodes.Test,
    ),
)
# White space as chat templates have it: a statement on a line of its own leaves no line behind.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
_ENVIRONMENT.globals.clear()


class TemplateRefused(ValueError):
    """A template that is not served, or what it shows; the message quotes neither."""


class Template:
    """One template, compiled. `variables`: the names that it reads. Make one with `template`."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateRefused(
                f"has {len(text)} characters, the limit is {MAX_TEMPLATE_CHARACTERS}"
            )
        try:
            tree = _ENVIRONMENT.parse(text)
            _check(tree, depth=0)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self._compiled = _ENVIRONMENT.from_string(text)
        except TemplateSyntaxError as error:
            raise TemplateRefused(f"is not Jinja: line {error.lineno}") from None
        except (
            RecursionError,
            SyntaxError,
        ):  # brackets in brackets, before there is a tree to measure
            raise TemplateRefused("is nested too deep") from None

    def render(self, budget: TextBudget, **variables: Any) -> str:
        """The text of the template for one item.

        Args:
            budget: What the items of a request may still have written for them.
            **variables: What the template reads.

        Raises:
            TemplateRefused: The template fails, or shows too much of this item.
            SequenceTooLong: The budget is spent.
        """
        parts, num_characters = [], 0
        try:
            for part in self._compiled.generate(**variables):
                parts.append(part)
                num_characters += len(part)
                if num_characters > MAX_RENDERED_CHARACTERS:
                    raise TemplateRefused(f"shows more than {MAX_RENDERED_CHARACTERS} characters")
                budget.spend(len(part))
        except (TemplateRefused, SequenceTooLong):
            raise
        except Exception as error:  # a template is a program; whatever it raises is its own fault
            raise TemplateRefused(f"failed on this item: {type(error).__name__}") from None
        return "".join(parts)


@lru_cache(maxsize=256)
def template(text: str) -> Template:
    """The template of a text, compiled once. Raises TemplateRefused."""
    return Template(text)


def _check(node: nodes.Node, *, depth: int, within: AbstractSet[str] | None = None) -> None:
    """Raises TemplateRefused for what may not stand in a template. `within`: the names that a
    loop's body may read."""
    kind = type(node).__name__
    if not isinstance(node, _NODES):
        raise TemplateRefused(f"line {node.lineno}: {kind} is not supported")
    if depth > _MAX_DEPTH:
        raise TemplateRefused(f"line {node.lineno}: nested deeper than {_MAX_DEPTH}")
    if isinstance(node, (nodes.Filter, nodes.Test)):
        _check_call(node)
    if isinstance(node, nodes.Name) and within is not None and node.name not in within:
        raise TemplateRefused(f"line {node.lineno}: a loop may read its own variable only")
    if isinstance(node, nodes.For):
        if within is not None or not isinstance(node.iter, nodes.Name) or node.iter.name != _LOOPED:
            raise TemplateRefused(
                f"line {node.lineno}: a loop goes over `{_LOOPED}`, and not inside another"
            )
        if not isinstance(node.target, nodes.Name) or node.recursive:
            raise TemplateRefused(
                f"line {node.lineno}: a loop has one variable and is not recursive"
            )
        within = {node.target.name, "loop"}
        for inner in (*node.body, *node.else_, *([node.test] if node.test else [])):
            _check(inner, depth=depth + 1, within=within)
        return
    for inner in node.iter_child_nodes():
        _check(inner, depth=depth + 1, within=within)


def _check_call(node: nodes.Filter | nodes.Test) -> None:
    known = _FILTERS if isinstance(node, nodes.Filter) else _TESTS
    if node.name not in known:
        raise TemplateRefused(
            f"line {node.lineno}: of {type(node).__name__}s there are {', '.join(sorted(known))}"
        )
    plain = all(isinstance(argument, nodes.Const) for argument in node.args)
    if not plain or node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise TemplateRefused(f"line {node.lineno}: `{node.name}` takes constants only")
