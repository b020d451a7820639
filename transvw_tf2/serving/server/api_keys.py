"""Lets in only requests that carry the key, over REST and gRPC."""

from collections.abc import Mapping
import hmac

import grpc
from grpc import aio

from transvw_tf2.serving.server import error_answers
from transvw_tf2.serving.server import request_errors

# Probes have no key, and learn nothing but that the server is up.
_OPEN_PATHS = frozenset(('/v2/health/live', '/v2/health/ready'))
_OPEN_METHODS = ('/ServerLive', '/ServerReady')

_MESSAGE = 'the API key is missing or wrong: send Authorization: Bearer KEY'


def is_valid(headers: Mapping[str, str], key: str) -> bool:
  """Returns whether headers (names in lower case) carry the key."""
  scheme, _, given = headers.get('authorization', '').partition(' ')
  if scheme.lower() != 'bearer':
    given = headers.get('x-api-key', '')
  # In constant time, so that the time tells nothing of the key. Headers hold
  # no white space around it, as a key out of a file may.
  return hmac.compare_digest(given.strip().encode(), key.strip().encode())


class ApiKey:
  """An ASGI application that answers 401 where the key is wrong."""

  def __init__(self, app, key: str):
    """Initialises the application around `app`."""
    self._app = app
    self._key = key

  async def __call__(self, scope, receive, send):
    """Answers, or hands on to the application within."""
    app = self._app
    if scope['type'] == 'http' and scope['path'] not in _OPEN_PATHS:
      headers = {
        name.decode('latin-1'): value.decode('latin-1')
        for name, value in scope['headers']
      }
      if not is_valid(headers, self._key):
        error = request_errors.RequestError(_MESSAGE, 401)
        app = error_answers.response(error)
    await app(scope, receive, send)


class ApiKeyInterceptor(aio.ServerInterceptor):
  """Ends gRPC calls without the key as UNAUTHENTICATED."""

  def __init__(self, key: str):
    """Initialises the interceptor."""
    self._key = key

  async def intercept_service(self, continuation, handler_call_details):
    """Returns the handler of the call, or one that ends it."""
    headers = {
      one.key: one.value
      for one in handler_call_details.invocation_metadata
      if isinstance(one.value, str)
    }
    if handler_call_details.method.endswith(_OPEN_METHODS) or is_valid(
      headers, self._key
    ):
      return await continuation(handler_call_details)
    # One of a stream runs at once; one of a message would wait for it, and hold
    # its place for good if none came.
    return grpc.stream_unary_rpc_method_handler(_end)


async def _end(requests, context):
  del requests
  await context.abort(grpc.StatusCode.UNAUTHENTICATED, _MESSAGE)
