r"""Times exported programs with JAX, beside the same network in PyTorch.

  python tools/benchmark.py export_step --output DIR      (where TensorFlow is)
  python tools/run_stablehlo.py DIR [--peak_tflops 989] [--repeats 10]

Needs DIR, JAX and NumPy; neither TensorFlow nor this package. With PyTorch, and
benchmarks/torch_networks.py beside this file, it also times the training step
of the same network there (channels_last_3d, bfloat16 by autocast, as it is and
with torch.compile). Both run on the GPU, if they find one.

Prints one line per figure: name, value, unit, ratio, what it is a ratio to. A
training step of ours holds the perturbation as well; PyTorch's does not. Steps
work on what the last one returned, so nothing is copied to or from the device.
The share is that of --peak_tflops, or is left out. Each program has a process
of its own: on a GPU memory is what was in use on it at the peak, on a CPU that
of the process.
"""

import argparse
import collections
import glob
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

_PYTORCH = 'pytorch'
_NAME = '{}_{precision}_{batch}'


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', help='folder that export_step has written')
  parser.add_argument(
    '--peak_tflops',
    type=float,
    nargs='+',
    default=[],
    metavar='T',
    help='peak of the device: one number, or that for float32 and for bfloat16',
  )
  parser.add_argument(
    '--repeats', type=int, default=10, help='steps; the median counts'
  )
  parser.add_argument(
    '--only', default='', help='part of the names of the programs to be run'
  )
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  if arguments.worker:
    print(json.dumps(_work(arguments)))
    return 0
  programs = find_programs(arguments.folder, arguments.only)
  if not programs:
    pattern = f'*{arguments.only}*.json' if arguments.only else '*.json'
    print(
      f'error: no {pattern} in {arguments.folder!r}: write programs with '
      'tools/benchmark.py export_step',
      file=sys.stderr,
    )
    return 1
  for line in _lines(programs, arguments):
    print(', '.join(line), flush=True)
  return 0


def find_programs(folder: str, only: str = '') -> list[dict]:
  """Returns the descriptions of programs whose name holds `only`."""
  paths = sorted(glob.glob(os.path.join(folder, '*.json')))
  programs = []
  for path in paths:
    if only in os.path.basename(path).removesuffix('.json'):
      with open(path, encoding='utf-8') as file:
        programs.append(json.load(file))
  return programs


def load_program(folder: str, program: dict):
  """Compiles a program for the device of JAX.

  Args:
    folder: where it is.
    program: its description.

  Returns:
    A function from a list of jax.Array to a list of jax.Array. Arguments whose
    next value is among the results must not be used again.
  """
  import jax
  from jax._src.interpreters import mlir
  from jax._src.lib import xla_client
  from jax._src.lib.mlir import ir

  path = os.path.join(folder, f'{program["name"]}.stablehlo')
  with open(path, encoding='utf-8') as file:
    text = file.read()
  with mlir.make_ir_context():
    module = ir.Module.parse(text)
    _alias(module, program['results'], ir)
    bytecode = mlir.module_to_bytecode(module)
  device = jax.devices()[0]
  executable = device.client.compile_and_load(
    bytecode,
    xla_client.DeviceList((device,)),
    xla_client.CompileOptions(),
  )
  return executable.execute


def _alias(module, results, ir):
  """Lets the next value of an argument take its place in memory."""
  (entry,) = (
    one
    for one in module.body.operations
    if ir.StringAttr(one.attributes['sym_name']).value == 'main'
  )
  attributes = [{} for _ in entry.type.inputs]
  for number, result in enumerate(results):
    if 'argument' in result:
      number = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), number)
      attributes[result['argument']] = {'tf.aliasing_output': number}
  entry.attributes['arg_attrs'] = ir.ArrayAttr.get(
    [ir.DictAttr.get(one) for one in attributes]
  )


def make_arguments(program: dict, seed: int = 0) -> list[np.ndarray]:
  """Returns random arguments of a program, as its description says."""
  rng = np.random.default_rng(seed)
  return [_fill(one, rng).astype(one['dtype']) for one in program['arguments']]


def _fill(argument, rng):
  shape, fill = argument['shape'], argument['fill']
  if fill in ('zeros', 'ones'):
    return getattr(np, fill)(shape)
  if fill == 'weights':
    scale = np.sqrt(2 / np.prod(shape[:-1]))
    return scale * rng.standard_normal(shape, np.float32)
  if fill == 'cubes':
    low, high = argument['range']
    return low + (high - low) * rng.random(shape, np.float32)
  if fill == 'words':
    return rng.integers(*argument['range'], size=shape)
  return rng.integers(2**31, size=shape)  # seeds


def _lines(programs, arguments):
  """Yields the columns of each line."""
  pytorch = {}
  if importlib.util.find_spec('torch') is None:
    _tell('no PyTorch: its side is left out; pip install torch')
  else:
    for program in programs:
      key = _NAME.format(_PYTORCH, **program)
      if 'plain_flops_per_cube' in program and key not in pytorch:
        pytorch[key] = yield from _pytorch_lines(key, program, arguments)
  for program in programs:
    measured = _measure(program['name'], arguments)
    if measured:
      key = _NAME.format(_PYTORCH, **program)
      is_step = 'plain_flops_per_cube' in program
      yield from _figures(
        program['name'],
        measured,
        program,
        program['flops_per_cube'],
        arguments,
        (key, pytorch.get(key) if is_step else None),
      )


