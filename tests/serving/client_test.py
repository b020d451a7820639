"""The client against what is no server of ours, and keys out of a file."""

import contextlib
import socket
import threading

import pytest

from transvw_tf2.serving import client as client_lib

_OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}'


@contextlib.contextmanager
def _answering(answer):
  """Gives the URL of a socket with one answer, and a list of what it read."""
  read = []

  def serve():
    connection, _ = listener.accept()
    with connection:
      read.append(connection.recv(65536))
      connection.sendall(answer)

  with socket.create_server(('127.0.0.1', 0)) as listener:
    serving = threading.Thread(target=serve)
    serving.start()
    yield f'http://127.0.0.1:{listener.getsockname()[1]}', read
    serving.join(10)


# The first bytes of gRPC, and a body that is cut.
@pytest.mark.parametrize(
  'answer', [b'\x00\x00\x12\x04' + bytes(23), _OK.replace(b'2\r', b'9\r')]
)
def test_what_is_no_http_is_a_connection_error(answer):
  with _answering(answer) as (url, _):
    assert not client_lib.Client(url).is_ready()
  with (
    _answering(answer) as (url, _),
    pytest.raises(ConnectionError, match='no whole answer of HTTP'),
  ):
    client_lib.Client(url).metadata()


def test_white_space_around_a_key_is_not_sent():
  with _answering(_OK) as (url, read):
    assert client_lib.Client(url, api_key=' open sesame\n').is_ready()
  assert b'\r\nAuthorization: Bearer open sesame\r\n' in read[0]
  with _answering(_OK) as (url, read):
    assert client_lib.Client(url, api_key='\n').is_ready()
  assert b'Authorization' not in read[0]
