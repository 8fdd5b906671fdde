"""The curation command over all passes, and a batch of its records."""

import pathlib
import subprocess
import sys

from ovi_jax.convert import standin
from ovi_jax.data import loader
from ovi_jax.data import settings as settings_lib

ROOT = pathlib.Path(__file__).resolve().parents[3]


def command(folder, out, url, kind="mini", **fields):
  """Words of the command; fields with `__` are those of stages."""
  given = {
    "captions__url": url,
    "captions__model": "m",
    "captions__cache_dir": str(out / "answers"),
    "captions__max_attempts": 2,
    "captions__backoff_base": 0.01,
    "pack__eval_fraction": 0.0,
    "report": False,
    "num_workers": 1,
    **fields,
  }
  flags = [
    f"--config.{'stages.' * ('__' in n)}{n.replace('__', '.')}={value}"
    for n, value in given.items()
  ]
  return [
    sys.executable,
    "-m",
    "ovi_jax.curation",
    f"--config=configs/curate.py:{kind}",
    f"--config.inputs=('{folder}',)",
    f"--config.out={out}",
    *flags,
  ]


def run(*args, **fields):
  """Run it."""
  return subprocess.run(
    command(*args, **fields), cwd=ROOT, capture_output=True, text=True
  )


def records(out):
  (folder,) = out.glob("pack-*/records")
  return folder


def batch(path, rows, columns, size, **fields):
  """The first batch that training reads of records of 121 such frames."""
  bucket = settings_lib.Bucket(video=(31, rows // 16, columns // 16), audio=157)
  return next(
    loader.load(
      settings_lib.LoaderConfig(
        sources=(settings_lib.Source(path=str(path)),),
        buckets=(bucket,),
        encode_on_the_fly=True,
        tokenizer=str(standin.HERE / "tokenizer.json"),
        **fields,
      ),
      batch=size,
      seed=0,
    )
  )
