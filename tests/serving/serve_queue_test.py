"""The queue by itself: joins, keeps apart, stays bounded, forgets the gone."""

import asyncio
import threading

import prometheus_client
import pytest

from tests.serving import serve_process

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
from transvw_tf2.serving.server import batch_queue
from transvw_tf2.serving.server import request_errors


class _Model:
  """Doubles numbers and keeps what it was called with."""

  def __init__(self):
    self.calls = []
    self.go_on = threading.Event()
    self.go_on.set()

  def run(self, key, values):
    self.go_on.wait(10)
    self.calls.append((key, list(values)))
    if 'broken' in values:
      raise RuntimeError('broken')
    return [ValueError('odd') if one % 2 else 2 * one for one in values]


def _in_queue(test, **settings):
  """Runs a coroutine function of (queue, model) with a working queue."""
  settings = {
    'max_items': 8,
    'max_batch': 3,
    'max_wait_s': 0.05,
  } | settings

  async def run():
    model = _Model()
    queue = batch_queue.BatchQueue(model.run, **settings)
    working = asyncio.create_task(queue.work())
    try:
      await test(queue, model)
    finally:
      working.cancel()
      model.go_on.set()
      queue.close()

  asyncio.run(asyncio.wait_for(run(), 30))


def test_joins_requests_in_their_order():
  async def test(queue, model):
    got = await asyncio.gather(
      queue.submit('a', [2]), queue.submit('a', [4, 6]), queue.submit('a', [8])
    )
    assert got == [[4], [8, 12], [16]]
    assert model.calls == [('a', [2, 4, 6]), ('a', [8])]

  _in_queue(test)


def test_keys_are_kept_apart():
  async def test(queue, model):
    got = await asyncio.gather(
      queue.submit('a', [2]), queue.submit('b', [4]), queue.submit('a', [6])
    )
    assert got == [[4], [8], [12]]
    assert model.calls == [('a', [2, 6]), ('b', [4])]

  _in_queue(test)


def test_a_full_batch_does_not_wait():
  async def test(queue, model):
    del model
    async with asyncio.timeout(5):
      assert await queue.submit('a', [2, 4, 6]) == [4, 8, 12]

  _in_queue(test, max_wait_s=100)


def test_what_comes_while_the_model_works_shares_a_batch():
  async def test(queue, model):
    model.go_on.clear()
    first = asyncio.create_task(queue.submit('a', [2]))
    await asyncio.sleep(0.2)  # with the model, alone
    rest = [asyncio.create_task(queue.submit('a', [n])) for n in (4, 6, 8)]
    await asyncio.sleep(0.2)
    model.go_on.set()
    assert await first == [4]
    assert await asyncio.gather(*rest) == [[8], [12], [16]]
    assert model.calls == [('a', [2]), ('a', [4, 6, 8])]

  _in_queue(test, max_wait_s=0)


def test_an_exception_is_that_of_one_item():
  async def test(queue, model):
    del model
    first, second = await asyncio.gather(
      queue.submit('a', [2]), queue.submit('a', [3])
    )
    assert first == [4]
    assert isinstance(second[0], ValueError)

  _in_queue(test)


def test_a_defect_does_not_end_the_queue():
  async def test(queue, model):
    del model
    (got,) = await queue.submit('a', ['broken'])
    assert isinstance(got, RuntimeError)
    assert await queue.submit('a', [2]) == [4]

  _in_queue(test)


def test_is_bounded():
  async def test(queue, model):
    with pytest.raises(request_errors.RequestError) as raised:
      await queue.submit('a', [2] * 9)
    assert (raised.value.status, raised.value.retry_after) == (413, None)
    model.go_on.clear()
    first = asyncio.create_task(queue.submit('a', [2] * 3))
    await asyncio.sleep(0.2)  # these three are with the model
    second = asyncio.create_task(queue.submit('a', [4] * 8))
    await asyncio.sleep(0)
    with pytest.raises(request_errors.RequestError) as raised:
      await queue.submit('a', [6])
    assert raised.value.status == 429
    assert raised.value.retry_after >= 1
    model.go_on.set()
    assert await first == [4] * 3
    assert await second == [8] * 8

  _in_queue(test)


def _refused() -> float:
  return prometheus_client.REGISTRY.get_sample_value('transvw_queue_full_total')


def test_who_waits_for_room_is_not_refused():
  async def test(queue, model):
    before = _refused()
    model.go_on.clear()
    first = asyncio.create_task(queue.submit('a', [2] * 3))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(queue.submit('a', [4] * 7))
    await asyncio.sleep(0)
    third = asyncio.create_task(queue.submit('a', [6] * 8, wait=True))
    gone = asyncio.create_task(queue.submit('a', [8] * 2, wait=True))
    await asyncio.sleep(0.2)
    assert not third.done()
    gone.cancel()
    model.go_on.set()
    assert await first == [4] * 3
    assert await second == [8] * 7
    assert await third == [12] * 8
    assert _refused() == before
    with pytest.raises(request_errors.RequestError) as raised:
      await queue.submit('a', [2] * 9, wait=True)
    assert raised.value.status == 413
    assert 8 not in [value for _, values in model.calls for value in values]

  _in_queue(test)


def test_a_place_that_is_given_up_goes_to_who_waits():
  async def test(queue, model):
    model.go_on.clear()
    first = asyncio.create_task(queue.submit('a', [2] * 3))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(queue.submit('a', [4] * 8))
    await asyncio.sleep(0)
    third = asyncio.create_task(queue.submit('a', [6], wait=True))
    await asyncio.sleep(0.1)
    second.cancel()
    await asyncio.sleep(0.1)
    # In the queue now, which has room for seven more.
    with pytest.raises(request_errors.RequestError):
      await queue.submit('a', [8] * 8)
    model.go_on.set()
    assert await first == [4] * 3
    assert await third == [12]

  _in_queue(test)


def test_forgets_who_is_gone():
  async def test(queue, model):
    model.go_on.clear()
    first = asyncio.create_task(queue.submit('a', [2] * 3))
    await asyncio.sleep(0.2)
    gone = [asyncio.create_task(queue.submit('a', [4])) for _ in range(8)]
    await asyncio.sleep(0)
    for task in gone:
      task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    second = asyncio.create_task(queue.submit('a', [6] * 8))
    model.go_on.set()
    assert await first == [4] * 3
    assert await second == [12] * 8
    assert all(4 not in values for _, values in model.calls)

  _in_queue(test)
