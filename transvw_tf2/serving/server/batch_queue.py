"""A bounded queue that joins the items of requests into calls of the model."""

import asyncio
import collections
from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import math
import time

from absl import logging
import prometheus_client

from transvw_tf2.serving.server import request_errors

_WAITING = prometheus_client.Gauge(
  'transvw_queue_items', 'Items that wait for the model.'
)
_BATCHES = prometheus_client.Histogram(
  'transvw_batch_items',
  'Items in a call of the model.',
  ['signature'],
  buckets=(1, 2, 4, 8, 16, 32, 64),
)
_SECONDS = prometheus_client.Histogram(
  'transvw_batch_seconds', 'Duration of a call of the model.', ['signature']
)
_FULL = prometheus_client.Counter(
  'transvw_queue_full', 'Requests refused because the queue was full.'
)


@dataclasses.dataclass(eq=False)
class _Item:
  key: str
  value: object
  future: asyncio.Future


class BatchQueue:
  """Takes items and answers them in batches, first come, first served.

  Belongs to one event loop. Items of different keys never share a batch.
  """

  def __init__(
    self,
    run: Callable[[str, list], list],
    *,
    max_items: int,
    max_batch: int,
    max_wait_s: float,
  ):
    """Initialises the queue; `work` has to run for it to do anything.

    Args:
      run: maps a key and items to as many results, each a value or an
        exception. Called in one thread of its own.
      max_items: that may wait.
      max_batch: items per call of `run`.
      max_wait_s: seconds that the first item of a batch waits for more.
    """
    self._run = run
    self._max_items = max_items
    self._max_batch = max_batch
    self._max_wait_s = max_wait_s
    self._waiting = collections.deque()
    self._arrived = asyncio.Event()
    self._left = asyncio.Event()
    self._seconds_per_item = 0.0
    self._thread = futures.ThreadPoolExecutor(1, 'model')

  async def submit(self, key: str, values: list, *, wait: bool = False) -> list:
    """Returns a result or an exception for each value, in their order.

    A caller that is cancelled takes its values out of the queue.

    Args:
      key: what they are for.
      values: one or more.
      wait: until they fit, rather than be refused.

    Raises:
      request_errors.RequestError: they can never fit (413), or not now (429).
    """
    self.check_count(len(values))
    while wait and not self._fits(values):
      self._left.clear()
      await self._left.wait()
    if not self._fits(values):
      _FULL.inc()
      raise request_errors.RequestError(
        f'the queue is full ({len(self._waiting)} items wait): try again later',
        status=429,
        retry_after=self._retry_after(),
      )
    loop = asyncio.get_running_loop()
    items = [_Item(key, value, loop.create_future()) for value in values]
    self._waiting.extend(items)
    self._arrived.set()
    self._count()
    try:
      return await asyncio.gather(
        *(item.future for item in items), return_exceptions=True
      )
    except asyncio.CancelledError:
      self._waiting = collections.deque(
        item for item in self._waiting if not item.future.cancelled()
      )
      self._left.set()
      self._count()
      raise

  def _fits(self, values: list) -> bool:
    return len(self._waiting) + len(values) <= self._max_items

  def check_count(self, count: int) -> None:
    """Checks that so many items of one request can ever fit.

    Raises:
      request_errors.RequestError: they cannot (413).
    """
    if count > self._max_items:
      raise request_errors.RequestError(
        f'the request holds {count} items, wanted at most {self._max_items}: '
        'send several requests',
        status=413,
      )

  async def work(self) -> None:
    """Answers items until it is cancelled."""
    while True:
      await self._wait(None)
      batch = await self._collect()
      if batch:
        await self._answer(batch)

  def close(self) -> None:
    """Waits for the call of the model under way, and ends the thread."""
    self._thread.shutdown()

  async def _wait(self, timeout: float | None) -> None:
    """Waits for an item to be there (None), or for one to arrive."""
    if timeout is None and self._waiting:
      return
    self._arrived.clear()
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self._arrived.wait(), timeout)

  async def _collect(self) -> list[_Item]:
    """Takes the items of the next batch out of the queue."""
    deadline = time.monotonic() + self._max_wait_s
    key = self._waiting[0].key if self._waiting else None
    while sum(item.key == key for item in self._waiting) < self._max_batch:
      left = deadline - time.monotonic()
      if left <= 0:
        break
      await self._wait(left)
    batch, rest = [], collections.deque()
    for item in self._waiting:
      mine = item.key == key and len(batch) < self._max_batch
      (batch if mine else rest).append(item)
    self._waiting = rest
    self._left.set()
    self._count()
    return batch

  async def _answer(self, batch: list[_Item]) -> None:
    key, start = batch[0].key, time.monotonic()
    try:
      results = await asyncio.get_running_loop().run_in_executor(
        self._thread, self._run, key, [item.value for item in batch]
      )
    except Exception as error:  # a defect must not end the queue
      logging.exception('signature %s failed', key)
      results = [error] * len(batch)
    seconds = time.monotonic() - start
    _BATCHES.labels(key).observe(len(batch))
    _SECONDS.labels(key).observe(seconds)
    self._seconds_per_item = seconds / len(batch)
    for item, result in zip(batch, results, strict=True):
      if item.future.done():
        continue  # whoever asked has gone
      if isinstance(result, Exception):
        item.future.set_exception(result)
      else:
        item.future.set_result(result)

  def _count(self) -> None:
    _WAITING.set(len(self._waiting))

  def _retry_after(self) -> int:
    """Seconds until what waits now is likely to be answered."""
    return max(1, math.ceil(self._seconds_per_item * len(self._waiting)))
