"""Parity with independent implementations, in float32 on the CPU.

  python -m benchmarks.parity [--mmaudio=DIR] [--dino=DIR]
    [--out=benchmarks/results]

diffusers (`WanTransformer3DModel`, `AutoencoderKLWan`), transformers
(`UMT5EncoderModel`) and MMAudio (autoencoder, BigVGAN; both spellings of weight
norm) make small models with random weights and write them in their own files.
These are converted as any user's files are, and the outputs compared. LoRA
files go both ways: the transformer reads one that ovi_jax wrote, by PEFT, and
ovi_jax one that diffusers saved. Needs torch, diffusers, transformers and peft
beside ovi_jax; --mmaudio is a clone of hkchengrex/MMAudio and --dino one of
facebookresearch/dino, without which their classes are left out.
"""

import dataclasses
import importlib
import json
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax.convert import convert
from ovi_jax.convert import standin
from ovi_jax.evaluation.extractors import dino
from ovi_jax.lora import adapter
from ovi_jax.lora import apply as lora_apply
from ovi_jax.lora import files as lora_files
from ovi_jax.lora import names as lora_names
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import audio_vae
from ovi_jax.models import fusion
from ovi_jax.models import low_rank
from ovi_jax.models import umt5
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import mesh as meshes

LIMIT = 1e-4  # largest relative error; more ends with exit code 1
NEEDED = ("torch", "diffusers", "transformers", "peft")
_T = 500.0  # noise time of the transformer's cases
_MMAUDIO = "hkchengrex/MMAudio", "mmaudio/ext/bigvgan/models.py"
_DINO = "facebookresearch/dino", "vision_transformer.py"

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """One output of both implementations, in one layout."""

  name: str
  reference: np.ndarray
  ours: np.ndarray

  @property
  def absolute(self) -> float:
    """Largest absolute difference."""
    return float(np.abs(self.ours - self.reference).max())

  @property
  def relative(self) -> float:
    """The same over the reference's largest magnitude."""
    return self.absolute / float(np.abs(self.reference).max())


def libraries() -> dict[str, Any]:
  """The libraries that are compared with, by name.

  Raises:
    ValueError: some are not installed; says how to install them.
  """
  found, absent = {}, []
  for name in NEEDED:
    try:
      found[name] = importlib.import_module(name)
    except ModuleNotFoundError:
      absent.append(name)
  if absent:
    raise ValueError(
      f"expected {', '.join(NEEDED)} beside ovi_jax, {', '.join(absent)} not"
      f" found: pip install {' '.join(absent)}"
    )
  return found


def clone(path: str, flag: str, repository: str, file: str) -> pathlib.Path:
  """The folder of a clone.

  Args:
    path: of the folder.
    flag: that gave it.
    repository: that it should be of.
    file: of the repository.

  Raises:
    ValueError: it is something else.
  """
  root = pathlib.Path(path)
  if not (root / file).is_file():
    raise ValueError(
      f"--{flag}={path}: expected a clone of {repository}, found no {file} in"
      " it"
    )
  return root


