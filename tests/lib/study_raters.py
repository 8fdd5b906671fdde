"""Simulated raters that judge through a study's database."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study.statistics import davidson

CHOICES = (database.LEFT, database.RIGHT, database.EQUAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Votes by strengths; corrupted clips lose.

  Attributes:
    theta: log strength of each system.
    nu: tendency to ties.
  """

  theta: Mapping[str, float]
  nu: float = 0.4

  def __call__(
    self,
    study: manifest.Study,
    item: database.Assignment,
    question: str,
    random: np.random.Generator,
  ) -> str:
    golds = {q.id: q.gold for q in study.settings.questions}
    if item.kind == assignment.GOLD:
      if golds[question] != study.gold[item.number].kind:
        return database.EQUAL
      return database.RIGHT if item.flipped else database.LEFT
    pair = study.items[item.number]
    left, right = pair.first, pair.second
    if item.flipped:
      left, right = right, left
    difference = self.theta[left] - self.theta[right]
    chances = davidson.probabilities(difference, math.log(self.nu))
    return CHOICES[random.choice(3, p=chances)]


def always(choice: str) -> Callable[..., str]:
  """A rater who gives one answer to everything."""
  return lambda *_: choice


def judge(
  store: database.Database,
  study: manifest.Study,
  choose: Callable[..., str],
  random: np.random.Generator,
  headphones: int | None = 6,
) -> str:
  """Judge a whole session as a new rater; returns the rater's name."""
  rater = store.authenticate(store.join())
  assert rater is not None
  store.start(rater, headphones)
  while items := store.session(rater).open:
    item = items[0]
    choices = {
      question.id: choose(study, item, question.id, random)
      for question in study.settings.questions
    }
    seconds = float(random.uniform(10, 40))
    answer = database.Answer(choices=choices, seconds=seconds, plays=(1, 1))
    store.answer(rater, item.id, answer)
  return rater
