"""Captions of clips, against a server that may do anything."""

import base64
import errno
import io
import itertools
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
import wave

import numpy as np
import pytest

from ovi_jax import files
from ovi_jax import prompt
from ovi_jax.convert import standin
from ovi_jax.curation import answers
from ovi_jax.curation import caption_cache
from ovi_jax.curation import clip as clips
from ovi_jax.curation import endpoint
from ovi_jax.curation import stage
from ovi_jax.curation.stages import captions
from ovi_jax.data import clips as samples
from tests.curation import caption_server as captioner

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")

KEPT = [f"frame_{n}.jpg" for n in range(7)]


class Media:
  """Media of a clip, made of its number."""

  def __init__(self, number, heard=True):
    self.audio_A = np.full(1600, number / 1000, np.float32)
    if not heard:
      self.audio_A = self.audio_A[:0]
    self.bytes = {name: f"{name} {number}".encode() for name in KEPT}
    self.bytes["audio.pcm"] = samples.pcm(self.audio_A)

  def kept(self, name):
    return self.bytes[name]


def pair(number, seen=True, heard=True):
  """A clip and its media."""
  facts = {}
  if seen:
    facts["cut"] = {"kept": ["video.mp4", *KEPT, *["audio.pcm"] * heard]}
  made = clips.Clip(id=f"clip-{number}", path=f"{number}.mp4", facts=facts)
  return made, Media(number, heard)


def config(url, folder, **changes):
  return captions.Config(
    **{
      "url": url,
      "model": "m",
      "cache": str(folder),
      "first_wait": 0.001,
      "longest_wait": 0.01,
      **changes,
    }
  )


def captioned(url, folder, pairs, **changes):
  return captions.load(config(url, folder, **changes))(pairs)


def undisturbed(pairs, folder, **changes):
  """The outcomes of a server that is well."""
  with captioner.serving() as server:
    return captioned(server.url, folder, pairs, **changes)


def test_a_clip_is_asked_about_with_all_it_has(tmp_path):
  with captioner.serving() as server:
    (made,) = captioned(server.url, tmp_path, [pair(3)], extra={"top_k": 1})
  (body,) = server.bodies
  *frames, sound, task = body["messages"][0]["content"]
  urls = [part["image_url"]["url"] for part in frames]
  head = "data:image/jpeg;base64,"
  assert [base64.b64decode(url.removeprefix(head)) for url in urls] == [
    f"frame_{n}.jpg 3".encode() for n in range(7)
  ]
  assert sound["input_audio"]["format"] == "wav"
  file = io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))
  with wave.open(file) as wav:
    assert (wav.getframerate(), wav.getnchannels()) == (16_000, 1)
    assert wav.readframes(9999) == pair(3)[1].kept("audio.pcm")
  assert '"visual"' in task["text"] and '"speakers"' in task["text"]
  assert body["model"] == "m" and body["top_k"] == 1
  schema = body["response_format"]["json_schema"]
  assert schema["schema"] == answers.schema(True, True) and schema["strict"]
  found = made.facts["captions"]
  assert found["speech"][0] in found["visual"]
  assert found["prompts"] == [
    f"{found['visual']} <AUDCAP>{found['audio']}<ENDAUDCAP>"
  ]
  assert set(found["attributes"]["speakers"][0]) == set(answers.VOICE)
  assert found["tokens_in"] == len(task["text"]) // 4
  assert found["tokens_out"] > 0
  json.dumps(made.facts)


def test_sounds_and_silent_clips(tmp_path):
  pairs = [pair(1, seen=False), pair(2, heard=False), pair(3, False, False)]
  with captioner.serving() as server:
    sound, silent, none = captioned(server.url, tmp_path, pairs)
  kinds = [
    {part["type"] for part in body["messages"][0]["content"]}
    for body in server.bodies
  ]
  assert {"image_url"} not in kinds and len(kinds) == 2
  assert {"input_audio", "text"} in kinds and {"image_url", "text"} in kinds
  (asked,) = sound.facts["captions"]["prompts"]
  assert asked.startswith("<S>I am ") and asked.endswith("<ENDAUDCAP>")
  assert silent.facts["captions"]["audio"] == ""
  assert "<" not in silent.facts["captions"]["prompts"][0]
  assert none.reason == "nothing to caption" and not none.failed


def test_both_formats_of_tags(tmp_path):
  variants = ("720x720_5s", "960x960_5s", "960x960_10s")
  (made,) = undisturbed([pair(1)], tmp_path, variants=variants)
  tagged, lined = made.facts["captions"]["prompts"]
  assert tagged.endswith("<ENDAUDCAP>") and " Audio: A calm" in lined
  assert prompt.clean(lined) == lined and not prompt.tag_notes(tagged)