def module(name: str) -> Any:
  """Import what the cases of clones need.

  Raises:
    ValueError: a library is not installed; names it.
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{name} of the clone needs {error.name}, which was not found: pip"
      f" install {error.name}"
    ) from error


def randomize(torch: Any, model: Any, seed: int) -> None:
  """Random parameters, none of them neutral: no zero bias, no gain of one."""
  random = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      shape = tuple(parameter.shape)
      noise = random.standard_normal(shape)
      fan_in = int(np.prod(shape[1:]))
      if len(shape) > 1 and fan_in > 1 and "scale_shift" not in name:
        noise /= fan_in**0.5
      elif name.endswith(("bias", "alpha", "beta", "scale_shift_table")):
        noise *= 0.1
      else:  # gains; those of weight norm keep signals from growing
        typical = 0.7 if name.endswith("original0") else 1.0
        noise = typical * (1 + 0.1 * noise)
      parameter.copy_(torch.from_numpy(np.asarray(noise, np.float32)))


def converted(
  component: str, sizes: Mapping[str, Any], *names: pathlib.Path
) -> tuple[Any, Any]:
  """Config and parameters of files as the conversion command reads them."""
  is_text = component == "umt5"
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "out"
    convert.convert(
      None,
      out,
      variant=None,
      sizes=sizes,
      files={component: [str(name) for name in names]},
      tokenizer=standin.HERE / "tokenizer.json" if is_text else None,
    )
    params = weights.load(out / f"{component}.safetensors")
  arch = architecture.Architecture.from_release(sizes)
  return arch.config(component), params


def sizes_with(**parts: Any) -> dict[str, Any]:
  """The dummy release's sizes with some replaced; no clip."""
  sizes = dict(standin.manifest()["config"]) | parts
  sizes.pop("latents")
  return sizes


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(shape)
  return noise.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan:
  """A random transformer of the TI2V-5B family, in both implementations.

  Attributes:
    torch: the library.
    model: of diffusers.
    config: our towers; video alone.
    params: the same parameters, converted.
  """

  torch: Any
  model: Any
  config: Any
  params: Any

  def compare(
    self, name: str, first: float = _T, params: Any = None
  ) -> Comparison:
    """Velocities of both at `_T`.

    Args:
      name: of the comparison.
      first: time of the first frame; at 0 it is given.
      params: in place of the converted ones.
    """
    frames, rows, columns = 4, 4, 6
    tower = self.config.video
    x_BTHWC = normal(1, frames, rows, columns, tower.channels)
    text_BSE = normal(1, 9, tower.text_dim, seed=1)
    padded = np.zeros((1, tower.max_text_len, tower.text_dim), np.float32)
    padded[:, :9] = text_BSE
    tokens = frames * rows * columns // 4
    per_token = np.full((1, tokens), _T, np.float32)
    per_token[:, : tokens // frames] = first
    alike = first == _T
    reference = self.model(
      self.torch.from_numpy(x_BTHWC.transpose(0, 4, 1, 2, 3).copy()),
      self.torch.from_numpy(per_token[:, 0] if alike else per_token),
      self.torch.from_numpy(padded),
      return_dict=False,
    )[0]
    mask = None if alike else np.arange(frames)[None] == 0
    velocity: Any = jax.jit(fusion.FusionDiT(self.config).apply)(
      {"params": self.params if params is None else params},
      AV(x_BTHWC),
      AV(np.array([[_T]], np.float32)),
      AV(text_BSE),
      given_BT=AV(mask),
    )
    return Comparison(
      name=f"diffusers WanTransformer3DModel, {name}",
      reference=reference.numpy().transpose(0, 2, 3, 4, 1),
      ours=np.asarray(velocity.video),
    )


def wan(libs: Mapping[str, Any], folder: pathlib.Path) -> Wan:
  """The video tower alone, of the TI2V-5B family."""
  tower = dict(standin.manifest()["config"]["fusion"]["video"])
  tower["freq_dim"] = 256
  model = (
    libs["diffusers"]
    .WanTransformer3DModel(
      patch_size=(1, 2, 2),
      num_attention_heads=tower["num_heads"],
      attention_head_dim=tower["dim"] // tower["num_heads"],
      in_channels=tower["in_dim"],
      out_channels=tower["out_dim"],
      text_dim=tower["text_dim"],
      freq_dim=tower["freq_dim"],
      ffn_dim=tower["ffn_dim"],
      num_layers=tower["num_layers"],
      cross_attn_norm=True,
      qk_norm="rms_norm_across_heads",
      eps=tower["eps"],
      rope_max_seq_len=1024,
    )
    .eval()
  )
  randomize(libs["torch"], model, 1)
  model.save_pretrained(folder)
  (path,) = folder.glob("*.safetensors")
  config, params = converted(
    "fusion", sizes_with(fusion={"video": tower}), path
  )
  return Wan(torch=libs["torch"], model=model, config=config, params=params)


def transformer(libs: Mapping[str, Any], folder: pathlib.Path) -> Iterator[Any]:
  """One time for all tokens, and a clean first frame."""
  both = wan(libs, folder)
  yield both.compare("one time")
  yield both.compare("clean first frame", 0.0)


def our_lora(libs: Mapping[str, Any], folder: pathlib.Path) -> Iterator[Any]:
  """A LoRA file that ovi_jax wrote, read by diffusers and PEFT."""
  both = wan(libs, folder)
  pairs = {}
  for slot in lora_names.table(both.config).names:
    if slot.path.startswith("video/") or not low_rank.is_target(slot.path):
      continue
    _, inputs, outputs = lora_names.shapes(both.config)[slot.path]
    rank, seed = 2 + len(pairs) % 3, 2 * len(pairs)
    pairs[slot] = adapter.Pair(
      down=normal(inputs, rank, seed=seed) / inputs**0.5,
      up=normal(rank, outputs, seed=seed + 1) / 4,
      alpha=float(len(pairs) % 4 + 1),
    )
  path = folder / "lora" / "ours.safetensors"
  path.parent.mkdir()
  made = adapter.Adapter(pairs=pairs)
  lora_files.write(path, made, both.config, lora_names.DIFFUSERS)
  both.model.load_lora_adapter(str(path.parent), weight_name=path.name)
  yield _with_lora(both, "our LoRA", path)


def their_lora(libs: Mapping[str, Any], folder: pathlib.Path) -> Iterator[Any]:
  """A LoRA file that diffusers saved, read by ovi_jax."""
  torch, peft = libs["torch"], libs["peft"]
  both = wan(libs, folder)
  layers = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
  config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=layers)
  both.model.add_adapter(config)
  random = np.random.default_rng(9)
  with torch.no_grad():
    for name, parameter in both.model.named_parameters():
      if "lora_" in name:
        values = random.standard_normal(tuple(parameter.shape)) / 8
        parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))
  said = {
    name: sorted(value) if isinstance(value, set) else value
    for name, value in config.to_dict().items()
  }
  libs["diffusers"].WanPipeline.save_lora_weights(
    folder / "theirs",
    transformer_lora_layers=peft.get_peft_model_state_dict(both.model),
    transformer_lora_adapter_metadata=said,
  )
  (path,) = (folder / "theirs").glob("*.safetensors")
  yield _with_lora(both, "its LoRA", path)


