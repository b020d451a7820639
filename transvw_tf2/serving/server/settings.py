"""What can be set about a server; transvw_tf2.serve makes a flag of each."""

import dataclasses
import math
import re

from transvw_tf2 import errors

MIB = 1 << 20


# What gRPC can be told: bytes in 31 bits.
_MOST_MB = 2047
_MOST_PORT = (1 << 16) - 1
_MOST_GRACE_S = 86400
# Of a part of a path.
_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]*')


def _setting(default, text: str, least=None, most=math.inf):
  metadata = {'help': text, 'least': least, 'most': most}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a server, each explained where it is defined.

  Raises:
    errors.UserError: a number is too small or large, the name none that a path
      can have, or the key no key.
  """

  model: str = _setting(None, 'Folder that transvw_tf2.export wrote.')
  name: str = _setting('transvw', 'Name of the model in the paths.')
  host: str = _setting(
    '127.0.0.1', 'Address to listen on; 0.0.0.0 lets other machines in.'
  )
  port: int = _setting(8501, 'Port of REST; 0 takes a free one.', 0, _MOST_PORT)
  grpc: bool = _setting(True, 'Whether gRPC is served as well.')
  grpc_port: int = _setting(
    8500, 'Port of gRPC; 0 takes a free one.', 0, _MOST_PORT
  )
  api_key: str = _setting(
    None,
    'Key that clients must send; $TRANSVW_API_KEY by default, for flags can be '
    'seen by other users of a machine.',
  )
  max_batch: int = _setting(8, 'Items that a call of the model takes.', 1)
  max_wait_ms: float = _setting(
    0.0,
    'Longest wait of an idle model for a batch to fill; what comes while it '
    'works shares a batch without any wait.',
    0,
  )
  max_queue: int = _setting(64, 'Items that may wait for the model.', 1)
  max_scans: int = _setting(2, 'Scans that are worked on at once.', 1)
  max_request_mb: int = _setting(64, 'Largest request, MiB.', 1)
  max_scan_mb: int = _setting(512, 'Largest file of a scan, MiB.', 1)
  max_unpacked_mb: int = _setting(
    1024, 'Largest scan once unpacked, MiB; it may have a voxel per 4 bytes.', 1
  )
  max_scan_cubes: int = _setting(
    1 << 18, 'Cubes that the stride may cut a scan into.', 1
  )
  timeout_s: float = _setting(60.0, 'Time limit of a request.', 0.1)
  scan_timeout_s: float = _setting(900.0, 'Time limit of a scan.', 0.1)
  grace_s: float = _setting(
    30.0, 'Time for requests to finish after SIGTERM.', 0, _MOST_GRACE_S
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), field.metadata['least']
      most = field.metadata['most']
      if least is not None and not least <= value <= most:
        limit = f' and at most {most}' if most < math.inf else ''
        raise errors.UserError(
          f'{field.name} is {value}, wanted at least {least}{limit}: change '
          f'--{field.name}'
        )
    if self.grpc and self.max_request_mb > _MOST_MB:
      raise errors.UserError(
        f'max_request_mb is {self.max_request_mb}, wanted at most {_MOST_MB}'
        ' with gRPC: change --max_request_mb, or give --nogrpc'
      )
    if not _NAME.fullmatch(self.name):
      raise errors.UserError(
        f'name is {self.name!r}, wanted letters, digits, _, . and -, for it is'
        ' part of the paths: change --name'
      )
    if self.api_key is not None and not self.api_key.strip():
      raise errors.UserError(
        'api_key is empty: leave --api_key out or give one'
      )
