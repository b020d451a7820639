"""How discovery describes scans, so that similar patients are found.

Imports no TensorFlow: only the autoencoder needs it.
"""

import dataclasses

from transvw_tf2 import errors

PCA = 'pca'
AUTOENCODER = 'autoencoder'
DESCRIPTORS = (PCA, AUTOENCODER)


@dataclasses.dataclass(frozen=True)
class DescriptorSettings:
  """How scans are described; the default needs no training.

  Attributes:
    descriptor: `pca` of small thumbnails, or `autoencoder`, the published
      method.
    descriptor_model: folder that transvw_tf2.export wrote for an autoencoder.
    descriptors: a descriptors.npz of the same scans, to be used instead.

  Raises:
    UserError: they do not fit together.
  """

  descriptor: str = PCA
  descriptor_model: str | None = None
  descriptors: str | None = None

  def __post_init__(self):
    if self.descriptor not in DESCRIPTORS:
      raise errors.UserError(
        f'descriptor must be one of {", ".join(DESCRIPTORS)}, got'
        f' {self.descriptor!r}'
      )
    for name in ('descriptor_model', 'descriptors'):
      value = getattr(self, name)
      if not isinstance(value, str | None) or value == '':
        raise errors.UserError(f'{name} must be a path, got {value!r}')
    if self.descriptors and (self.descriptor_model or self.descriptor != PCA):
      raise errors.UserError(
        'descriptors are given as a file, so that descriptor and'
        ' descriptor_model would be passed over: leave them out'
      )
    if self.descriptor_model and self.descriptor == PCA:
      raise errors.UserError(
        'descriptor_model is given, but pca takes no model: leave it out, or'
        ' set descriptor to autoencoder'
      )
    if self.descriptor == AUTOENCODER and not self.descriptor_model:
      raise errors.UserError(
        'descriptor autoencoder needs descriptor_model, the folder that'
        ' transvw_tf2.export wrote for a run of gin/runs/autoencoder.gin'
      )

  def check_model(self) -> None:
    """Raises UserError unless the model, if there is one, can be used."""
    if self.descriptor_model:
      from beam_jobs import describe  # brings TensorFlow

      describe.check_model(self.descriptor_model)
