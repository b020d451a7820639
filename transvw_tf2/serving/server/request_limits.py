"""Limits what REST requests cost before a model is asked: bytes and seconds."""

import asyncio

from transvw_tf2.serving.server import error_answers
from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import scan_endpoint
from transvw_tf2.serving.server import settings as settings_lib

# Bodies in memory at once, in units of the largest that is taken.
_BODIES = 8


class RequestLimits:
  """An ASGI application that reads bodies for the one within.

  Bodies of scans are left to their endpoint, which writes them to a file.
  """

  def __init__(self, app, settings: settings_lib.Settings):
    """Initialises the application around `app`."""
    self._app = app
    self._limit = settings.max_request_mb * settings_lib.MIB
    self._scan_limit = settings.max_scan_mb * settings_lib.MIB
    self._timeout_s = settings.timeout_s
    self._held = 0  # bytes of bodies in memory

  async def __call__(self, scope, receive, send):
    """Answers what is over a limit, else hands on to `app`."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    is_scan = scope['path'].endswith(scan_endpoint.VERB)
    body = bytearray()
    try:
      _check_headers(
        dict(scope['headers']), self._scan_limit if is_scan else self._limit
      )
      if is_scan:
        await self._app(scope, receive, send)
      elif await self._read(receive, body):
        await self._call(scope, bytes(body), receive, send)
    except request_errors.RequestError as error:
      await error_answers.response(error)(scope, receive, send)
    finally:
      self._held -= len(body)

  async def _read(self, receive, body: bytearray) -> bool:
    """Reads into `body`; False where the client went away."""
    try:
      async with asyncio.timeout(self._timeout_s):
        more = True
        while more:
          message = await receive()
          if message['type'] == 'http.disconnect':
            return False
          self._hold(body, message.get('body', b''))
          more = message.get('more_body', False)
    except TimeoutError as error:
      raise request_errors.RequestError(
        f'the body did not arrive within {self._timeout_s:g} s', 408
      ) from error
    return True

  def _hold(self, body, block):
    if len(body) + len(block) > self._limit:
      raise _too_large(self._limit)
    if self._held + len(block) > _BODIES * self._limit:
      raise request_errors.RequestError(
        'too many requests are being read: try again later', 429, 1
      )
    self._held += len(block)
    body += block

  async def _call(self, scope, body, receive, send):
    """Calls the application, and ends it when the client goes away."""
    messages = [{'type': 'http.request', 'body': body, 'more_body': False}]
    gone = asyncio.Event()

    async def replay():
      if messages:
        return messages.pop()
      await gone.wait()
      return {'type': 'http.disconnect'}

    async def watch():
      await receive()  # after the body, this is the end of the connection
      gone.set()

    watching = asyncio.ensure_future(watch())
    answering = asyncio.ensure_future(self._app(scope, replay, send))
    try:
      await asyncio.wait(
        (watching, answering), return_when=asyncio.FIRST_COMPLETED
      )
      if answering.done():
        answering.result()
    finally:
      for task in (watching, answering):
        task.cancel()
      await asyncio.gather(watching, answering, return_exceptions=True)


def _check_headers(headers, limit):
  if headers.get(b'content-encoding', b'identity').lower() != b'identity':
    raise request_errors.RequestError(
      'Content-Encoding is set, wanted a body that is not compressed', 415
    )
  length = headers.get(b'content-length', b'0')
  if length.isdigit() and int(length) > limit:
    raise _too_large(limit)


def _too_large(limit):
  return request_errors.RequestError(
    f'the body is too large, wanted at most {limit} bytes', 413
  )
