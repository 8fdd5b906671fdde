"""Worker: ovi_jax's side of every case, as `sample.py` runs it on a CPU."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases
from benchmarks import worker
from ovi_jax import cli
from ovi_jax.attention import attention
from ovi_jax.convert import fusion as fusion_names
from ovi_jax.convert import mapping
from ovi_jax.convert import video_vae as video_vae_names
from ovi_jax.convert import vocoder as vocoder_names
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers


def parameters(component: str, config: Any, rows: Sequence[mapping.Row]) -> Any:
  """Parameters converted from the tensors that `cases.tensor` makes."""
  shapes = mapping.flatten(architecture.parameter_shapes(component, config))
  wanted = {row.ours for row in rows}
  views = mapping.torch_leaves(rows, {p: shapes[p] for p in wanted if p})
  constants = {
    name: view
    for row in rows
    if row.ours is None
    for index in row.indices
    for name, view in zip(row.names(index), row.op.to_torch(np.zeros(())))
  }

  def read(name: str) -> np.ndarray:
    if name in constants:
      return constants[name]
    return cases.tensor(name, views[name].shape)

  flat = mapping.gather(rows, read)
  return jax.tree.map(jnp.asarray, mapping.nest(flat))


def prepare_denoise(case: cases.Case) -> worker.Work:
  """Guided steps of a run of `cases.STEPS`, one after the other."""
  config = AV(
    **{n: dit.DiTConfig.from_release(s) for n, s in case.sizes.items()}
  )
  params = parameters("fusion", config, fusion_names.rows(config))
  backend = attention.resolve(
    "auto", cli.platform(), jnp.dtype("f4"), config.video.head_dim
  )
  model = denoiser.denoiser_model(config, jnp.dtype("f4"), backend, 1)
  noise = AV(*(case.input(n)[None] for n in AV._fields))
  x = jax.tree.map(jnp.asarray, noise)
  positive, *negative = (case.input(name) for name in cases.PROMPTS)
  limit, depth = config.video.max_text_len, config.video.num_layers
  text = denoiser.text_pairs([positive], AV(*negative), limit, backend)
  inputs = denoise.Inputs(
    denoiser.step_constants(model, params, guidance.duplicate_for_cfg(x), text),
    jnp.asarray(guidance.slg_mask(depth, 1, case.slg_layer)),
    AV(**cases.GUIDANCE),
  )
  method = solvers.named("unipc")
  levels = method.schedule(cases.STEPS, cases.SHIFT)
  rows = method.coefficients(levels.sigmas)
  state = AV(**{n: method.init(a) for n, a in x.present().items()})
  loop = {"x": x, "state": state, "i": 0}

  def run() -> None:
    i = loop["i"]
    x, state = denoise.step(
      model,
      method,
      params,
      inputs,
      loop["x"],
      loop["state"],
      np.float32(levels.t[i]),
      rows[i],
      np.float32(levels.sigmas[i]),
    )
    jax.block_until_ready(x)
    loop.update(x=x, state=state, i=(i + 1) % cases.STEPS)

  def check() -> dict[str, np.ndarray]:
    for _ in range(cases.CHECK_STEPS):
      run()
    change = jax.tree.map(
      lambda a, b: np.asarray(a)[0] - b[0], loop["x"], noise
    )
    return change.present()

  return worker.Work(check, run, _versions(attention=backend))


def prepare_vae_decode(case: cases.Case) -> worker.Work:
  """Latents to pixels in memory."""
  config = video_vae.VideoVAEConfig(**case.sizes)
  rows = video_vae_names.decoder_rows(config)
  params = parameters("video_vae", config, rows)
  latents = jnp.asarray(case.input("latents")[None])

  def run() -> jax.Array:
    return jax.block_until_ready(codec.decode(config, params, latents))

  def check() -> dict[str, np.ndarray]:
    return {"frames": np.asarray(run()[0])}

  return worker.Work(check, run, _versions())


def prepare_vocoder(case: cases.Case) -> worker.Work:
  """A spectrogram to a waveform."""
  config = vocoder.VocoderConfig(**case.sizes)
  params = parameters("vocoder", config, vocoder_names.rows(config))
  mel = jnp.asarray(case.input("mel")[None])
  apply = jax.jit(vocoder.BigVGAN(config).apply)

  def run() -> jax.Array:
    return jax.block_until_ready(apply({"params": params}, mel))

  def check() -> dict[str, np.ndarray]:
    return {"wave": np.asarray(run()[0])}

  return worker.Work(check, run, _versions())


def _versions(**more: str) -> dict[str, str]:
  return {"jax": jax.__version__, "numpy": np.__version__, **more}


PREPARE = {
  "denoise": prepare_denoise,
  "vae_decode": prepare_vae_decode,
  "vocoder": prepare_vocoder,
}


def prepare(order: Mapping[str, Any]) -> worker.Work:
  case = cases.all_cases(order["small"])[order["case"]]
  return PREPARE[case.kind](case)


if __name__ == "__main__":
  worker.serve(prepare)
