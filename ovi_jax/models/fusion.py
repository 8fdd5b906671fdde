"""Two towers that attend to each other in every block, or one alone.

`FusionDiT` predicts the velocity (noise - data) of every modality that is
given. With both towers, each block's cross-attention also reads the other
tower's tokens after their self-attention (paper, section 3.1; Ovi,
modules/fusion.py). With one, the model is Ovi-Aud or Wan2.2-TI2V-5B, and its
parameter tree is a subtree of the full model's.

Blocks are scanned: their parameters are stacked on a leading axis G. Precision:
see `dit`; the velocity is float32.
"""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.attention import context as contexts
from ovi_jax.modality import AV
from ovi_jax.models import block
from ovi_jax.models import block_params
from ovi_jax.models import dit
from ovi_jax.models import reference as reference_lib
from ovi_jax.models import remat as remats
from ovi_jax.models import rope
from ovi_jax.sharding import logical_axes

# Initial variance of the fusion key and value kernels of the video tower. It is
# small, so that the pretrained video tower is little perturbed at the start of
# the fusion stage.
FUSION_INIT = nn.initializers.variance_scaling(1e-2, "fan_avg", "uniform")

# On a CPU, models with at most so many blocks of at most so many channels are
# unrolled. For wider blocks, copying the stacked weights costs more than the
# loop.
MAX_UNROLLED_LAYERS, MAX_UNROLLED_DIM = 8, 256


def should_unroll(config: AV[dit.DiTConfig], platform: str) -> bool:
  """Whether blocks should be unrolled: few and narrow ones, on a CPU."""
  towers = config.present().values()
  few = max(tower.num_layers for tower in towers) <= MAX_UNROLLED_LAYERS
  narrow = max(tower.hidden_dim for tower in towers) <= MAX_UNROLLED_DIM
  return platform == "cpu" and few and narrow


# No lengths: all latents are valid. No masks: all latents are generated. No
# references.
_ALL: AV[Any] = AV()
TEXT_KEYS = f"G{block.REPLICATED_LETTERS}"  # logical axes of cached text keys


class StepConstants(NamedTuple):
  """Tensors that are computed once per prompt, not in each denoising step.

  Attributes:
    text: keys and values of the prompts in all blocks, [G, B, S, N, K].
    rotary: rotary tables of the tokens.
  """

  text: AV[block.KV]
  rotary: AV[rope.Rotary]


