"""Errors that name the clip they are about."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence

from ovi_jax.sampling import denoise
from ovi_jax.sampling import planning


@contextlib.contextmanager
def named(job: planning.Job) -> Iterator[None]:
  """Name the clip in an error."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or job.path.stem
    raise
  except denoise.NonFiniteLatentsError:
    raise  # `rows_named` names it
  except ValueError as error:
    raise ValueError(f"{job.path.stem}: {error}") from error


@contextlib.contextmanager
def rows_named(batch: Sequence[planning.Job]) -> Iterator[None]:
  """Name the clips of a batch whose latents are not finite."""
  try:
    yield
  except denoise.NonFiniteLatentsError as error:
    names = ", ".join(batch[row].path.stem for row in error.rows)
    loras = ", ".join(lora["path"] for lora in batch[0].recipe.get("loras", ()))
    cause = f"; or a LoRA is damaged or too strong: {loras}" if loras else ""
    raise denoise.NonFiniteLatentsError(
      f"{names}: {error}{cause}", error.rows
    ) from error
