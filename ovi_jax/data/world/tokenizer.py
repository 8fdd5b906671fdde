"""A tokenizer of the T5 family for captions of few words.

Every word and every mark is a token, capitals do not matter, tags are tokens of
their own. Words that no caption has are left out, as if the prompt did not
have them: the denoiser knows what the rest means, and a token that it never
saw would only confuse it. `<unk>` therefore never comes out of a prompt;
training uses it to hide words.

  python -m ovi_jax.data.world.tokenizer --out=FILE [--seed=0 --clips=1000]
"""

import os
import pathlib
import re
import sys
from collections.abc import Iterable

import tokenizers
from absl import app
from absl import flags
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from ovi_jax import prompt as prompts
from ovi_jax import runtime
from ovi_jax.data.world import world as worlds

FLAGS = flags.FLAGS

UNKNOWN = "<unk>"
TAGS = (*prompts.CLOSING, *prompts.CLOSING.values())
# The first ids, in T5's order.
SPECIAL = (prompts.PAD, prompts.EOS, UNKNOWN, *TAGS)
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_PART = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def make(captions: Iterable[str]) -> tokenizers.Tokenizer:
  """The tokenizer of all words of some captions.

  Args:
    captions: as they are read; their order does not matter.

  Raises:
    ValueError: there is not a word in them.
  """
  words = {
    part
    for caption in captions
    for part in _PART.findall(_TAG.sub(" ", caption).lower())
  }
  if not words:
    raise ValueError("tokenizer: expected captions with words, got none")
  vocabulary = {token: n for n, token in enumerate((*SPECIAL, *sorted(words)))}
  made = tokenizers.Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
  made.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in TAGS])
  made.add_special_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in SPECIAL[:3]]
  )
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Split(
    tokenizers.Regex(_known(words)), behavior="removed", invert=True
  )
  eos = prompts.EOS
  made.post_processor = processors.TemplateProcessing(
    single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
  )
  return made


def write(path: str | os.PathLike[str], captions: Iterable[str]) -> None:
  """Write the `tokenizer.json` of captions; the same bytes for the same."""
  text = make(captions).to_str(pretty=True)
  pathlib.Path(path).write_text(text + "\n", encoding="utf-8")


def _known(words: set[str]) -> str:
  """A pattern for the words, whole, and the marks."""
  longest_first = sorted(words, key=lambda word: (-len(word), word))
  whole = [re.escape(w) for w in longest_first if re.match(r"\w", w)]
  marks = [re.escape(w) for w in longest_first if not re.match(r"\w", w)]
  pattern = rf"(?<![\w'])(?:{'|'.join(whole)})(?!'?\w)"
  return "|".join([pattern] * bool(whole) + marks)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  captions: list[str] = []
  try:
    for what in (worlds.CLIPS, worlds.SOUNDS):
      world = worlds.World(seed=FLAGS.seed, what=what, pairs=worlds.ALL)
      for number in range(FLAGS.clips):
        captions += world.clip(number, slice(1), sound=False).captions
    write(FLAGS.out, captions)
  except (OSError, ValueError) as error:
    sys.exit(f"tokenizer: {error}")
  size = make(captions).get_vocab_size()
  print(f"wrote {FLAGS.out}: {size} tokens")


if __name__ == "__main__":
  flags.DEFINE_string("out", "tokenizer.json", "File to write.")
  flags.DEFINE_integer("seed", 0, "Of the world.")
  flags.DEFINE_integer("clips", 1000, "Clips, and sounds, that are read.")
  app.run(main, flags_parser=runtime.parse_flags)