class AttentionMapSpec(NamedTuple):
  """Reduction of the cross-attention maps between the towers, in float32.

  Full maps, [blocks, heads, L, S] for each tower, would need gigabytes. Kept
  are a weighted sum over heads and, per head, the attention mass inside
  `alignment_mask`.

  Attributes:
    heads: weights [G, N] of the heads of every block in the sum.
    alignment_mask: [L, S] for video and [S, L] for audio: 1 where the attention
      mass is summed, else 0.
  """

  heads: AV[jax.Array]
  alignment_mask: AV[jax.Array]

  def reduce(
    self, name: str, map_BNLS: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Reduce the map of a tower in one block.

    `heads` is that of the block; the map may include padding tokens and
    those of a reference, which are left out.

    Returns:
      The weighted sum over heads [B, L, S], and the attention mass inside
      `alignment_mask` of each head [B, N].
    """
    alignment_LS = getattr(self.alignment_mask, name)
    rows, columns = alignment_LS.shape
    map_BNLS = map_BNLS[:, :, :rows, :columns]
    mean_BLS = jnp.einsum("BNLS,N->BLS", map_BNLS, getattr(self.heads, name))
    return mean_BLS, jnp.einsum("BNLS,LS->BNL", map_BNLS, alignment_LS).mean(-1)


class FusionBlock(nn.Module):
  """One block of every tower that is present."""

  config: AV[dit.DiTConfig]
  dtype: jnp.dtype
  backend: str
  mlp_chunk_size: int | None
  context_parallelism: str

  def setup(self):
    shared = {
      "dtype": self.dtype,
      "backend": self.backend,
      "fusion": len(self.config.present()) == 2,
      "mlp_chunk_size": self.mlp_chunk_size,
      "context_parallelism": self.context_parallelism,
    }
    if self.config.video is not None:
      self.video = block.Block(
        self.config.video, fusion_init=FUSION_INIT, **shared
      )
    if self.config.audio is not None:
      self.audio = block.Block(self.config.audio, **shared)

  def block_of(self, name: str) -> block.Block:
    return getattr(self, name)

  def text_kv(self, context: AV[Any]) -> AV[block.KV]:
    """Keys and values of the prompts for this block."""
    return context.map(lambda name, x: self.block_of(name).text_kv(x))

  def __call__(
    self,
    tokens: AV[jax.Array],
    times: AV[dit.TimeEmbeddings],
    text: AV[jax.Array] | AV[block.KV],
    rotary: AV[rope.Rotary],
    counts: AV[jax.Array | int],
    map_spec: AttentionMapSpec | None = None,
  ) -> tuple[AV[jax.Array], AV[Any]]:
    """Apply one block of every tower.

    Args:
      tokens: tokens_BLD.
      times: of each tower.
      text: context_BSD, or its keys and values from `text_kv`.
      rotary: rotary tables.
      counts: number of valid tokens of each tower, `None` for all.
      map_spec: reduction of the attention maps between the towers; `None`
        computes no maps.

    Returns:
      tokens_BLD, and the reduced maps of each tower.
    """
    if not any(isinstance(x, block.KV) for x in text):
      text = self.text_kv(text)
    modulations = times.map(lambda name, x: self.block_of(name).modulations(x))
    attended = tokens.map(
      lambda name, x: self.block_of(name).attend_self(
        x,
        getattr(modulations, name)[0],
        getattr(rotary, name),
        getattr(counts, name),
      )
    )
    out, maps = {}, {}
    for name, x in attended.present().items():
      x, probs = self.block_of(name).cross_attend(
        x,
        getattr(text, name),
        getattr(rotary, name),
        attended.other(name),
        rotary.other(name),
        counts.other(name),
        map_spec is not None,
      )
      if map_spec is not None and probs is not None:
        maps[name] = map_spec.reduce(name, probs)
      out[name] = self.block_of(name).mlp(x, getattr(modulations, name)[1])
    return AV(**out), AV(**maps)


class FusionDiT(nn.Module):
  """The DiT: noisy latents, timesteps and prompts -> velocities.

  Attributes:
    config: sizes of each tower; `None` for an absent tower.
    dtype: compute dtype.
    backend: attention backend, see `attention.BACKENDS`.
    mlp_chunk_size: feed-forwards hold at most this many hidden activations at a
      time, in a forward pass; `None` for no limit.
    remat: what the backward pass recomputes, see `remat`; not "auto".
    unroll: unroll the scan over blocks; on a CPU, XLA then computes faster and
      compiles longer.
    context_parallelism: context parallelism strategy, a key of
      `context.STRATEGIES`.
  """

  config: AV[dit.DiTConfig]
  dtype: jnp.dtype = jnp.float32
  backend: str = "xla"
  mlp_chunk_size: int | None = None
  remat: str = remats.NONE
  unroll: bool = False
  context_parallelism: str = contexts.ULYSSES

  def setup(self):
    towers = self.config.present()
    depths = {config.num_layers for config in towers.values()}
    if len(depths) != 1:
      raise ValueError(f"towers must have equally many blocks, got {depths}")
    self.depth = depths.pop()
    if self.config.video is not None:
      self.video = dit.Tower(self.config.video, self.dtype)
    if self.config.audio is not None:
      self.audio = dit.Tower(self.config.audio, self.dtype)
    self.blocks = FusionBlock(
      self.config,
      self.dtype,
      self.backend,
      self.mlp_chunk_size,
      self.context_parallelism,
    )

  def _scan_blocks(self, function: Any, carry: Any, *per_block: Any) -> Any:
    """Scan `function(blocks, carry, *per_block)` over blocks, as `lax.scan`.

    LoRA factors are merged, and 8-bit kernels dequantized, inside the scan, one
    block at a time.
    """

    def merged(blocks: FusionBlock, *args: Any) -> Any:
      params = blocks.variables.get("params")
      return block_params.lift(function, params, self.dtype)(blocks, *args)

    scan = nn.scan(
      remats.apply(merged, self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.depth,
      unroll=self.depth if self.unroll else 1,
      check_constancy_invariants=False,
    )
    return scan(self.blocks, carry, *per_block)

  def tower(self, name: str) -> dit.Tower:
    return getattr(self, name)

  def rotary(
    self, latents: AV[Any], references: AV[Any] = _ALL
  ) -> AV[rope.Rotary]:
    """Rotary tables of all tokens.

    Args:
      latents: arrays, or anything with their shapes.
      references: likewise, see `__call__`.

    Returns:
      A table for each modality, padded like the tokens.
    """
    tables = {}
    for name, x in latents.present().items():
      config = getattr(self.config, name)
      found = getattr(references, name)
      table = rope.table(
        config.grid(x.shape),
        config.head_dim,
        config.rope_scale,
        0 if found is None else found.latents_BRC.shape[1],
      )
      tokens = table.cos_LK.shape[0]
      missing = 0 if config.is_audio else logical_axes.fill(tokens) - tokens
      fill = (0, missing), (0, 0)
      tables[name] = jax.tree.map(lambda a, fill=fill: jnp.pad(a, fill), table)
    return AV(**tables)

  def context(self, text: AV[jax.Array]) -> AV[jax.Array]:
    """Embed prompts for each tower.

    Args:
      text: prompt embeddings_BSE of each tower.

    Returns:
      context_BSD of each tower, see `dit.Tower.text`.
    """
    return text.map(lambda name, x: self.tower(name).text(x))

  def step_constants(
    self,
    latents: AV[Any],
    text: AV[jax.Array],
    references: AV[Any] = _ALL,
  ) -> StepConstants:
    """Compute the tensors that all denoising steps of a prompt share.

    Args:
      latents: arrays, or anything with their shapes.
      text: prompt embeddings_BSE of each tower, zero beyond the prompt's end.
      references: likewise, see `__call__`.

    Returns:
      Keys and values of the prompts in every block, and rotary tables.
    """
    context = self.context(text)

    _, text_kv = self._scan_blocks(
      lambda blocks, _: (None, blocks.text_kv(context)), None
    )
    text_kv = jax.tree.map(
      lambda x: logical_axes.constrain(x, TEXT_KEYS), text_kv
    )
    return StepConstants(text_kv, self.rotary(latents, references))

  def __call__(
    self,
    latents: AV[jax.Array],
    t_BT: AV[jax.Array],
    text: AV[jax.Array] | StepConstants,
    block_mask_GB: jax.Array | None = None,
    lengths: AV[jax.Array] | None = None,
    given_BT: AV[jax.Array | None] = _ALL,
    references: AV[reference_lib.Reference | None] = _ALL,
  ) -> AV[jax.Array]:
    """Predict velocities.

    Args:
      latents: video [B, T, H, W, C] and audio [B, T, C], or `None` for either.
      t_BT: timesteps in [0, 1000] (1000 = noise), shape [B, 1], of the latents
        to denoise of each modality.
      text: prompt embeddings_BSE of each tower, or their
        `step_constants`.
      block_mask_GB: `False` where a block is skipped for an element of the
        batch (skip-layer guidance); `None` skips none.
      lengths: number of valid latent frames or audio steps per example,
        integers_B; 0 = modality absent. Padding is masked in attention. `None`:
        all are valid.
      given_BT: masks of conditioning latents in time, which are clean and have
        timestep 0; `None` for a modality without any.
      references: latents that are appended to those of a modality; only audio
        may have some.

    Returns:
      Velocity (noise - data) in the shape of `latents`, float32. Outputs at
      conditioning latents are undefined.
    """
    tokens, times, _ = self._run_blocks(
      latents, t_BT, text, block_mask_GB, lengths, given_BT, references
    )

    def velocity(name: str, tokens_BLD: jax.Array) -> jax.Array:
      grid, found = self._grid(name, latents), getattr(references, name)
      count = grid[0]
      if found is not None:
        grid = (count + found.latents_BRC.shape[1], *grid[1:])
      x = self.tower(name).velocity(tokens_BLD, getattr(times, name), grid)
      return x if found is None else x[:, :count]

    return tokens.map(velocity)

  def attention_maps(
    self,
    latents: AV[jax.Array],
    t_BT: AV[jax.Array],
    text: AV[jax.Array] | StepConstants,
    map_spec: AttentionMapSpec,
    given_BT: AV[jax.Array | None] = _ALL,
    references: AV[reference_lib.Reference | None] = _ALL,
  ) -> tuple[AV[jax.Array], AV[jax.Array]]:
    """Compute reduced cross-attention maps between the towers.

    Args:
      latents: as for a call, of both modalities.
      t_BT: as for a call.
      text: as for a call.
      map_spec: the reduction.
      given_BT: as for a call.
      references: as for a call; the maps leave them out.

    Returns:
      Video [B, L, S] and audio [B, S, L]: the attention of the tokens of each
      tower over those of the other, summed over blocks and heads with weights;
      and for each head [G, B, N] the attention mass inside `alignment_mask`,
      all float32.
    """
    _, _, found = self._run_blocks(
      latents,
      t_BT,
      text,
      given_BT=given_BT,
      references=references,
      map_spec=map_spec,
    )
    maps, shares = (AV(*pair) for pair in zip(*found))
    return jax.tree.map(lambda map_GBLS: map_GBLS.sum(0), maps), shares

  def _grid(self, name: str, latents: AV[Any]) -> tuple[int, ...]:
    return getattr(self.config, name).grid(getattr(latents, name).shape)

  def _run_blocks(
    self,
    latents: AV[jax.Array],
    t_BT: AV[jax.Array],
    text: AV[jax.Array] | StepConstants,
    block_mask_GB: jax.Array | None = None,
    lengths: AV[jax.Array] | None = None,
    given_BT: AV[jax.Array | None] = _ALL,
    references: AV[reference_lib.Reference | None] = _ALL,
    map_spec: AttentionMapSpec | None = None,
  ) -> tuple[AV[jax.Array], AV[dit.TimeEmbeddings], Any]:
    """Run all blocks; returns tokens, time embeddings and reduced maps."""
    lengths = _ALL if lengths is None else lengths
    cached = isinstance(text, StepConstants)
    rotary = text.rotary if cached else self.rotary(latents, references)
    whole = latents.map(
      lambda name, x: reference_lib.append(
        x, *(getattr(each, name) for each in (references, lengths, given_BT))
      )
    )
    rotary = rotary.map(lambda name, x: getattr(whole, name).rotary(x))
    tokens, counts, times = {}, {}, {}
    for name, (x, length_B, shown_BT, _) in whole.present().items():
      grid = getattr(self.config, name).grid(x.shape)
      times[name] = self.tower(name).times(getattr(t_BT, name), grid, shown_BT)
      tokens[name] = self.tower(name).tokens(x, length_B)
      if length_B is not None:
        counts[name] = length_B * math.prod(grid[1:])
      elif tokens[name].shape[1] > math.prod(grid):
        counts[name] = math.prod(grid)
    counts, times = AV(**counts), AV(**times)
    context = None if cached else self.context(text)

    def one(blocks, x, text_kv, block_mask_B, heads_N):
      prompt = context if text_kv is None else text_kv
      query = None if map_spec is None else map_spec._replace(heads=heads_N)
      y, maps = blocks(x, times, prompt, rotary, counts, query)
      if block_mask_B is not None:
        keep = block_mask_B[:, None, None]
        y = jax.tree.map(lambda new, old: jnp.where(keep, new, old), y, x)
      return y, maps

    text_kv = text.text if cached else None
    heads = None if map_spec is None else map_spec.heads
    tokens, found = self._scan_blocks(
      one, AV(**tokens), text_kv, block_mask_GB, heads
    )
    return tokens, times, found
