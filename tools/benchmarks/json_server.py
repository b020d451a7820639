"""A plain JSON server of an exported encoder, which ours is measured against.

As one would write it without a serving framework: FastAPI on uvicorn, orjson,
the work in threads, one call of the model at a time, no batching of requests.
"""

import argparse
import socket
import threading

import fastapi
from fastapi import concurrency
import numpy as np
import orjson
import tensorflow as tf
import uvicorn


def make_app(model: str) -> fastapi.FastAPI:
  """Returns an application with `POST /predict`.

  It takes {"instances": [cube, ...]}, HU as lists nested x, y, z, and answers
  {"predictions": [embedding, ...]}. An axis for the one channel would make a
  list of each voxel, and a request six times as slow to decode.

  Args:
    model: what transvw_tf2.export wrote.
  """
  loaded = tf.saved_model.load(model)
  function = loaded.signatures['embed_cubes']
  shape = tuple(function.structured_input_signature[1]['cubes'].shape[1:4])
  lock = threading.Lock()
  app = fastapi.FastAPI()
  app.state.loaded = loaded  # the functions die with it

  def answer(body):
    try:
      cubes = np.asarray(orjson.loads(body)['instances'], np.float32)
      if cubes.shape[1:] != shape or not np.isfinite(cubes).all():
        raise ValueError(f'instances have shape {cubes.shape}')
    except (KeyError, TypeError, ValueError) as error:
      raise fastapi.HTTPException(400, str(error)) from error
    with lock:
      embedding = function(cubes=tf.constant(cubes[..., None]))['embedding']
    return orjson.dumps(
      {'predictions': embedding.numpy()}, option=orjson.OPT_SERIALIZE_NUMPY
    )

  @app.post('/predict')
  async def predict(request: fastapi.Request):
    body = await request.body()
    return fastapi.Response(
      await concurrency.run_in_threadpool(answer, body),
      media_type='application/json',
    )

  return app


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', required=True)
  app = make_app(parser.parse_args().model)
  with socket.create_server(('127.0.0.1', 0), backlog=128) as listener:
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # In the words of transvw_tf2.serve.
    port = listener.getsockname()[1]
    print(f'serving json at http://127.0.0.1:{port}', flush=True)
    config = uvicorn.Config(app, log_level='warning', access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == '__main__':
  main()
