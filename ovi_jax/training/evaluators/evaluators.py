"""The evaluators of a stage: held-out loss and sampled clips."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax

from ovi_jax import storage
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.pretrained import component_loader
from ovi_jax.sharding import distributed
from ovi_jax.training import batch_encoder
from ovi_jax.training import loop
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import state_sharding
from ovi_jax.training.evaluators import eval_loss
from ovi_jax.training.evaluators import eval_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluators:
  """What evaluators and encoders read, opened and checked.

  Attributes:
    settings: of the run.
    components: weights of codecs and text encoder; `None` if none are needed.
    records: held-out records; `None` if the intervals ask for no evaluation.
    batch_size: rows of a batch of held-out records.
  """

  settings: settings_lib.Settings
  components: component_loader.Components | None
  records: loader.EvalRecords | None
  batch_size: int

  @classmethod
  def open(
    cls, settings: settings_lib.Settings, mesh: jax.sharding.Mesh
  ) -> "Evaluators":
    """Open what the run will need, and check that it can be used.

    Raises:
      ValueError: weights are missing, damaged or do not fit the model, no
        source has the split, or it has too few records.
    """
    components = batch_encoder.open_pretrained(settings, mesh)
    intervals, records = settings.intervals, None
    if intervals.eval_every or intervals.sample_every:
      records = loader.open_eval(settings.data, settings.eval.split)
    batch_size = settings.eval.batch_size or settings.microbatch_size
    if intervals.eval_every:
      state_sharding.check_batch(batch_size, 1, mesh)
    if intervals.sample_every and records is not None:
      count = sum(map(len, records.splits))
      if settings.eval_samples.num_samples > count:
        raise ValueError(
          f"eval_samples: expected {settings.eval_samples.num_samples}"
          f" held-out records for their prompts, got {count}; lower"
          " eval_samples.num_samples or hold more out"
        )
    return cls(
      settings=settings,
      components=components,
      records=records,
      batch_size=batch_size,
    )

  def attach(
    self,
    context: loop.TrainContext,
    encoder: batch_encoder.BatchEncoder,
    damaged: loader.DamagedRecords,
  ) -> loop.TrainContext:
    """The context with the evaluators that the intervals ask for.

    Args:
      context: of the run, with the embedding of the empty prompt.
      encoder: of batches and captions.
      damaged: counts the damaged records of the run.
    """
    records, settings, mesh = self.records, self.settings, context.mesh
    if records is None:
      return context

    def batches() -> Iterator[schema.Batch]:
      shard = distributed.data_shard(mesh)
      each = records.batches(self.batch_size, *shard, damaged=damaged)
      for batch in each:
        words = state_sharding.id_words(batch, mesh)
        yield encoder(batch, mesh)._replace(ids=words)

    model = context.step_config.objective.model
    held_out_loss = eval_loss.HeldOutLoss(
      model=model,
      mesh=mesh,
      batches=batches,
      null_SE=context.null_SE,
      num_timestep_bins=settings.eval.num_timestep_bins,
      seed=settings.seed,
    )
    context = dataclasses.replace(context, evaluate=held_out_loss)
    if self.components is None or not settings.intervals.sample_every:
      return context
    count = settings.eval_samples.num_samples
    first = itertools.islice(records.records(), count)
    embed = functools.partial(_with_text, encoder)
    sampler = eval_samples.SampleEvaluator(
      model=model,
      mesh=mesh,
      components=self.components,
      directory=storage.locate(context.directory),
      prompts=eval_samples.prompts(map(embed, first), count),
      null_SE=context.null_SE,
      size=settings.data.buckets[0],
      settings=settings.eval_samples,
      logs=context.logs,
    )
    return dataclasses.replace(context, sample=sampler)


def _with_text(
  encoder: batch_encoder.BatchEncoder, record: schema.Record
) -> schema.Record:
  """The record with an embedding of its first caption."""
  if encoder.text is None:
    return record
  caption = record.captions[0]
  text_SE = encoder.text.texts([caption])[caption]
  return dataclasses.replace(record, captions=(caption,), text=(text_SE,))
