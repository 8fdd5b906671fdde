"""Encodes batches of media and captions on the devices of the run.

For training directly from mp4. Cached latents and embeddings (`data.encode`)
are only placed on the mesh.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.data import encoding
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import state_sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchEncoder:
  """Places a batch on the mesh and encodes what is not yet encoded.

  Attributes:
    text: encoder of token ids; `None` if batches contain embeddings.
    media: encoders of frames and waveforms; `None` for each modality that
      batches contain as latents.
  """

  text: encoders.TextEncoder | None = None
  media: AV[Any] = dataclasses.field(default_factory=AV)

  def __call__(
    self, host: schema.Batch, mesh: jax.sharding.Mesh
  ) -> schema.Batch:
    """Place this process's rows of a batch on its devices, and encode them."""
    batch = state_sharding.batch(host, mesh)
    latents = batch.latents._asdict()
    for name, encoder in self.media.present().items():
      made = encoder.encode(latents[name], split=True)
      latents[name] = _mask_padding(made, getattr(batch.lengths, name))
    text = batch.text
    if self.text is not None:
      ids_BS = next(iter(text.present().values()))
      mask_BS = ids_BS != self.text.tokenizer.pad
      text_BSE = self.text.encode(ids_BS, mask_BS, split=True)
      text_BSE = text_BSE.astype(jnp.float32)
      text = AV(*(None if a is None else text_BSE for a in text))
    return batch._replace(latents=AV(**latents), text=text)

  def null_text(self, cached_SE: np.ndarray) -> np.ndarray:
    """text_SE of the empty prompt: cached, or by the encoder of the batches."""
    return cached_SE if self.text is None else self.text.texts([""])[""]


def open_pretrained(
  settings: settings_lib.Settings, mesh: jax.sharding.Mesh
) -> component_loader.Components | None:
  """Check the text encoder, VAEs and vocoder that a run needs; loads none.

  Args:
    settings: settings of the run.
    mesh: mesh of the run.

  Returns:
    The components; `None` if the run needs none.

  Raises:
    ValueError: they are missing or damaged, or do not fit the model.
  """
  data, towers = settings.data, settings.model.present()
  decoders = settings.intervals.sample_every > 0
  needs = {
    encoding.COMPONENTS[n] for n in towers if data.encode_on_the_fly or decoders
  }
  if data.tokenizer:
    needs.add(encoding.COMPONENTS["text"])
  if decoders and "audio" in towers:
    needs.add("vocoder")
  if not needs:
    return None
  path = storage.locate(settings.pretrained)
  manifest = weights_dir.read(path, needs=tuple(sorted(needs)))
  fitting = dataclasses.replace(manifest.architecture, fusion=settings.model)
  if problems := fitting.misfits:
    raise ValueError(
      f"components in {path} do not fit the model: {'; '.join(problems)}"
    )
  dtype = settings.compute_dtype(cli.platform())
  return component_loader.Components(
    weights=path, manifest=manifest, mesh=mesh, dtype=dtype
  )


def load(
  settings: settings_lib.Settings, opened: component_loader.Components | None
) -> BatchEncoder:
  """Load the encoders that the run's batches need."""
  if opened is None:
    return BatchEncoder()
  kinds = {"video": encoders.VideoEncoder, "audio": encoders.AudioEncoder}
  media = settings.model.present() if settings.data.encode_on_the_fly else ()
  return BatchEncoder(
    text=encoders.TextEncoder.load(opened) if settings.data.tokenizer else None,
    media=AV(**{name: kinds[name].load(opened) for name in media}),
  )


@jax.jit
def _mask_padding(latents: jax.Array, lengths_B: jax.Array) -> jax.Array:
  """Set latents beyond the valid length to zero, as in cached latents."""
  valid_BT = jnp.arange(latents.shape[1])[None] < lengths_B[:, None]
  rest = (1,) * (latents.ndim - 2)
  return jnp.where(valid_BT.reshape(*valid_BT.shape, *rest), latents, 0.0)
