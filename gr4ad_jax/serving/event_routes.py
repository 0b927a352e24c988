"""The HTTP interface of events and users."""

from collections.abc import Callable
from typing import Annotated, Any

from gr4ad_jax.engine.batcher import Overloaded
from gr4ad_jax.reading.checks import LONGEST_ID
from gr4ad_jax.serving import schemas

try:
  import fastapi
except ImportError as error:
  raise ImportError("fastapi is missing: pip install 'gr4ad_jax[serve]'") from error

Problems = Callable[..., dict[int | str, dict[str, Any]]]


def events(engine: Any, json: Callable, refusal: Callable, problems: Problems) -> fastapi.APIRouter:
  """Routes under /v1/events.

  Args:
    engine: a `ServingEngine`.
    json: makes an answer.
    refusal: makes one of a `Refused`.
    problems: descriptions of statuses.
  """
  router = fastapi.APIRouter(prefix="/v1/events", tags=["events"])

  @router.post(
    "",
    status_code=202,
    response_model=schemas.Taken,
    responses=problems(400, 401, 403, 413, 422, 503),
  )
  def post(posted: schemas.PostedEvents) -> Any:
    """Takes 1 to 1,000 events. They are durable when this returns; a user's next recommendation
    knows them within moments. After a 503, or no answer, they may be sent again.
    """
    try:
      taken = engine.post_events([e.model_dump(exclude_none=True) for e in posted.events])
    except Overloaded as refused:
      return refusal(refused)
    return json(taken, 202)

  return router


def users(engine: Any, json: Callable, refusal: Callable, problems: Problems) -> fastapi.APIRouter:
  """Routes under /v1/users; arguments as of `events`."""
  router = fastapi.APIRouter(prefix="/v1/users", tags=["users"])
  Limit = Annotated[int, fastapi.Query(ge=1, le=1000)]

  # None of them is `async`: users are looked up on disk.
  @router.get("", response_model=schemas.Users, responses=problems(401, 403, 422))
  def listed(
    prefix: Annotated[str, fastapi.Query(max_length=LONGEST_ID)] = "", limit: Limit = 20
  ) -> Any:
    """Ids of users that begin with `prefix`, in order."""
    return json({"users": engine.users(prefix, limit)})

  @router.get(
    "/{user:path}/history", response_model=schemas.History, responses=problems(401, 403, 404, 422)
  )
  def history(user: schemas.Id, limit: Limit = 200) -> Any:
    """A user's latest events."""
    return json({"user": user, "events": engine.history(user, limit)})

  @router.get(
    "/{user:path}", response_model=schemas.KnownUser, responses=problems(401, 403, 404, 422)
  )
  def known(user: schemas.Id, limit: Limit = 20) -> Any:
    """What is known of a user, with the latest events."""
    return json(engine.user(user, limit))

  @router.delete(
    "/{user:path}", response_model=schemas.Erased, responses=problems(401, 403, 404, 422, 503)
  )
  def delete(user: schemas.Id) -> Any:
    """Leaves nothing of a user in histories, snapshots and streams. The log that the run was
    trained on, and the parameters, stay as they are.
    """
    try:
      return json(engine.delete_user(user))
    except Overloaded as refused:
      return refusal(refused)

  return router