def _pytorch_lines(key, program, arguments):
  """Yields the lines of PyTorch's step and returns the faster of its forms."""
  best = None
  for suffix in ('', '_compiled'):
    name = f'{_PYTORCH}{suffix}_{program["precision"]}_{program["batch"]}'
    measured = _measure(f'{program["name"]}:{suffix}', arguments)
    if measured:
      flops = program['plain_flops_per_cube']
      yield from _figures(
        name, measured, program, flops, arguments, (key, None)
      )
      if best is None or measured['seconds'] < best['seconds']:
        best = measured
  return best


def _figures(name, measured, program, flops, arguments, other):
  """Yields the lines of one program or of PyTorch."""
  other_name, other = other
  speed = program['batch'] / measured['seconds']
  yield _line(
    *(name, speed, 'cubes/s'),
    other and other['seconds'] / measured['seconds'],
    other_name,
  )
  peaks = arguments.peak_tflops
  if peaks:
    peak = peaks[-1 if program['precision'] == 'bfloat16' else 0]
    share = speed * flops / (peak * 1e12)
    yield _line(f'{name}_share', 100 * share, '% of peak')
  yield _line(
    *(f'{name}_memory', measured['memory'] / 1e9, 'GB'),
    other and measured['memory'] / other['memory'],
    other_name,
  )


def _line(name, value, unit, ratio=None, ratio_to='-'):
  if ratio is None:
    return name, f'{value:.4g}', unit, '-', '-'
  return name, f'{value:.4g}', unit, f'{ratio:.3g}', ratio_to


def _measure(worker, arguments):
  """Runs a worker in a process of its own; None if it failed, which is told."""
  command = [sys.executable, os.path.abspath(__file__), arguments.folder]
  done = subprocess.run(
    [*command, f'--repeats={arguments.repeats}', f'--worker={worker}'],
    capture_output=True,
    text=True,
    check=False,
    # Else JAX takes most of the memory at once, and the peak says nothing.
    env=os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
  )
  if done.returncode:
    lines = done.stderr.splitlines() or ['no output']
    errors = [line for line in lines if 'Error' in line or 'error' in line]
    _tell(f'{worker} is left out: {(errors or lines)[-1]}')
    return None
  measured = json.loads(done.stdout.splitlines()[-1])
  _tell(f'{worker}: {measured["device"]}, loss or mean {measured["value"]:.4g}')
  return measured


def _tell(text):
  print(text, file=sys.stderr, flush=True)


def _work(arguments) -> dict:
  """Times what --worker names."""
  name, _, form = arguments.worker.partition(':')
  (program,) = (
    one for one in find_programs(arguments.folder) if one['name'] == name
  )
  if ':' in arguments.worker:
    return _time_pytorch(program, bool(form), arguments.repeats)
  return _time_program(arguments.folder, program, arguments.repeats)


def _time_program(folder, program, repeats):
  """Runs a program again and again on its own results."""
  import jax

  run = load_program(folder, program)
  device = jax.devices()[0]
  values = [jax.device_put(one, device) for one in make_arguments(program)]

  def step():
    results = run(values)
    # The loss or the embeddings come first.
    results[0].block_until_ready()
    for result, described in zip(results, program['results'], strict=True):
      if 'argument' in described:
        values[described['argument']] = result
    return results[0]

  seconds, first = _time(step, repeats)
  stats = device.memory_stats() or {}
  return _measured(
    seconds,
    stats.get('peak_bytes_in_use'),
    getattr(device, 'device_kind', str(device)),
    float(np.mean(np.asarray(first))),
  )


def _time_pytorch(program, compiled, repeats):
  """Runs the training step of the same network in PyTorch."""
  import torch

  path = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), 'benchmarks/torch_networks.py'
  )
  spec = importlib.util.spec_from_file_location('torch_networks', path)
  torch_networks = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(torch_networks)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  # As XLA does: TF32 for float32, and a search for the fastest convolution.
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True
  training_step = torch_networks.TrainStep(
    torch_networks.VisualWordNet(**program['network']).to(device),
    bfloat16=program['precision'] == 'bfloat16',
    compiled=compiled,
  )
  batch = torch_networks.draw_batch(
    program['batch'], program['size'], program['network']['num_words'], device
  )
  seconds, loss = _time(lambda: training_step(*batch).item(), repeats)
  memory = name = None
  if device == 'cuda':
    memory = torch.cuda.max_memory_allocated()
    name = torch.cuda.get_device_name()
  return _measured(seconds, memory, name or device, loss)


def _time(step, repeats):
  """Returns the median of the seconds of steps, and what the last returned."""
  times = collections.deque(maxlen=repeats)
  for _ in range(3 + repeats):  # the first ones compile, tune and allocate
    start = time.perf_counter()
    result = step()
    times.append(time.perf_counter() - start)
  return statistics.median(times), result


def _measured(seconds, memory, device, value):
  if memory is None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  if not np.isfinite(value):
    raise FloatingPointError(f'the result is {value}, wanted a finite number')
  return {
    'seconds': seconds,
    'memory': memory,
    'device': device,
    'value': value,
  }


if __name__ == '__main__':
  sys.exit(main())
