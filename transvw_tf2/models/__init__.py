"""3D networks; the builders here are what gin files configure.

`models.build_unet3d()` is `unet3d` in gin, `models.build_visual_word_net` is
`visual_word_net`, `build_word_classifier` is `word_classifier`,
`build_classifier` is `classifier` and `build_torch_visual_word_net` is
`torch_visual_word_net`; the plain names are the modules. All take a Keras
`dtype` policy, such as 'mixed_bfloat16', which the precision of a run decides.
"""

import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin

from transvw_tf2.models import blocks
from transvw_tf2.models import restoration_net  # noqa: F401, registered so
from transvw_tf2.models import torch_variant
from transvw_tf2.models import transfer
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.models import word_classifier


@gin.configurable('visual_word_net', module='models')
def build_visual_word_net(
  num_words: int,
  base_filters: int = 32,
  depth: int = 4,
  head_filters: int = 512,
  head_units: int = 1024,
  skip_connections: bool = True,
  upsampling: str = blocks.NEAREST,
  fused_upsampling: bool = False,
  synchronized_batch_norm: bool = False,
  dtype: str = 'float32',
) -> visual_word_net.VisualWordNet:
  """Returns a Y-Net; num_words comes from the data set, never from gin."""
  return visual_word_net.VisualWordNet(
    num_words=num_words,
    base_filters=base_filters,
    depth=depth,
    head_filters=head_filters,
    head_units=head_units,
    skip_connections=skip_connections,
    upsampling=upsampling,
    fused_upsampling=fused_upsampling,
    synchronized_batch_norm=synchronized_batch_norm,
    dtype=dtype,
  )


@gin.configurable('unet3d', module='models')
def build_unet3d(
  base_filters: int = 32,
  depth: int = 4,
  skip_connections: bool = True,
  upsampling: str = blocks.NEAREST,
  fused_upsampling: bool = False,
  synchronized_batch_norm: bool = False,
  output_channels: int = 1,
  dtype: str = 'float32',
) -> unet3d.UNet3D:
  """Returns a U-Net; skip_connections=False gives the paper's "V-Net"."""
  return unet3d.UNet3D(
    base_filters=base_filters,
    depth=depth,
    skip_connections=skip_connections,
    upsampling=upsampling,
    fused_upsampling=fused_upsampling,
    synchronized_batch_norm=synchronized_batch_norm,
    output_channels=output_channels,
    dtype=dtype,
  )


@gin.configurable('word_classifier', module='models')
def build_word_classifier(
  num_words: int,
  base_filters: int = 32,
  depth: int = 4,
  synchronized_batch_norm: bool = False,
  dtype: str = 'float32',
) -> word_classifier.WordClassifier:
  """Returns an encoder that names words, without a decoder."""
  return word_classifier.WordClassifier(
    num_words=num_words,
    base_filters=base_filters,
    depth=depth,
    synchronized_batch_norm=synchronized_batch_norm,
    dtype=dtype,
  )


@gin.configurable('classifier', module='models')
def build_classifier(
  num_classes: int,
  base_filters: int = 32,
  depth: int = 4,
  centre_features: bool = False,
  synchronized_batch_norm: bool = False,
  dtype: str = 'float32',
) -> transfer.Classifier:
  """Returns the classifier of a target task, an encoder with a dense layer."""
  return transfer.Classifier(
    num_classes=num_classes,
    base_filters=base_filters,
    depth=depth,
    centre_features=centre_features,
    synchronized_batch_norm=synchronized_batch_norm,
    dtype=dtype,
  )


@gin.configurable('torch_visual_word_net', module='models')
def build_torch_visual_word_net(
  num_words: int,
  base_filters: int = 32,
  depth: int = 4,
  head_filters: int = 1024,
  batch_statistics: bool = False,
  synchronized_batch_norm: bool = False,
  dtype: str = 'float32',
) -> torch_variant.TorchVisualWordNet:
  """Returns the Y-Net as the PyTorch release has it."""
  return torch_variant.TorchVisualWordNet(
    num_words=num_words,
    base_filters=base_filters,
    depth=depth,
    head_filters=head_filters,
    batch_statistics=batch_statistics,
    synchronized_batch_norm=synchronized_batch_norm,
    dtype=dtype,
  )
