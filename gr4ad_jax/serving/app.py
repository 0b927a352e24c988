"""The HTTP interface of a serving engine: FastAPI, with OpenAPI docs at /docs.

Every error is {"error": "…"}. The one status of the 5xx that is meant is 503 with Retry-After: too
much load, or shutting down. Needs the `serve` extra.
"""

import base64
import hashlib
import logging
import math
import os
import time
from collections.abc import Collection, Mapping
from typing import Any

from gr4ad_jax import __version__
from gr4ad_jax.answering.messages import Answer, Query, UnknownUser
from gr4ad_jax.data.schema import DataError
from gr4ad_jax.engine.batcher import Overloaded, Refused
from gr4ad_jax.serving import api_docs, event_routes, schemas
from gr4ad_jax.serving.guard import LOOPBACK, Guard, json_bytes

try:
  import fastapi
  from fastapi.exceptions import RequestValidationError
  from starlette.exceptions import HTTPException
except ImportError as error:
  raise ImportError("fastapi is missing: pip install 'gr4ad_jax[serve]'") from error

_log = logging.getLogger(__name__)
_PAGE = os.path.join(os.path.dirname(__file__), "page.html")
_SAID = {
  400: "The request names something that the run does not know, or is not JSON.",
  401: "The bearer token is missing or wrong.",
  403: "The host name is not served, or a page of another origin sent this.",
  404: "There is no such thing.",
  413: "The body is too large.",
  422: "A field is missing, unknown or out of its range.",
  503: "Too much load, or shutting down; Retry-After tells when to come again.",
}


def _page_headers(page: str) -> dict[str, str]:
  """Lets the page run its own script and style, known by their digests, and talk to this server
  alone.
  """
  allowed = {}
  for tag in ("script", "style"):
    # Browsers compare digests of exactly what stands between the tags.
    content = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
    allowed[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
  policy = (
    f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src "
    f"'sha256-{allowed['style']}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  return {
    "content-security-policy": policy,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
  }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
  return {status: {"model": schemas.Problem, "description": _SAID[status]} for status in statuses}


class Json(fastapi.Response):
  """A JSON answer, ASCII only."""

  media_type = "application/json"

  def render(self, content: Any) -> bytes:
    """The body's bytes."""
    return json_bytes(content)


def create_app(engine: Any, token: str = "", hosts: Collection[str] = LOOPBACK) -> fastapi.FastAPI:
  """The app.

  Args:
    engine: a `ServingEngine`. It is not closed with the app.
    token: bearer token that all but the page, /healthz and /readyz ask for; empty: none.
    hosts: names under which the server may be asked; empty: any.
  """
  app = fastapi.FastAPI(
    title="gr4ad_jax",
    version=__version__,
    description="Generated ads for a user or a history.",
    docs_url=None,
    redoc_url=None,  # they load their scripts from outside
    redirect_slashes=False,  # a redirect would name the host that the client claimed
  )
  most = engine.config.serving.max_body_kb * 1024
  app.add_middleware(Guard, token=token, most=most, hosts=hosts)
  app.include_router(_recommendations(engine))
  app.include_router(_ads(engine))
  app.include_router(_accounts(engine))
  for routes in (event_routes.events, event_routes.users):
    app.include_router(routes(engine, Json, _refusal, _problems))
  app.include_router(_state(engine))
  _add_docs(app)
  _add_error_handlers(app)
  if token:
    _describe_token(app)
  return app


def _recommendations(engine: Any) -> fastapi.APIRouter:
  router = fastapi.APIRouter(tags=["recommend"])
  limited = schemas.limited_request(engine.config.serving)

  problems = _problems(400, 401, 403, 404, 413, 422, 503)

  @router.post("/v1/recommend", response_model=schemas.Recommendations, responses=problems)
  async def recommend(asked: limited) -> Any:
    """The best k ads for a user, or for a history."""
    begun = time.perf_counter()
    try:
      answer = await engine.recommend_async(_query(asked))
    except Refused as refusal:
      return _refusal(refusal)
    return Json(_written(answer, time.perf_counter() - begun))

  return router


def _query(asked: schemas.RecommendRequest) -> Query:
  # Names of the request's fields are those of `Query`.
  fields = {name: getattr(asked, name) for name in type(asked).model_fields}
  if asked.history is not None:
    events = (e if isinstance(e, str) else e.model_dump(exclude_none=True) for e in asked.history)
    fields["history"] = tuple(events)
  for name in ("not_ads", "only_accounts", "only_categories"):
    fields[name] = tuple(fields[name])
  return Query(**fields)


def _written(answer: Answer, seconds: float) -> dict[str, Any]:
  content = {
    "source": answer.source,
    "checkpoint": answer.checkpoint,
    "beams": answer.beams,
    "latency_ms": round(1e3 * seconds, 3),
    "request_id": answer.request,
    "ads": answer.ads,
  }
  return content | ({"tree": answer.tree} if answer.tree is not None else {})


def _refusal(refusal: Refused) -> Json:
  seconds = getattr(refusal, "retry_after", 1.0)
  # Retry-After counts whole seconds, and 0 would mean at once.
  return Json({"error": str(refusal)}, 503, {"retry-after": str(max(1, math.ceil(seconds)))})


def _ads(engine: Any) -> fastapi.APIRouter:
  router = fastapi.APIRouter(prefix="/v1/ads", tags=["ads"])
  created = {201: {"model": schemas.Written, "description": "A new ad."}}

  @router.put(
    "/{ad_id:path}",
    response_model=schemas.Written,
    responses=created | _problems(400, 401, 403, 404, 413, 422, 503),
  )
  def put(ad_id: schemas.Id, fields: schemas.AdFields) -> Any:
    """Adds, changes, pauses or resumes an ad. It is on disk when this returns, and generable
    from the next batch on.
    """
    try:
      result = engine.put_ad(ad_id, fields.model_dump(exclude_none=True))
    except Overloaded as refusal:
      return _refusal(refusal)
    return Json({"ad_id": ad_id, "result": result}, 201 if result == "created" else 200)

  @router.get(
    "/{ad_id:path}", response_model=schemas.StoredAd, responses=_problems(401, 403, 404, 422)
  )
  async def get(ad_id: schemas.Id) -> Any:
    """An ad's fields, UA-SID and status."""
    found = engine.get_ad(ad_id)
    if found is None:
      raise HTTPException(404, "there is no such ad")
    return Json(found)

  @router.delete(
    "/{ad_id:path}", response_model=schemas.Written, responses=_problems(401, 403, 404, 422, 503)
  )
  def delete(ad_id: schemas.Id) -> Any:
    """Removes an ad. From the next batch on it is not recommended; histories may still name it."""
    try:
      deleted = engine.delete_ad(ad_id)
    except Overloaded as refusal:
      return _refusal(refusal)
    if not deleted:
      raise HTTPException(404, "there is no such ad")
    return Json({"ad_id": ad_id, "result": "deleted"})

  return router


def _accounts(engine: Any) -> fastapi.APIRouter:
  router = fastapi.APIRouter(prefix="/v1/accounts", tags=["accounts"])

  @router.put(
    "/{account_id:path}",
    response_model=schemas.Account,
    responses=_problems(400, 401, 403, 413, 422, 503),
  )
  def put(account_id: schemas.Id, terms: schemas.AccountTerms) -> Any:
    """Gives an advertiser a daily budget, or takes it away. It is on disk when this returns."""
    try:
      return Json(engine.put_account(account_id, terms.daily_budget))
    except Overloaded as refusal:
      return _refusal(refusal)

  @router.get(
    "/{account_id:path}", response_model=schemas.Account, responses=_problems(401, 403, 422)
  )
  async def get(account_id: schemas.Id) -> Any:
    """An advertiser's budget, and what was spent today."""
    return Json(engine.account(account_id))

  return router


def _state(engine: Any) -> fastapi.APIRouter:
  router = fastapi.APIRouter(tags=["state"])
  with open(_PAGE, encoding="utf-8") as file:
    page_text = file.read()
  # Made once: the digests are of the page as it lies in the package.
  page_headers = _page_headers(page_text)

  @router.get("/v1/stats", responses=_problems(401, 403))
  async def stats() -> Any:
    """The present state, and one point a second of the last ten minutes."""
    return Json(engine.stats())

  @router.get("/healthz")
  async def healthz() -> Any:
    """Whether the process lives."""
    return Json({"status": "ok"})

  @router.get("/readyz", responses=_problems(503))
  async def readyz() -> Any:
    """Whether requests are answered."""
    if engine.ready:
      return Json({"status": "ready"})
    return Json({"error": "not ready"}, 503, {"retry-after": "1"})

  @router.get(
    "/metrics", response_class=fastapi.responses.PlainTextResponse, responses=_problems(401, 403)
  )
  async def metrics() -> Any:
    """Prometheus' text format."""
    return fastapi.Response(engine.metrics.text(), media_type=engine.metrics.content_type)

  @router.get("/", include_in_schema=False)
  async def page() -> Any:
    return fastapi.responses.HTMLResponse(page_text, headers=page_headers)

  return router


def _add_docs(app: fastapi.FastAPI) -> None:
  policy = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
  }

  @app.get("/docs", include_in_schema=False)
  async def docs() -> Any:
    return fastapi.responses.HTMLResponse(api_docs.render(app.openapi()), headers=policy)