def test_outcomes_are_in_order_whatever_the_order_of_answers(tmp_path):
  choose = random.Random(0)
  pairs = [pair(n) for n in range(12)]
  with captioner.serving(
    lambda n, b: captioner.slow(choose.random() / 20)
  ) as server:
    ours = captioned(server.url, tmp_path / "a", pairs, concurrency=6)
  assert 1 < server.most <= 6
  assert ours == undisturbed(pairs, tmp_path / "b", concurrency=1)
  assert [made.id for made in ours] == [f"clip-{n}" for n in range(12)]


@pytest.mark.parametrize(
  "wrong",
  [
    captioner.says("I cannot."),
    captioner.says("{}"),
    captioner.says('{"visual": "cut', finish="length"),
  ],
)
def test_an_unfit_answer_goes_back_with_what_is_wrong(wrong, tmp_path):
  with captioner.serving(captioner.in_turn(wrong)) as server:
    (made,) = captioned(server.url, tmp_path, [pair(1)])
  assert isinstance(made, clips.Clip)
  first, second = (body["messages"] for body in server.bodies)
  assert second[:1] == first and len(second) == 3
  assert second[1] == {"role": "assistant", "content": wrong["text"]}
  assert "cannot be used" in second[2]["content"]
  paid = made.facts["captions"]["tokens_out"]
  (once,) = undisturbed([pair(1)], tmp_path / "other")
  both = once.facts["captions"]["tokens_out"] + len(wrong["text"]) // 4
  assert paid == both


