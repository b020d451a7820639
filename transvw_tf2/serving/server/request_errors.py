"""The error of a request that is not answered as asked."""

_LONGEST = 400


class RequestError(Exception):
  """A request is refused; the message is one clear line for the client.

  Attributes:
    status: of HTTP; gRPC gets the code that corresponds to it.
    retry_after: seconds after which to try again, None where that is no use.
  """

  def __init__(
    self, message: str, status: int = 400, retry_after: int | None = None
  ):
    super().__init__(_one_line(message))
    self.status = status
    self.retry_after = retry_after


def _one_line(text):
  """Makes a message safe to send, for parts of it may be the client's."""
  # Lone surrogates, from names that are not UTF-8, fit into no answer.
  text = text.encode('utf-8', 'backslashreplace').decode()
  text = ''.join(one if one.isprintable() else ' ' for one in text)
  return ' '.join(text.split())[:_LONGEST]
