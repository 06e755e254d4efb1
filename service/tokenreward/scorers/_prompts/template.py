"""A prompt template that a caller may write: the part of Jinja whose rendering is harmless and
short.

Templates are sandboxed, so they reach nothing of ours. A sandbox bounds neither time nor memory, so
templates have no calls, no arithmetic and no assignments either. The one loop goes over `messages`
and reads nothing else. Rendering then costs at most the length of the template times the length of
what it shows. This module knows no tokenizer and no scorer.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenreward.contract import MAX_OPTION_CHARACTERS, RequestBudget
from tokenreward.errors import ItemError, UnsupportedText

MAX_RENDERED_CHARACTERS = 4_000_000  # of one item

_MAX_DEPTH = 20
_LOOPED = "messages"
_FILTERS = frozenset({"default", "first", "last", "length", "lower", "trim", "upper"})
_TESTS = frozenset({"defined", "mapping", "none", "string", "undefined"})
_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For)
_VALUES = (nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.CondExpr)
_LOGIC = (nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg)
_NODES = (*_STATEMENTS, *_VALUES, *_LOGIC, nodes.Filter, nodes.Test)
# White space as chat templates have it: a statement on a line of its own leaves no line behind.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
_ENVIRONMENT.globals.clear()


class Template:
    """One template, compiled. Make one with `template`.

    Attributes:
        variables: The names that it reads.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_OPTION_CHARACTERS:
            raise UnsupportedText(
                f"has {len(text)} characters, the limit is {MAX_OPTION_CHARACTERS}"
            )
        try:
            tree = _ENVIRONMENT.parse(text)
            _check(tree, depth=0)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self._compiled = _ENVIRONMENT.from_string(text)
        except TemplateSyntaxError as error:
            raise UnsupportedText(f"is not Jinja: line {error.lineno}") from None
        except (RecursionError, SyntaxError):
            # Brackets within brackets fail so, before there is a tree whose depth can be checked.
            raise UnsupportedText("is nested too deep") from None

    def render(self, budget: RequestBudget, **variables: Any) -> str:
        """The text of the template for one item.

        Args:
            budget: How much text may still be written for the items of the request.
            **variables: What the template reads.

        Raises:
            UnsupportedText: The template fails, or shows too much of this item.
            SequenceTooLong: The budget is spent.
        """
        parts, num_characters = [], 0
        try:
            for part in self._compiled.generate(**variables):
                parts.append(part)
                num_characters += len(part)
                if num_characters > MAX_RENDERED_CHARACTERS:
                    raise UnsupportedText(f"shows more than {MAX_RENDERED_CHARACTERS} characters")
                budget.spend(len(part))
        except ItemError:
            raise
        except Exception as error:  # a template is a program: its exceptions are its own fault
            raise UnsupportedText(f"failed on this item: {type(error).__name__}") from None
        return "".join(parts)


@lru_cache(maxsize=256)
def template(text: str) -> Template:
    """The template of a text, compiled once. Raises UnsupportedText."""
    return Template(text)


def _check(node: nodes.Node, *, depth: int, within: AbstractSet[str] | None = None) -> None:
    """Refuses a node that may not stand in a template, or one below it.

    Args:
        node: The node.
        depth: How deep the node stands in the tree.
        within: The names that the body of a loop may read; None outside a loop.

    Raises:
        UnsupportedText: Names the line.
    """
    kind = type(node).__name__
    if not isinstance(node, _NODES):
        raise UnsupportedText(f"line {node.lineno}: {kind} is not supported")
    if depth > _MAX_DEPTH:
        raise UnsupportedText(f"line {node.lineno}: nested deeper than {_MAX_DEPTH}")
    if isinstance(node, (nodes.Filter, nodes.Test)):
        _check_call(node)
    if isinstance(node, nodes.Name) and within is not None and node.name not in within:
        raise UnsupportedText(f"line {node.lineno}: a loop may read its own variable only")
    if isinstance(node, nodes.For):
        if within is not None or not isinstance(node.iter, nodes.Name) or node.iter.name != _LOOPED:
            raise UnsupportedText(
                f"line {node.lineno}: a loop goes over `{_LOOPED}`, and not inside another"
            )
        if not isinstance(node.target, nodes.Name) or node.recursive:
            raise UnsupportedText(
                f"line {node.lineno}: a loop has one variable and is not recursive"
            )
        # The target and the list stand outside the body, and `messages` is no name of the body's.
        within = {node.target.name, "loop"}
        children = [*node.body, *node.else_]
        if node.test is not None:
            children.append(node.test)
    else:
        children = list(node.iter_child_nodes())
    for child in children:
        _check(child, depth=depth + 1, within=within)


def _check_call(node: nodes.Filter | nodes.Test) -> None:
    """Refuses a filter or test that is not on the list, or whose arguments are computed."""
    names = _FILTERS if isinstance(node, nodes.Filter) else _TESTS
    if node.name not in names:
        raise UnsupportedText(
            f"line {node.lineno}: of {type(node).__name__}s there are {', '.join(sorted(names))}"
        )
    is_constant = all(isinstance(argument, nodes.Const) for argument in node.args)
    if not is_constant or node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
        raise UnsupportedText(f"line {node.lineno}: `{node.name}` takes constants only")