def test_two_unfit_answers_are_a_reject_with_the_reason(tmp_path):
  script = lambda n, b: captioner.says("I cannot.")  # noqa: E731
  with captioner.serving(script) as server:
    (made,) = captioned(server.url, tmp_path, [pair(1)])
    assert len(server.bodies) == 2
    (again,) = captioned(server.url, tmp_path, [pair(1)])
    assert len(server.bodies) == 2, "unfit answers were paid for, too"
  assert made == again and made.reason == "answer is not JSON"
  assert "I cannot." in made.detail and not made.failed
  paid = made.clip.facts["captions"]
  spent = caption_cache.spent(tmp_path)
  assert paid == {"tokens_in": spent.tokens_in, "tokens_out": spent.tokens_out}
  assert paid["tokens_out"] == 2 * (len("I cannot.") // 4)


def test_a_cut_answer_is_not_used_however_whole_it_looks(tmp_path):
  text = captioner.words({"messages": [{"content": []}]})
  script = lambda n, b: captioner.says(text, finish="length")  # noqa: E731
  with captioner.serving(script) as server:
    (made,) = captioned(server.url, tmp_path, [pair(1)], retries=0)
  assert made.reason == "answer was cut"


def test_a_prompt_that_training_would_cut_is_unfit(tmp_path):
  tokenizer = str(standin.HERE / "tokenizer.json")
  changes = {"tokenizer": tokenizer, "retries": 0}
  (made,) = undisturbed([pair(1)], tmp_path, text_rows=20, **changes)
  assert made.reason == "prompt is too long" and "20 are read" in made.detail
  (made,) = undisturbed([pair(1)], tmp_path, text_rows=512, **changes)
  assert isinstance(made, clips.Clip)


def test_nothing_is_paid_for_twice(tmp_path):
  pairs = [pair(n) for n in range(5)]
  copy = clips.Clip(id="copy", path="other", facts=pairs[2][0].facts)
  with captioner.serving() as server:
    ours = captioned(server.url, tmp_path, [*pairs, (copy, pairs[2][1])])
    assert len(server.bodies) == 5
    assert ours[5].facts["captions"] == ours[2].facts["captions"]
    # A run that needs other words of the same answers, elsewhere, faster.
    changes = {"variants": ("960x960_5s",), "concurrency": 1, "seed": 5}
    captioned(server.url, tmp_path, pairs, **changes)
    assert len(server.bodies) == 5
    for change in ({"model": "other"}, {"task": "Say."}, {"temperature": 1.0}):
      captioned(server.url, tmp_path, pairs[:1], **change)
    assert len(server.bodies) == 8
  found = caption_cache.spent(tmp_path)
  assert found.answers == 8 and found.tokens_out > 0
  assert found.cost(2e6, 1e6) == 2 * found.tokens_in + found.tokens_out


def test_a_damaged_file_of_the_cache_is_asked_for_again(tmp_path):
  undisturbed([pair(1)], tmp_path)
  (file,) = tmp_path.glob("*/*.json")
  whole = file.read_bytes()
  for damaged in (whole[:-5], b"[]", b'{"a": 1}'):
    file.write_bytes(damaged)
    undisturbed([pair(1)], tmp_path)
    assert file.read_bytes() == whole


def test_a_rude_server_loses_nothing(tmp_path):
  """Every kind of rudeness, mixed: the outcome is that of a polite server."""
  rude = [
    captioner.status(500),
    captioner.status(429, Retry_After="0.01"),
    captioner.status(429),
    captioner.status(502),
    captioner.MALFORMED,
    captioner.HALF,
    captioner.CLOSED,
    captioner.slow(0.1),
  ]
  choose = random.Random(1)
  script = lambda n, b: choose.choice([*rude, *[captioner.OK] * 6])  # noqa: E731
  pairs = [pair(n) for n in range(30)]
  changes = {"concurrency": 8, "attempts": 20}
  with captioner.serving(script) as server:
    ours = captioned(server.url, tmp_path / "a", pairs, **changes)
    assert len(server.bodies) > 40
  assert ours == undisturbed(pairs, tmp_path / "b")
  assert all(isinstance(made, clips.Clip) for made in ours)
  assert caption_cache.spent(tmp_path / "a") == caption_cache.spent(
    tmp_path / "b"
  )


def test_an_endpoint_that_goes_away_leaves_the_shard_for_later(tmp_path):
  pairs, counter = [pair(n) for n in range(12)], itertools.count()

  def script(number, body):
    return captioner.OK if next(counter) < 5 else captioner.CLOSED

  changes = {"concurrency": 2, "attempts": 3}
  with (
    captioner.serving(script) as server,
    pytest.raises(stage.Unavailable) as error,
  ):
    captioned(server.url, tmp_path, pairs, **changes)
  assert str(error.value).startswith("5 of 12 clips have an answer")
  assert re.search(r"not clip clip-\d+( and [12] more)?: ", str(error.value))
  assert server.url in str(error.value) and str(tmp_path) in str(error.value)
  assert caption_cache.spent(tmp_path).answers == 5
  # One may have failed before the last answer came: another is then tried.
  assert len(server.bodies) <= 5 + 3 * 3, "a gone endpoint is left alone"
  with captioner.serving() as server:
    ours = captioned(server.url, tmp_path, pairs)
    assert len(server.bodies) == 7
  assert ours == undisturbed(pairs, tmp_path / "other")


def test_nobody_there(tmp_path):
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(stage.Unavailable, match="0 of 3 clips"):
      captioned(url, tmp_path, [pair(n) for n in range(3)], attempts=2)


def _fails_on_2(number, body):
  second = base64.b64encode(b"frame_0.jpg 2").decode()
  bad = second in body["messages"][0]["content"][0]["image_url"]["url"]
  return captioner.status(500) if bad else captioner.OK


def test_a_clip_that_always_fails_is_waited_for_or_left_out(tmp_path):
  pairs = [pair(n) for n in range(6)]
  changes = {"attempts": 3, "concurrency": 2, "first_wait": 0.02}
  with captioner.serving(_fails_on_2) as server:
    with pytest.raises(stage.Unavailable, match="5 of 6 .* not clip clip-2:"):
      captioned(server.url, tmp_path, pairs, **changes)
    # Others must be answered meanwhile, or the endpoint is taken to be gone.
    for path in sorted(tmp_path.glob("*/*.json")):
      path.unlink()
    ours = captioned(
      server.url, tmp_path, pairs, unanswered="reject", **changes
    )
  assert [made.id for made in ours if isinstance(made, clips.Clip)] == [
    f"clip-{n}" for n in (0, 1, 3, 4, 5)
  ]
  assert ours[2].failed and ours[2].reason == "no answer"
  assert "status 500" in ours[2].detail


def test_a_refused_request_is_a_failure_of_its_clip(tmp_path):
  script = captioner.in_turn(captioner.status(413))
  with captioner.serving(script) as server:
    ours = captioned(server.url, tmp_path, [pair(1), pair(2)], concurrency=1)
  assert ours[0].failed and ours[0].reason == "request refused"
  assert "status 413" in ours[0].detail
  assert isinstance(ours[1], clips.Clip)


def test_media_that_are_missing_fail_their_clip_alone(tmp_path):
  broken = pair(1)
  del broken[1].bytes["frame_4.jpg"]
  ours = undisturbed([broken, pair(2)], tmp_path)
  assert ours[0].failed and "frame_4.jpg" in ours[0].detail
  assert isinstance(ours[1], clips.Clip)


def test_the_key_stands_nowhere(tmp_path, monkeypatch):
  key = "sk-very-secret"
  monkeypatch.setenv("CAPTION_KEY", key)
  chosen = config("http://h/v1", tmp_path, key_variable="CAPTION_KEY")
  assert key not in json.dumps(captions.identity(chosen)) + repr(chosen)
  with captioner.serving() as server:
    captioned(server.url, tmp_path, [pair(1)], key_variable="CAPTION_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
  files = [path.read_text() for path in tmp_path.glob("*/*.json")]
  assert files and key not in "".join(files)
  with (
    captioner.serving(lambda n, b: captioner.status(401)) as server,
    pytest.raises(stage.Unavailable, match="check url, model") as error,
  ):
    captioned(server.url, tmp_path, [pair(2)], key_variable="CAPTION_KEY")
  assert key not in str(error.value)
  monkeypatch.delenv("CAPTION_KEY")
  with pytest.raises(ValueError, match="CAPTION_KEY is empty"):
    captions.load(chosen)


def test_an_answer_that_cannot_be_kept_stops_the_asking(tmp_path, monkeypatch):
  def full(path):
    raise OSError(errno.ENOSPC, "no space left to write it", str(path))

  monkeypatch.setattr(files, "replacing", full)
  pairs = [pair(n) for n in range(8)]
  with (
    captioner.serving() as server,
    pytest.raises(stage.Unavailable, match="cannot be kept: .*no space left"),
  ):
    captioned(server.url, tmp_path, pairs, concurrency=2)
  assert len(server.bodies) <= 2


def test_a_cache_that_is_no_folder_is_refused_at_once(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(ValueError, match="cache: expected a folder"):
    captions.load(config("http://h/v1", tmp_path / "file"))


def test_what_captions_depend_on():
  one = config("http://a/v1", "x", concurrency=3, price_in=1.0, attempts=2)
  other = config("http://b/v1", "y", key_variable="K")
  assert captions.identity(one) == captions.identity(other)
  for change in (
    {"model": "n"},
    {"variants": ("960x960_5s",)},
    {"task": "Say."},
    {"retries": 0},
    {"visual": (1, 9)},
    {"unanswered": "reject"},
  ):
    changed = config("http://a/v1", "x", **change)
    assert captions.identity(changed) != captions.identity(one), change
  assert json.dumps(captions.identity(one))


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"variants": ()}, "variants: expected at least one"),
    ({"variants": ("1x1",)}, "variant '1x1' is unknown"),
    ({"unanswered": "cry"}, "unanswered: expected one of"),
    ({"visual": (5, 2)}, "visual: expected fewest and most"),
    ({"retries": -1}, "retries of at least 0"),
    ({"extra": {"messages": []}}, "messages.* cannot be set"),
    ({"cache": ""}, "cache: expected a folder"),
  ],
)
def test_settings_are_checked(changes, expected):
  with pytest.raises(ValueError, match=expected):
    config("http://h/v1", "x", **changes)


