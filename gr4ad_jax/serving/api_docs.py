"""The HTTP interface in words: one plain page made from the OpenAPI document, which needs
nothing from outside.
"""

import html
import json
from collections.abc import Mapping
from typing import Any

_STYLE = (
  "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 "
  "1rem;color-scheme:light dark}"
  "pre{overflow:auto;padding:.6rem;border:1px solid "
  "#8884;border-radius:6px}h2{margin-top:2.2rem}code{font-size:.95em}"
  "td,th{text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0}"
)


def render(document: Mapping[str, Any]) -> str:
  """The page, HTML.

  Args:
    document: an OpenAPI 3 document, as FastAPI writes it.
  """
  title = html.escape(f"{document['info']['title']} {document['info']['version']}")
  parts = [
    (
      "<!doctype html><html lang=en><meta "
      f"charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    ),
    f"<h1>{title}</h1><p>{html.escape(document['info'].get('description', ''))} ",
    "The same for machines: <a href=openapi.json>openapi.json</a>.</p>",
  ]
  for path, operations in document["paths"].items():
    parts += [_operation(method, path, operation) for method, operation in operations.items()]
  parts.append("<h2>Schemas</h2>")
  for name, schema in document.get("components", {}).get("schemas", {}).items():
    parts.append(f'<h3 id="{html.escape(name)}">{html.escape(name)}</h3>{_json(schema)}')
  return "".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
  """One operation: what it does, takes and answers."""
  told = [f"<h2><code>{html.escape(f'{method.upper()} {path}')}</code></h2>"]
  told.append(
    f"<p>{html.escape(operation.get('description') or operation.get('summary', ''))}</p><table>"
  )
  for parameter in operation.get("parameters", ()):
    about = html.escape(json.dumps(parameter["schema"]))
    told.append(
      f"<tr><th>{html.escape(parameter['name'])}</th><td>{parameter['in']}</td><td>{about}</td></tr>"
    )
  if "requestBody" in operation:
    told.append(f"<tr><th>body</th><td></td><td>{_schema_link(operation['requestBody'])}</td></tr>")
  for status, response in operation["responses"].items():
    about = f"{html.escape(response['description'])} {_schema_link(response)}"
    told.append(f"<tr><th>{html.escape(status)}</th><td></td><td>{about}</td></tr>")
  return "".join([*told, "</table>"])


def _schema_link(part: Mapping[str, Any]) -> str:
  """Names the schema of a body or a response; empty where it has none."""
  schema = part.get("content", {}).get("application/json", {}).get("schema", {})
  # The last part of a reference such as `#/components/schemas/Ad`.
  name = html.escape(schema.get("$ref", "").rpartition("/")[2])
  return f'<a href="#{name}">{name}</a>' if name else ""


def _json(value: Any) -> str:
  return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"