def _with_lora(both: Wan, name: str, path: pathlib.Path) -> Comparison:
  """Outputs with a LoRA file, which changes them by more than a tenth."""
  manifest = weights_dir.released("720x720_5s")
  loras = lora_apply.load(str(path), both.config, manifest)
  mesh = meshes.make(jax.devices()[:1])
  params = lora_apply.apply(both.params, loras, both.config, mesh)
  found = both.compare(name, params=params)
  plain = both.compare(name)  # diffusers with, ovi_jax without
  if plain.relative < 0.1:
    raise ValueError(f"{name}: the LoRA changes too little to be compared")
  return found


def video_autoencoder(
  libs: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[Any]:
  """The autoencoder of Wan 2.2: pixels to latents and back."""
  torch = libs["torch"]
  sizes = standin.manifest()["config"]["video_vae"]
  model = (
    libs["diffusers"]
    .AutoencoderKLWan(
      base_dim=sizes["dim"],
      decoder_base_dim=sizes["dec_dim"],
      z_dim=sizes["z_dim"],
      dim_mult=list(sizes["dim_mult"]),
      num_res_blocks=sizes["num_res_blocks"],
      temperal_downsample=list(sizes["temporal_downsample"]),
      latents_mean=list(video_vae.LATENT_MEAN),
      latents_std=list(video_vae.LATENT_STD),
      is_residual=True,
      in_channels=12,
      out_channels=12,
      patch_size=2,
      scale_factor_spatial=16,
    )
    .eval()
  )
  randomize(torch, model, 2)
  model.save_pretrained(folder)
  (path,) = folder.glob("*.safetensors")
  config, params = converted("video_vae", sizes_with(), path)
  frames = np.tanh(normal(1, 13, 64, 96, 3))
  first_last = frames.transpose(0, 4, 1, 2, 3).copy()
  mean = np.array(video_vae.LATENT_MEAN, np.float32)
  deviation = np.array(video_vae.LATENT_STD, np.float32)
  latents = model.encode(torch.from_numpy(first_last)).latent_dist.mode()
  yield Comparison(
    name="diffusers AutoencoderKLWan, encode",
    reference=(latents.numpy().transpose(0, 2, 3, 4, 1) - mean) / deviation,
    ours=np.asarray(codec.encode(config, params, jnp.asarray(frames))),
  )
  z_BTHWC = normal(1, 4, 4, 6, sizes["z_dim"], seed=3)
  raw = (z_BTHWC * deviation + mean).transpose(0, 4, 1, 2, 3).copy()
  decoded = model.decode(torch.from_numpy(raw)).sample
  yield Comparison(
    name="diffusers AutoencoderKLWan, decode",
    reference=decoded.numpy().transpose(0, 2, 3, 4, 1),
    ours=np.asarray(codec.decode(config, params, jnp.asarray(z_BTHWC))),
  )


def text_encoder(
  libs: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[Any]:
  """UMT5's encoder, padded prompts."""
  torch, transformers = libs["torch"], libs["transformers"]
  transformers.utils.logging.disable_progress_bar()
  sizes = standin.manifest()["config"]["t5"]
  model = transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      vocab_size=sizes["vocab_size"],
      d_model=sizes["dim"],
      d_kv=sizes["dim_attn"] // sizes["num_heads"],
      d_ff=sizes["dim_ffn"],
      num_layers=sizes["encoder_layers"],
      num_heads=sizes["num_heads"],
      relative_attention_num_buckets=sizes["num_buckets"],
      relative_attention_max_distance=128,
      feed_forward_proj="gated-gelu",
      dropout_rate=0.0,
    )
  ).eval()
  randomize(torch, model, 3)
  model.save_pretrained(folder)
  (path,) = folder.glob("*.safetensors")
  config, params = converted("umt5", sizes_with(), path)
  random = np.random.default_rng(4)
  ids = random.integers(0, sizes["vocab_size"], (2, 200))
  mask = np.arange(200)[None] < np.array([[200], [37]])
  reference = model(
    input_ids=torch.from_numpy(ids),
    attention_mask=torch.from_numpy(mask.astype(np.int64)),
  )[0].numpy()
  ours = umt5.UMT5Encoder(config).apply(
    {"params": params}, jnp.asarray(ids, jnp.int32), jnp.asarray(mask, "i4")
  )
  yield Comparison(
    name="transformers UMT5EncoderModel",
    reference=reference * mask[..., None],
    ours=np.asarray(ours) * mask[..., None],
  )


