"""The error of a request that is not answered as asked."""

from transvw_tf2 import errors

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
    super().__init__(errors.one_line(message)[:_LONGEST])
    self.status = status
    self.retry_after = retry_after