def _add_error_handlers(app: fastapi.FastAPI) -> None:
  @app.exception_handler(RequestValidationError)
  async def invalid(_, error):
    return Json({"error": "; ".join(map(_told, error.errors()[:5]))}, 422)

  @app.exception_handler(HTTPException)
  async def refused(_, error):
    return Json({"error": str(error.detail)}, error.status_code, error.headers)

  @app.exception_handler(DataError)
  async def wrong(_, error):
    return Json({"error": str(error)}, 400)

  @app.exception_handler(UnknownUser)
  async def unknown(_, error):
    del error
    return Json({"error": "there is no such user"}, 404)

  @app.exception_handler(Exception)
  async def failed(_, error):
    _log.error("a request failed", exc_info=error)
    # What went wrong is in the log. A client learns nothing of the inside.
    return Json({"error": "internal error"}, 500)


def _told(error: Mapping[str, Any]) -> str:
  """One fault of a request: where, and what is allowed. Long names, which the client chose, are
  cut.
  """
  where = ".".join(str(part)[:64] for part in error["loc"])
  return f"{where}: {error['msg']}"[:300]


def _describe_token(app: fastapi.FastAPI) -> None:
  """Tells in the OpenAPI document that a token is needed."""
  # Wrapped, since FastAPI makes the document when it is first asked for.
  plain = app.openapi

  def described() -> dict[str, Any]:
    document = plain()
    document.setdefault("components", {})["securitySchemes"] = {
      "token": {"type": "http", "scheme": "bearer"}
    }
    document["security"] = [{"token": []}]
    return document

  app.openapi = described
