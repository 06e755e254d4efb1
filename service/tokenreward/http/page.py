"""The page of `GET /docs`: the OpenAPI document as HTML that loads nothing and runs nothing.

It knows the shape of an OpenAPI document, and no route of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenreward.display import html_page, safe_html

_STYLE = """
:root{color-scheme:light dark}
body{max-width:60rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif}
h2{margin-top:2.5rem;border-bottom:1px solid #8886}
h2 small{font-weight:400;opacity:.7}
table{border-collapse:collapse;width:100%}
th,td{padding:.3rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid #8884}
code,pre{font:14px/1.5 ui-monospace,monospace}
pre{padding:.7rem;overflow-x:auto;background:#8881;border-radius:6px}
.text{white-space:pre-wrap}
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as one HTML page: routes first, then the schemas that they name."""
    info = document["info"]
    parts = [f"<h1>{safe_html(info['title'])} {safe_html(info['version'])}</h1>"]
    parts += [f"<p>{safe_html(info['description'])}</p>"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method.upper(), path, operation)
    parts += ["<h1>Schemas</h1>"]
    for name, schema in document["components"]["schemas"].items():
        parts += _schema(name, schema)
    return html_page(info["title"], "".join(parts), style=_STYLE)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2>{method} {safe_html(path)} <small>{safe_html(operation['summary'])}</small></h2>"
    if "description" in operation:
        yield f"<p class='text'>{safe_html(operation['description'])}</p>"
    if "requestBody" in operation:
        yield "<h3>Request</h3>"
        yield from _content(operation["requestBody"]["content"])
    for status, response in operation["responses"].items():
        yield f"<h3>{safe_html(status)}</h3><p>{_prose(response['description'])}</p>"
        if status == "200":  # the errors have one body, which the schema `Error` shows
            yield from _content(response.get("content", {}))


def _content(content: Mapping[str, Any]) -> Iterator[str]:
    for media, body in content.items():
        yield f"<p><code>{safe_html(media)}</code>: {_type(body['schema'])}</p>"
        examples = [example["value"] for example in body.get("examples", {}).values()]
        for example in [body["example"]] if "example" in body else examples:
            text = example if isinstance(example, str) else json.dumps(example, indent=2)
            yield f"<pre>{safe_html(text)}</pre>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{safe_html(name)}">{safe_html(name)}</h2>'
    if "description" in schema:
        yield f"<p class='text'>{_prose(schema['description'])}</p>"
    yield "<table><tr><th>field</th><th>type</th><th>meaning</th></tr>"
    for field, entry in schema.get("properties", {}).items():
        note = _prose(entry.get("description", ""))
        if field in schema.get("required", ()):
            note = f"Required. {note}"
        elif entry.get("default") is not None:
            note += f" Default: <code>{safe_html(json.dumps(entry['default']))}</code>."
        yield f"<tr><td><code>{safe_html(field)}</code></td><td>{_type(entry)}</td>"
        yield f"<td>{note}</td></tr>"
    yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """The type that a schema stands for, in markup: `array of integer`, `string or null`."""
    if "$ref" in schema:
        name = safe_html(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(choice) for choice in schema[key]))
    if "enum" in schema:
        return " or ".join(f"<code>{safe_html(json.dumps(v))}</code>" for v in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return safe_html(schema.get("type", "any"))


def _prose(text: str) -> str:
    """Prose as markup: what stands in backquotes is code."""
    pieces = safe_html(text).split("`")
    return "".join(f"<code>{p}</code>" if index % 2 else p for index, p in enumerate(pieces))
