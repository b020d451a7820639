"""Packaging of transvw-tf2: `pip install .` or `pip install -e '.[dev]'`."""

import glob
import os

import setuptools

_ROOT = os.path.dirname(os.path.abspath(__file__))


def _gin_data_files():
  """Returns the gin files as data files under share/transvw_tf2/gin."""
  folders = {}
  for path in sorted(glob.glob('gin/**/*.gin', root_dir=_ROOT, recursive=True)):
    folder = os.path.join('share', 'transvw_tf2', os.path.dirname(path))
    folders.setdefault(folder, []).append(path)
  return sorted(folders.items())


with open(os.path.join(_ROOT, 'README.md'), encoding='utf-8') as readme:
  _LONG_DESCRIPTION = readme.read()

setuptools.setup(
  name='transvw-tf2',
  version='0.1.0',
  description=(
    'Transferable Visual Words for TensorFlow 2: self-supervised pre-training'
    ' on chest CT'
  ),
  long_description=_LONG_DESCRIPTION,
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',  # TensorFlow has no wheels for 3.14
  packages=setuptools.find_packages(include=['transvw_tf2*', 'beam_jobs*']),
  package_data={'beam_jobs': ['*/README.md', '*/*.bib', '*/*.txt']},
  data_files=_gin_data_files(),
  install_requires=[
    'absl-py>=2.1',
    'apache-beam>=2.72',
    'fsspec>=2024.6',
    'gin-config>=0.5',
    'grpcio>=1.73',
    'h5py>=3.11',
    'importlib_resources>=6.0',  # tfds fails to start without it
    'keras>=3.10',
    'matplotlib>=3.8',
    'mlcroissant>=1.0',  # tfds fails to start without it
    'numpy>=1.26',
    'pandas>=2.2',
    'pillow>=12.1.1',
    'protobuf>=6.33.5',  # tensorflow-metadata fails below 6.31 and allows it
    'pyarrow>=14',
    'scikit-learn>=1.5',
    'scipy>=1.11.1',
    'SimpleITK>=2.5.4',  # passes over no cut DICOM slice
    'tensorboard>=2.20',
    'tensorflow>=2.20',
    'tensorflow-datasets>=4.9.9',
    'threadpoolctl>=3.2',
    'tqdm>=4.66',
  ],
  extras_require={
    # What tools/benchmark.py compares with.
    'benchmark': [
      'batchgenerators>=0.25',
      'jax>=0.6',
      'monai>=1.4',
      'psutil>=5.9.6',
      'scikit-image>=0.22',
      'torch>=2.6',
      'torchio>=0.20',
    ],
    'cuda': ['tensorflow[and-cuda]>=2.20'],
    's3': ['s3fs>=2024.6'],  # scans on s3://
    'serve': ['kserve>=0.17'],
    'torch': ['torch>=2.6'],  # safe loading
    # dill is what tfds.testing imports; kserve is what serve needs; flask and
    # flask-cors are what the server of moto needs; coverage is for
    # `python -m tests.fuzz`.
    'dev': [
      'coverage>=7.4',
      'dill>=0.3.9',
      'flask>=3.0',
      'flask-cors>=4.0',
      'kserve>=0.17',
      'moto[s3]>=5.0.13',
      'packaging>=24.2',
      'psutil>=5.9.6',
      'pytest>=8.0',
      'pytest-xdist>=3.6.1',
      'pyyaml>=6.0.3',
      'ruff>=0.13',
      's3fs>=2024.6',
      'setuptools>=77.0.1',
      'wheel>=0.40',
    ],
  },
)
