"""Simulated raters that judge whole sessions, to rehearse a study."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study.statistics import davidson

# Of an item, a question and a source of randomness, one of `database.CHOICES`.
Choose = Callable[[database.Assignment, str, np.random.Generator], str]
_CHOICES = (database.LEFT, database.RIGHT, database.EQUAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rater:
  """Votes of Davidson's model by the strength of each clip.

  Gold items are answered correctly.

  Attributes:
    study: that is judged.
    strength: log strength of a clip by question, system and prompt.
    nu: tendency to ties.
    bias: toward the left.
  """

  study: manifest.Study
  strength: Mapping[tuple[str, str, int], float]
  nu: float = 0.4
  bias: float = 0.0

  def __call__(
    self,
    item: database.Assignment,
    question: str,
    random: np.random.Generator,
  ) -> str:
    study = self.study
    if item.kind == assignment.GOLD:
      kinds = {q.id: q.gold for q in study.settings.questions}
      if kinds[question] != study.gold[item.number].kind:
        return database.EQUAL
      return database.RIGHT if item.flipped else database.LEFT
    pair = study.items[item.number]
    first, second = (
      self.strength[question, system, pair.prompt]
      for system in (pair.first, pair.second)
    )
    ahead = second - first if item.flipped else first - second
    chances = davidson.probabilities(ahead + self.bias, math.log(self.nu))
    return _CHOICES[random.choice(3, p=chances)]


def judge(
  store: database.Database,
  study: manifest.Study,
  choose: Choose,
  random: np.random.Generator,
) -> str:
  """Judge a whole session as a new rater.

  Args:
    store: of the study; the votes are not marked as simulated.
    study: that is judged.
    choose: answers a question.
    random: source of randomness.

  Returns:
    The rater's name.
  """
  rater = store.authenticate(store.join())
  assert rater is not None
  store.start(rater, study.settings.headphone_trials)
  while items := store.session(rater).open:
    choices = {
      question.id: choose(items[0], question.id, random)
      for question in study.settings.questions
    }
    seconds = float(random.uniform(10, 40))
    answer = database.Answer(choices=choices, seconds=seconds, plays=(1, 1))
    store.answer(rater, items[0].id, answer)
  return rater
