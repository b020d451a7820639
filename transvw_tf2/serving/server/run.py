"""Runs a server until it is told to stop."""

import asyncio
import contextlib
import signal
import socket
import warnings

from absl import logging
import fastapi
import kserve
from kserve import model_server
from kserve.protocol.rest import server as rest_server
from kserve.protocol.rest import v2_endpoints
import uvicorn

from transvw_tf2 import errors
from transvw_tf2.serving.server import api_keys
from transvw_tf2.serving.server import batch_queue
from transvw_tf2.serving.server import error_answers
from transvw_tf2.serving.server import grpc_server
from transvw_tf2.serving.server import kserve_model
from transvw_tf2.serving.server import request_limits
from transvw_tf2.serving.server import rest_v1
from transvw_tf2.serving.server import scan_endpoint
from transvw_tf2.serving.server import served_model
from transvw_tf2.serving.server import settings as settings_lib


class _RestServer(uvicorn.Server):
  """A server that leaves signals to `serve`, which stops gRPC with it."""

  @contextlib.contextmanager
  def capture_signals(self):
    yield


def serve(settings: settings_lib.Settings) -> None:
  """Serves a model until SIGTERM or SIGINT; requests under way finish.

  Prints one line with the addresses once it answers.

  Raises:
    errors.UserError: the model cannot be loaded, or a port is taken.
  """
  model = served_model.ServedModel(settings.model)
  if settings.host not in ('127.0.0.1', 'localhost', '::1') and (
    settings.api_key is None
  ):
    logging.warning(
      'anyone who reaches %s can use the model: set --api_key', settings.host
    )
  with _listen(settings.host, settings.port) as listener:
    asyncio.run(_serve(settings, model, listener))


async def _serve(settings, model, listener):
  queue = batch_queue.BatchQueue(
    model.run,
    max_items=settings.max_queue,
    max_batch=settings.max_batch,
    max_wait_s=settings.max_wait_ms / 1000,
  )
  served = kserve_model.BatchingModel(
    settings.name, model, queue, settings.timeout_s
  )
  registry = kserve.ModelRepository()
  registry.update(served)
  data_plane = kserve_model.DataPlane(registry)
  rest = _RestServer(
    uvicorn.Config(
      _make_app(data_plane, served, settings),
      log_config=None,
      access_log=False,
      server_header=False,
      timeout_graceful_shutdown=int(settings.grace_s),
    )
  )
  grpc, grpc_port = None, None
  if settings.grpc:
    grpc, grpc_port = grpc_server.make(data_plane, settings)
    await grpc.start()
  working = asyncio.create_task(queue.work())
  answering = asyncio.create_task(rest.serve(sockets=[listener]))
  stopping = _stop_on_signals()
  _announce(settings, listener.getsockname()[1], grpc_port)
  await asyncio.wait(
    (stopping, answering, working), return_when=asyncio.FIRST_COMPLETED
  )
  logging.info('stopping: requests under way may finish')
  rest.should_exit = True
  await asyncio.gather(
    answering, *([grpc.stop(settings.grace_s)] if grpc else ())
  )
  working.cancel()
  await asyncio.to_thread(queue.close)


def _make_app(data_plane, served, settings):
  """Returns the ASGI application: KServe's routes, ours before them."""
  # KServe's choice of a class; nothing that whoever runs a server can change.
  warnings.filterwarnings('ignore', message='ORJSONResponse is deprecated')
  kserve.logging.logger.setLevel('WARNING')  # a line per request else
  kserve.logging.trace_logger.setLevel('WARNING')
  scans = scan_endpoint.ScanEndpoint(served, settings)
  router = fastapi.APIRouter(prefix='/v1/models', tags=['V1'])

  @router.post('/{name}' + scan_endpoint.VERB, response_model=None)
  async def embed_scan(name: str, request: fastapi.Request):
    return await scans.embed(name, request)

  @router.get('/{name}')
  async def status(name: str):
    ready = await data_plane.model_ready(name)
    return {
      'name': name,
      'ready': ready,
      'model_version_status': rest_v1.status(),
    }

  @router.get('/{name}/metadata')
  async def metadata(name: str):
    return rest_v1.metadata(name, (await data_plane.get_model(name)).model)

  model_server.app.include_router(router)
  model_server.app.include_router(_infer_routes(data_plane))
  # Adds KServe's routes to the same application.
  rest_server.RESTServer(
    '', data_plane, kserve_model.FixedRepository(data_plane.model_registry), 0
  ).create_application()
  error_answers.add_handlers(model_server.app)
  app = request_limits.RequestLimits(model_server.app, settings)
  return api_keys.ApiKey(app, settings.api_key) if settings.api_key else app


def _infer_routes(data_plane):
  """Returns routes of V2 that decode in a thread.

  KServe's own decode on the event loop, where 2 MB of empty inputs kept all
  others from an answer for 14 s.
  """
  endpoints = v2_endpoints.V2Endpoints(data_plane)
  router = fastapi.APIRouter(prefix='/v2/models', include_in_schema=False)

  @router.post('/{name}/infer', response_model=None)
  @router.post('/{name}/versions/{version}/infer', response_model=None)
  async def infer(
    name: str,
    request: fastapi.Request,
    response: fastapi.Response,
    version: str | None = None,
  ):
    body = await request.body()
    decoded, _ = await asyncio.to_thread(
      data_plane.decode, body, request.headers, 'v2', name
    )
    return await endpoints.infer(request, response, name, decoded, version)

  return router


def _listen(host, port):
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    # Connections inherit it. asyncio sets it only on sockets whose protocol is
    # named, which this one's is not: each answer would wait 40 ms for the
    # client to acknowledge its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
  except (OSError, OverflowError) as error:
    raise errors.UserError(
      f'port {port} of {host} cannot be listened on ({error}): choose another '
      '--port or --host'
    ) from error


def _stop_on_signals():
  """Returns a future that is done at the first SIGTERM or SIGINT."""
  loop = asyncio.get_running_loop()
  stopping = loop.create_future()
  for number in (signal.SIGTERM, signal.SIGINT):
    loop.add_signal_handler(
      number, lambda: stopping.done() or stopping.set_result(None)
    )
  return stopping


def _announce(settings, port, grpc_port):
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  grpc = f' and gRPC at {host}:{grpc_port}' if grpc_port else ''
  print(f'serving {settings.name} at http://{host}:{port}{grpc}', flush=True)
