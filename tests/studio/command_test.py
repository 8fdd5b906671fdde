"""The command with the small Ovi: one clip, seen by `sample.py` as its own."""

import contextlib
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from configs import sample
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.sampling import generate
from ovi_jax.sampling import opening
from ovi_jax.sampling import requests
from tests.lib import child_env

PROMPT = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
COMMAND = [sys.executable, "-m", "ovi_jax.studio"]


@contextlib.contextmanager
def served(folder, **environment):
  """The address of a server that runs in the block, and what it printed."""
  with subprocess.Popen(
    [*COMMAND, "--out=clips", "--port=0"],
    cwd=folder,
    env=child_env.environment(PYTHONPATH=child_env.ROOT, **environment),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    printed = []
    try:
      for line in process.stdout:
        printed.append(line)
        if found := re.search(r"(http://\S+)/v1", line):
          yield found[1], printed
          break
      else:
        raise AssertionError("".join(printed))
    finally:
      process.send_signal(signal.SIGTERM)
      printed += process.stdout.readlines()
  assert process.returncode == 0, printed


@pytest.mark.slow
def test_a_clip_of_the_service_is_one_of_sample_py(tmp_path, log_lines):
  fields = {"prompt": PROMPT, "seed": "7", "num_steps": "2"}
  with (
    served(tmp_path, OVI_STUDIO_API_KEY="secret") as (address, printed),
    httpx.Client(base_url=address, timeout=300) as client,
  ):
    assert client.post("/v1/videos", data=fields).status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    asked = client.post("/v1/videos", json=fields)
    at = f"/v1/videos/{asked.json()['id']}"
    while (found := client.get(at).json())["status"] != "completed":
      assert found["status"] in ("queued", "in_progress"), found
      time.sleep(0.1)
    content = client.get(f"{at}/content").content
  assert not [line for line in printed if "Traceback" in line]
  path = tmp_path / "clips" / found["file_name"]
  assert path.read_bytes() == content
  assert mp4.read(path)[0].shape == (121, 64, 64, 3)
  config = sample.get_config()
  config.seed, config.num_steps = 7, 2
  made = generate.run(
    requests=requests.from_prompt(PROMPT),
    settings=opening.resolve_settings(config, synthetic.WEIGHTS),
    weights=synthetic.WEIGHTS,
    out=tmp_path / "clips",
    save_latents=True,
  )
  assert made == [path]
  assert f"already made: {path}" in log_lines


@pytest.mark.slow
def test_what_cannot_be_served_is_said_in_one_line(tmp_path):
  done = subprocess.run(
    [*COMMAND, "--out=gs://bucket/clips"],
    cwd=tmp_path,
    env=child_env.environment(PYTHONPATH=child_env.ROOT),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("studio: gs://bucket/clips: expected a local")
  assert len(done.stderr.splitlines()) == 1
