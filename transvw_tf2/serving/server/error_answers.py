"""Turns errors into answers: one line of JSON, or a status of gRPC."""

from absl import logging
import fastapi
from fastapi import exceptions as fastapi_exceptions
from fastapi import responses
import grpc
from kserve import errors as kserve_errors
from kserve.protocol.grpc import interceptors
from starlette import exceptions as starlette_exceptions

from transvw_tf2 import errors
from transvw_tf2.serving.server import request_errors

_INTERNAL = 'internal error: see the log of the server'

_CODES = {
  400: grpc.StatusCode.INVALID_ARGUMENT,
  401: grpc.StatusCode.UNAUTHENTICATED,
  403: grpc.StatusCode.PERMISSION_DENIED,
  413: grpc.StatusCode.OUT_OF_RANGE,
  429: grpc.StatusCode.RESOURCE_EXHAUSTED,
  504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def response(error: request_errors.RequestError) -> responses.JSONResponse:
  """Returns the answer {"error": ...} of REST."""
  headers = {}
  if error.retry_after is not None:
    headers['Retry-After'] = str(error.retry_after)
  if error.status == 401:
    headers['WWW-Authenticate'] = 'Bearer'
  return responses.JSONResponse(
    {'error': str(error)}, error.status, headers=headers
  )


def add_handlers(app: fastapi.FastAPI) -> None:
  """Makes an app answer errors so; KServe's own log a traceback for each."""
  app.add_exception_handler(request_errors.RequestError, _refused)
  app.add_exception_handler(kserve_errors.InvalidInput, _invalid)
  app.add_exception_handler(kserve_errors.InferenceError, _invalid)
  app.add_exception_handler(kserve_errors.ModelNotFound, _not_found)
  app.add_exception_handler(NotImplementedError, _not_found)
  app.add_exception_handler(
    fastapi_exceptions.RequestValidationError, _not_valid
  )
  app.add_exception_handler(starlette_exceptions.HTTPException, _http)
  app.add_exception_handler(Exception, _failed)


class StatusInterceptor(interceptors.ExceptionToStatusInterceptor):
  """Gives the errors of gRPC requests a status and a reason."""

  async def handle_exception(
    self, ex, request_or_iterator, context, method_name
  ):
    """Aborts the call with the status of `ex`."""
    if isinstance(ex, request_errors.RequestError):
      if ex.retry_after is not None:
        context.set_trailing_metadata((('retry-after', str(ex.retry_after)),))
      code = _CODES.get(ex.status, grpc.StatusCode.INTERNAL)
      await context.abort(code, str(ex))
    elif isinstance(
      ex, (kserve_errors.InvalidInput, kserve_errors.InferenceError)
    ):
      line = errors.one_line(str(ex))
      await context.abort(grpc.StatusCode.INVALID_ARGUMENT, line)
    elif isinstance(ex, (kserve_errors.ModelNotFound, NotImplementedError)):
      line = errors.one_line(str(ex))
      await context.abort(grpc.StatusCode.NOT_FOUND, line)
    else:
      logging.error('%s failed', method_name, exc_info=ex)
      await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)


async def _refused(_, error):
  return response(error)


async def _invalid(_, error):
  return response(request_errors.RequestError(str(error)))


async def _not_found(_, error):
  return response(request_errors.RequestError(str(error), 404))


async def _not_valid(_, error):
  """The first thing that the schema of a message misses."""
  first = error.errors()[0]
  place = '.'.join(str(one) for one in first['loc'] if one != 'body')
  return response(
    request_errors.RequestError(f'{place or "the body"}: {first["msg"]}'[:300])
  )


async def _http(_, error):
  return response(
    request_errors.RequestError(str(error.detail), error.status_code)
  )


async def _failed(_, error):
  logging.error('a request failed', exc_info=error)
  return response(request_errors.RequestError(_INTERNAL, 500))
