"""What a run shows of itself on records that are held out."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.models import fusion
from ovi_jax.pretrained import component_loader
from ovi_jax.sharding import distributed
from ovi_jax.training import batch_encoder
from ovi_jax.training import logs
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.evaluators import eval_loss
from ovi_jax.training.evaluators import eval_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluators:
  """Held-out records, opened, if the cadence asks for anything of them.

  Attributes:
    settings: of the run.
    mesh: the devices.
    records: `None` if nothing is asked.
  """

  settings: settings_lib.Settings
  mesh: jax.sharding.Mesh
  records: loader.EvalRecords | None

  @classmethod
  def opened(
    cls, settings: settings_lib.Settings, mesh: jax.sharding.Mesh
  ) -> "Evaluators":
    """Open what will be needed, and check that it can be used.

    Raises:
      ValueError: no source has the split, or it does not fit.
    """
    cadence, records = settings.intervals, None
    if cadence.eval_every or cadence.sample_every:
      records = loader.open_eval(settings.data, settings.eval.split)
    made = cls(settings=settings, mesh=mesh, records=records)
    if cadence.eval_every:
      state_sharding.check_batch(made.batch, 1, mesh)
    if cadence.sample_every and records is not None:
      count = sum(map(len, records.splits))
      if settings.eval_samples.num_samples > count:
        raise ValueError(
          f"eval_samples: expected {settings.eval_samples.num_samples}"
          f" held-out records for their prompts, got {count}; lower"
          " eval_samples.num_samples or hold more out"
        )
    return made

  @property
  def batch(self) -> int:
    """Rows of a batch of held-out records."""
    settings = self.settings
    return (
      settings.eval.batch_size
      or settings.batch_size // settings.grad_accum_steps
    )

  def loss_evaluator(
    self,
    model: fusion.FusionDiT,
    ready: batch_encoder.BatchEncoder,
    null_SE: np.ndarray,
  ) -> Callable[[step.TrainState], dict[str, float]]:
    """The held-out loss, as a function of the state."""
    records = self.records
    if records is None:
      return lambda _: {}

    def batches() -> Iterator[schema.Batch]:
      each = records.batches(self.batch, *distributed.data_shard(self.mesh))
      return (ready(batch, self.mesh) for batch in each)

    return eval_loss.HeldOutLoss(
      model=model,
      mesh=self.mesh,
      batches=batches,
      null_SE=null_SE,
      num_timestep_bins=self.settings.eval.num_timestep_bins,
      seed=self.settings.seed,
    )

  def sample_evaluator(
    self,
    model: fusion.FusionDiT,
    ready: batch_encoder.BatchEncoder,
    null_SE: np.ndarray,
    components: component_loader.Components | None,
    directory: pathlib.Path,
    written: logs.Writer,
  ) -> Callable[[step.TrainState], Any]:
    """Clips of the first held-out records' prompts, made of a state."""
    settings, records = self.settings, self.records
    if (
      records is None
      or components is None
      or not settings.intervals.sample_every
    ):
      return lambda _: None
    count = settings.eval_samples.num_samples
    first = itertools.islice(records.records(), count)
    embed = functools.partial(_with_text, ready)
    return eval_samples.SampleEvaluator(
      model=model,
      mesh=self.mesh,
      components=components,
      directory=directory,
      prompts=eval_samples.prompts(map(embed, first), count),
      null_SE=null_SE,
      size=settings.data.buckets[0],
      settings=settings.eval_samples,
      logs=written,
    )


def _with_text(
  ready: batch_encoder.BatchEncoder, record: schema.Record
) -> schema.Record:
  """The record with an embedding of its first caption."""
  if ready.text is None:
    return record
  caption = record.captions[0]
  text_SE = ready.text.texts([caption])[caption]
  return dataclasses.replace(record, captions=(caption,), text=(text_SE,))
