"""The gRPC server of KServe's servicer, on one address and with keys."""

from grpc import aio
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc import servicer

from transvw_tf2 import errors
from transvw_tf2.serving.server import api_keys
from transvw_tf2.serving.server import error_answers
from transvw_tf2.serving.server import kserve_model
from transvw_tf2.serving.server import settings as settings_lib


def make(
  data_plane: kserve_model.DataPlane, settings: settings_lib.Settings
) -> tuple[aio.Server, int]:
  """Returns a server that is not started, and its port.

  kserve.GRPCServer listens on all addresses and takes no interceptors.

  Raises:
    errors.UserError: the port is taken.
  """
  limit = settings.max_request_mb * settings_lib.MIB
  keys = [api_keys.ApiKeyInterceptor(settings.api_key)]
  server = aio.server(
    # Messages are in memory before they are looked at; a few for health.
    maximum_concurrent_rpcs=settings.max_queue + 16,
    interceptors=[
      *(keys if settings.api_key else ()),
      error_answers.StatusInterceptor(),
    ],
    options=[
      ('grpc.max_receive_message_length', limit),
      ('grpc.max_send_message_length', -1),
      # Without it a second server takes half of the requests in silence.
      ('grpc.so_reuseport', 0),
    ],
  )
  grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
    servicer.InferenceServicer(
      data_plane, kserve_model.FixedRepository(data_plane.model_registry)
    ),
    server,
  )
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  try:
    return server, server.add_insecure_port(f'{host}:{settings.grpc_port}')
  except RuntimeError as error:
    raise errors.UserError(
      f'grpc_port {settings.grpc_port} of {settings.host} cannot be listened '
      'on: choose another --grpc_port, or pass --nogrpc'
    ) from error