def audio_autoencoder(
  libs: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[Any]:
  """MMAudio's 16 kHz autoencoder of spectrograms."""
  torch = libs["torch"]
  vae = module("mmaudio.ext.autoencoder.vae")
  sizes = standin.manifest()["config"]["audio_vae"]
  model = vae.VAE(**sizes).eval()
  randomize(torch, model, 5)
  torch.save(model.state_dict(), folder / "vae.pth")
  config, params = converted("audio_vae", sizes_with(), folder / "vae.pth")
  model.remove_weight_norm()
  ours = audio_vae.AudioVAE(config)
  mel_BTM = normal(1, 42, sizes["data_dim"]) - 2
  latents = model.encode(torch.from_numpy(mel_BTM.swapaxes(1, 2).copy()))
  mean_BTC, _ = ours.apply({"params": params}, mel_BTM, method="encode")
  yield Comparison(
    name="MMAudio VAE, encode",
    reference=latents.mode().numpy().swapaxes(1, 2),
    ours=np.asarray(mean_BTC),
  )
  z_BTC = normal(1, 21, sizes["embed_dim"], seed=6)
  decoded = model.decode(torch.from_numpy(z_BTC.swapaxes(1, 2).copy()))
  yield Comparison(
    name="MMAudio VAE, decode",
    reference=decoded.numpy().swapaxes(1, 2),
    ours=np.asarray(ours.apply({"params": params}, z_BTC, method="decode")),
  )


def sound_decoder(
  libs: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[Any]:
  """MMAudio's BigVGAN from files with either spelling of weight norm."""
  torch = libs["torch"]
  models = module("mmaudio.ext.bigvgan.models")
  omegaconf = module("omegaconf")
  sizes = standin.manifest()["config"]["bigvgan"]
  fixed = {"num_mels": 80, "resblock": "1"}
  model = models.BigVGANVocoder(omegaconf.OmegaConf.create(sizes | fixed))
  randomize(torch, model.eval(), 7)
  new = model.state_dict()
  parts = ("weight_g", "weight_v")
  spelled = {
    name: name.replace(f"parametrizations.weight.original{i}", part)
    for name in new
    for i, part in enumerate(parts)
    if f"parametrizations.weight.original{i}" in name
  }
  old = {spelled.get(name, name): tensor for name, tensor in new.items()}
  model.load_state_dict(old)  # torch itself takes the old spelling
  mel_BTM = normal(1, 40, fixed["num_mels"], seed=8)
  files = {"weight_g, weight_v": old, "parametrizations": new}
  wave = model(torch.from_numpy(mel_BTM.swapaxes(1, 2).copy()))
  for name, tensors in files.items():
    path = folder / "vocoder.pt"
    torch.save({"generator": tensors}, path)
    config, params = converted("vocoder", sizes_with(), path)
    ours = vocoder.BigVGAN(config).apply({"params": params}, mel_BTM)
    yield Comparison(
      name=f"MMAudio BigVGAN, {name}",
      reference=wave.numpy()[:, 0],
      ours=np.asarray(ours),
    )


def vision_transformer(
  libs: Mapping[str, Any], folder: pathlib.Path
) -> Iterator[Any]:
  """DINO's ViT-B/16 at its full size, frames of 16 : 9 and square ones."""
  torch = libs["torch"]
  model = module("vision_transformer").vit_base(patch_size=16).eval()
  randomize(torch, model, 8)
  torch.save(model.state_dict(), folder / "dino.pth")
  config, params = dino.read_weights(folder / "dino.pth")
  network = jax.jit(dino.Dino(config).apply)
  for rows, columns in ((224, 398), (224, 224)):
    pictures_BHWC = normal(2, rows, columns, 3)
    channels_first = pictures_BHWC.transpose(0, 3, 1, 2).copy()
    yield Comparison(
      name=f"DINO ViT-B/16, {columns} x {rows}",
      reference=model(torch.from_numpy(channels_first)).numpy(),
      ours=np.asarray(network({"params": params}, pictures_BHWC)),
    )


Case = Callable[[Mapping[str, Any], pathlib.Path], Iterator[Comparison]]
CASES: tuple[Case, ...] = (
  transformer,
  our_lora,
  their_lora,
  video_autoencoder,
  text_encoder,
)
MMAUDIO_CASES: tuple[Case, ...] = (audio_autoencoder, sound_decoder)
DINO_CASES: tuple[Case, ...] = (vision_transformer,)


def compare(
  mmaudio: str, dino_clone: str = ""
) -> tuple[list[Comparison], dict[str, str]]:
  """All comparisons, and the versions of what was compared.

  Args:
    mmaudio: a clone of MMAudio; "" for none.
    dino_clone: of DINO; "" for none.

  Raises:
    ValueError: a library or a clone is missing.
  """
  cases, roots = CASES, []
  if mmaudio:
    roots.append(clone(mmaudio, "mmaudio", *_MMAUDIO))
    cases += MMAUDIO_CASES
  if dino_clone:
    roots.append(clone(dino_clone, "dino", *_DINO))
    cases += DINO_CASES
  libs = libraries()
  sys.path[:0] = map(str, roots)
  found: list[Comparison] = []
  for case in cases:
    with tempfile.TemporaryDirectory() as folder, libs["torch"].no_grad():
      for result in case(libs, pathlib.Path(folder)):
        print(row(result), flush=True)
        found.append(result)
  versions = {name: lib.__version__ for name, lib in libs.items()}
  return found, versions | {"jax": jax.__version__, "numpy": np.__version__}


def row(result: Comparison) -> str:
  """A line of the table."""
  return f"| {result.name} | {result.absolute:.1e} | {result.relative:.1e} |"


def write(
  out: pathlib.Path, found: list[Comparison], versions: Mapping[str, str]
) -> None:
  """Write parity.json and parity.md."""
  out.mkdir(parents=True, exist_ok=True)
  cases = [
    {"name": c.name, "max_abs": c.absolute, "max_rel": c.relative}
    for c in found
  ]
  machine = platform.machine()
  content = {"cases": cases, "versions": dict(versions), "machine": machine}
  (out / "parity.json").write_text(json.dumps(content, indent=1) + "\n")
  listed = ", ".join(f"{name} {version}" for name, version in versions.items())
  lines = [
    "# Parity with independent implementations",
    "",
    "Random weights at small sizes (DINO: at its own), written by the other",
    "implementation, converted by ovi_jax; float32 on a CPU. Largest absolute",
    "difference, and the same over the reference's largest magnitude.",
    "",
    "| implementation | max abs error | max rel error |",
    "|---|---|---|",
    *(row(c) for c in found),
    "",
    f"Versions: {listed}; {machine}.",
    "",
    "Command: `python -m benchmarks.parity --mmaudio=DIR --dino=DIR`",
    "",
  ]
  (out / "parity.md").write_text("\n".join(lines))


def main() -> None:
  jax.config.update("jax_default_matmul_precision", "highest")
  found, versions = compare(FLAGS.mmaudio, FLAGS.dino)
  write(pathlib.Path(FLAGS.out), found, versions)
  if bad := [c.name for c in found if not c.relative <= LIMIT]:
    cli.exit_with_error(f"relative error above {LIMIT:g}: {', '.join(bad)}")


if __name__ == "__main__":
  results = pathlib.Path(__file__).with_name("results")
  flags.DEFINE_string("mmaudio", "", "A clone of hkchengrex/MMAudio.")
  flags.DEFINE_string("dino", "", "A clone of facebookresearch/dino.")
  flags.DEFINE_string("out", str(results), "Folder for parity.json and .md.")
  cli.run(main)
