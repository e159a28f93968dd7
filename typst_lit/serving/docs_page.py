"""The page ``/docs``: a description of all routes, with a form for each. It needs nothing from other servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from markupsafe import Markup, escape

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render_docs(openapi: Mapping[str, Any]) -> str:
    """Returns the page of an OpenAPI schema as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("typst_lit.serving", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code"] = _mark_code
    operations = list(_operations(openapi))
    needs_token = any(operation["needs_token"] for operation in operations)
    return environment.get_template("docs.html.jinja").render(
        info=openapi["info"], operations=operations, needs_token=needs_token
    )


def _operations(openapi: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what the page shows of each operation."""
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = _resolve(openapi, content.get("application/json", {}).get("schema", {}))
            examples = schema.get("examples", [])
            yield {
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "description": operation.get("description", ""),
                "tag": operation["tags"][0],
                "needs_token": bool(operation.get("security")),
                "fields": list(_fields(openapi, schema)),
                "example": json.dumps(examples[0], indent=2, ensure_ascii=False) if examples else "",
                "responses": {status: text["description"] for status, text in operation["responses"].items()},
            }


def _fields(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields name, type, limits and description of the fields of a request's body."""
    for name, field in schema.get("properties", {}).items():
        options = [_resolve(openapi, option) for option in field.get("anyOf", [field])]
        option = next((option for option in options if option.get("type") != "null"), {})
        limits = [
            f"{text} {option[key]:g}"
            for key, text in (("exclusiveMinimum", "above"), ("minimum", "from"), ("maximum", "up to"))
            if key in option
        ]
        yield {
            "name": name,
            "type": " ".join([option.get("type", "null"), *limits]),
            "is_required": name in schema.get("required", []),
            "description": field.get("description", ""),
        }


def _resolve(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema that a reference names."""
    if "$ref" not in schema:
        return schema
    return openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def _mark_code(text: str) -> Markup:
    """Returns a text with what is in backquotes as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
