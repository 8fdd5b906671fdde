"""A tokenizer of the T5 family for the captions of one world or dataset.

Every word, punctuation mark and tag is a token; case is ignored. Words that are
in no caption are dropped from prompts, since the model was not trained on their
token. `<unk>` is therefore never in an encoded prompt; training of the text
encoder uses it as the mask token.

  python -m ovi_jax.data.tokenizer --data=DATASET,… --out=FILE [--min_count=1]
  python -m ovi_jax.data.tokenizer --out=FILE [--seed=0 --clips=1000]

Without --data the captions are those of the synthetic world. A text encoder has
to be trained with the tokenizer (`configs/codec_text.py`), and towers with it.
"""

import collections
import os
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import tokenizers
from absl import flags
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from ovi_jax import cli
from ovi_jax import files
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import builder
from ovi_jax.synthetic.world import world as worlds

FLAGS = flags.FLAGS

UNKNOWN = "<unk>"
TAGS = (*prompts.CLOSING, *prompts.CLOSING.values())
# The first ids, in T5's order.
SPECIAL = (tokenizer_lib.PAD, tokenizer_lib.EOS, UNKNOWN, *TAGS)
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_PART = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def make(captions: Iterable[str], min_count: int = 1) -> tokenizers.Tokenizer:
  """The tokenizer of the words of some captions.

  Args:
    captions: as they are read; their order does not matter.
    min_count: rarer words are left out.

  Returns:
    The tokenizer, with a token for each word, mark and tag.

  Raises:
    ValueError: there is not a word in them.
  """
  counts = collections.Counter(
    part
    for caption in captions
    for part in _PART.findall(_TAG.sub(" ", prompts.clean(caption)).lower())
  )
  words = {word for word, count in counts.items() if count >= min_count}
  if not words:
    raise ValueError(
      "expected captions with words"
      f"{f' that come {min_count} times' if min_count > 1 else ''}, got none"
    )
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
  eos = tokenizer_lib.EOS
  made.post_processor = processors.TemplateProcessing(
    single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
  )
  return made


def write(
  path: str | os.PathLike[str], captions: Iterable[str], min_count: int = 1
) -> int:
  """Write the `tokenizer.json` of captions; the same bytes for the same.

  Returns:
    The size of the vocabulary.
  """
  made, path = make(captions, min_count), storage.locate(path)
  with files.atomic_path(path) as temporary:
    temporary.write_text(made.to_str(pretty=True) + "\n", encoding="utf-8")
  return made.get_vocab_size()


def captions_of(paths: Sequence[str]) -> Iterator[str]:
  """All captions of datasets, of every split."""
  for path in paths:
    for name in builder.splits(path):
      split = builder.read(path, name)
      for number in range(len(split)):
        yield from split[number].captions


def _of_world(seed: int, count: int) -> Iterator[str]:
  """Captions of the synthetic world."""
  for what in (worlds.CLIPS, worlds.SOUNDS):
    world = worlds.World(seed=seed, what=what, pairs=worlds.ALL)
    for number in range(count):
      yield from world.clip(number, slice(1), sound=False).captions


def _known(words: set[str]) -> str:
  """A pattern for the words, whole, and the marks."""
  longest_first = sorted(words, key=lambda word: (-len(word), word))
  whole = [re.escape(w) for w in longest_first if re.match(r"\w", w)]
  marks = [re.escape(w) for w in longest_first if not re.match(r"\w", w)]
  pattern = rf"(?<![\w'])(?:{'|'.join(whole)})(?!'?\w)"
  return "|".join([pattern] * bool(whole) + marks)


def main() -> None:
  captions = (
    captions_of(FLAGS.data)
    if FLAGS.data
    else _of_world(FLAGS.seed, FLAGS.clips)
  )
  size = write(FLAGS.out, captions, FLAGS.min_count)
  print(f"wrote {FLAGS.out}: {size} tokens; next:")
  # Rows in multiples of 64 divide over devices.
  rows = -(-size // 64) * 64
  sources = (
    f'--config.data.sources="{tuple(FLAGS.data)}" ' if FLAGS.data else ""
  )
  print(
    f"  {cli.invocation('ovi-train')} --config=codec_text:mini --workdir=RUN"
    f" {sources}--config.data.tokenizer={FLAGS.out}"
    f" --config.model.vocab_size={rows}"
  )


if __name__ == "__main__":
  flags.DEFINE_list("data", [], "Datasets whose captions are read.")
  flags.DEFINE_integer("min_count", 1, "Words that are rarer are left out.")
  flags.DEFINE_string("out", "tokenizer.json", "File to write.")
  flags.DEFINE_integer("seed", 0, "Of the world.")
  flags.DEFINE_integer("clips", 1000, "Clips, and sounds, that are read.")
  cli.run(main)