def test_a_model_must_be_named():
  with pytest.raises(ValueError, match="model: expected"):
    captions.load(captions.Config())


def work_alone(url, folder, count):
  """What the killed process does."""
  pairs = [pair(n) for n in range(int(count))]
  captioned(url, folder, pairs, concurrency=2)
  print("done")


def test_a_kill_loses_no_answer_that_was_kept(tmp_path):
  pairs = [pair(n) for n in range(20)]
  with captioner.serving(lambda n, b: captioner.slow(0.05)) as server:
    process = subprocess.Popen(
      [sys.executable, "-m", __name__, server.url, str(tmp_path), "20"],
      cwd=pathlib.Path(__file__).parents[3],
    )
    until = time.monotonic() + 300
    while len(list(tmp_path.glob("*/*.json"))) < 6:
      assert time.monotonic() < until and process.poll() is None
      time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = caption_cache.spent(tmp_path).answers
    assert 6 <= kept < 20
    before = len(server.bodies)
    ours = captioned(server.url, tmp_path, pairs)
    assert len(server.bodies) - before == 20 - kept
  assert ours == undisturbed(pairs, tmp_path / "other")
  assert not list(tmp_path.glob("*/.*.part"))


def test_a_clock_of_ones_own(tmp_path):
  """Long waits cost no time in tests: the stage takes a clock."""
  slept = []

  async def sleep(seconds):
    slept.append(seconds)

  script = captioner.in_turn(captioner.status(500))
  with captioner.serving(script) as server:
    chosen = config(server.url, tmp_path, first_wait=60.0, longest_wait=90.0)
    clock = endpoint.Clock(sleep=sleep)
    (made,) = captions.load(chosen, clock)([pair(1)])
  assert isinstance(made, clips.Clip)
  assert len(slept) == 1 and 30 <= slept[0] <= 60


if __name__ == "__main__":
  work_alone(*sys.argv[1:])
