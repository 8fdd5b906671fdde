"""The caption stage: requests, validation, repair, caching."""

import base64
import io
import json
import threading
import wave

import pytest

from ovi_jax import prompt
from ovi_jax.convert import standin
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.captioning import responses
from ovi_jax.curation.stages import captions
from tests.lib.curation import caption_client
from tests.lib.curation import caption_server as captioner

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")


def test_a_request_holds_frames_audio_and_facts(tmp_path):
  with captioner.serving() as server:
    (made,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(3)], extra_body={"top_k": 1}
    )
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
    assert wav.readframes(9999) == caption_client.pair(3)[1].read_artifact(
      "audio.pcm"
    )
  assert '"visual"' in task["text"] and '"speakers"' in task["text"]
  assert body["model"] == "m" and body["top_k"] == 1
  schema = body["response_format"]["json_schema"]
  assert schema["schema"] == responses.schema(True, True) and schema["strict"]
  found = made.facts["captions"]
  assert found["speech"][0] in found["visual"]
  assert found["prompts"] == [
    f"{found['visual']} <AUDCAP>{found['audio']}<ENDAUDCAP>"
  ]
  assert set(found["attributes"]["speakers"][0]) == set(
    responses.VOICE_ATTRIBUTES
  )
  assert found["tokens_in"] == len(task["text"]) // 4
  assert found["tokens_out"] > 0
  json.dumps(made.facts)


def test_all_saved_frames_are_sent(tmp_path):
  clip, media = caption_client.pair(1)
  names = [*caption_client.KEPT[:3], "audio.pcm", "video.mp4"]
  clip = clip.with_facts(
    "encode", artifacts=names
  )  # as in stages configured to do so
  with captioner.serving() as server:
    (made,) = caption_client.captioned(server.url, tmp_path, [(clip, media)])
  content = server.bodies[0]["messages"][0]["content"]
  kinds = [part["type"] for part in content]
  assert kinds == ["image_url"] * 3 + ["input_audio", "text"]
  assert made.facts["captions"]["visual"]


def test_audio_clips_and_silent_clips_are_captioned(tmp_path):
  pairs = [
    caption_client.pair(1, seen=False),
    caption_client.pair(2, heard=False),
    caption_client.pair(3, False, False),
  ]
  with captioner.serving() as server:
    sound, silent, none = caption_client.captioned(server.url, tmp_path, pairs)
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


def test_both_tag_formats_are_written(tmp_path):
  variants = ("720x720_5s", "960x960_5s", "960x960_10s")
  (made,) = caption_client.undisturbed(
    [caption_client.pair(1)], tmp_path, variants=variants
  )
  tagged, lined = made.facts["captions"]["prompts"]
  assert tagged.endswith("<ENDAUDCAP>") and " Audio: A calm" in lined
  assert prompt.clean(lined) == lined and not prompt.tag_notes(tagged)


def test_outcomes_keep_the_order_of_clips(tmp_path):
  pairs = [caption_client.pair(n) for n in range(12)]
  seventh = threading.Event()

  def script(number, body):
    """Answers the first request only after one of the next five."""
    if number == 6:
      seventh.set()
    if number == 0:
      assert seventh.wait(300)
    return captioner.OK

  with captioner.serving(script) as server:
    ours = caption_client.captioned(
      server.url, tmp_path / "a", pairs, concurrency=6
    )
  assert 1 < server.most <= 6
  assert ours == caption_client.undisturbed(
    pairs, tmp_path / "b", concurrency=1
  )
  assert [made.id for made in ours] == [f"clip-{n}" for n in range(12)]


@pytest.mark.parametrize(
  "wrong",
  [
    captioner.says("I cannot."),
    captioner.says("{}"),
    captioner.says('{"visual": "cut', finish="length"),
  ],
)
def test_an_invalid_answer_is_returned_with_its_problems(wrong, tmp_path):
  with captioner.serving(captioner.in_turn(wrong)) as server:
    (made,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)]
    )
  assert isinstance(made, clips.Clip)
  first, second = (body["messages"] for body in server.bodies)
  assert second[:1] == first and len(second) == 3
  assert second[1] == {"role": "assistant", "content": wrong["text"]}
  assert "cannot be used" in second[2]["content"]
  paid = made.facts["captions"]["tokens_out"]
  (once,) = caption_client.undisturbed(
    [caption_client.pair(1)], tmp_path / "other"
  )
  both = once.facts["captions"]["tokens_out"] + len(wrong["text"]) // 4
  assert paid == both


def test_two_invalid_answers_reject_the_clip_with_the_reason(tmp_path):
  script = lambda n, b: captioner.says("I cannot.")  # noqa: E731
  with captioner.serving(script) as server:
    (made,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)]
    )
    assert len(server.bodies) == 2
    (again,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)]
    )
    assert len(server.bodies) == 2, "unfit answers were paid for, too"
  assert made == again and made.reason == "answer is not JSON"
  assert "I cannot." in made.detail and not made.failed
  paid = made.clip.facts["captions"]
  _, tokens_in, tokens_out = caption_client.spent(tmp_path)
  assert paid == {"tokens_in": tokens_in, "tokens_out": tokens_out}
  assert paid["tokens_out"] == 2 * (len("I cannot.") // 4)


def test_a_truncated_answer_is_not_used(tmp_path):
  text = captioner.words({"messages": [{"content": []}]})
  script = lambda n, b: captioner.says(text, finish="length")  # noqa: E731
  with captioner.serving(script) as server:
    (made,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)], repair_attempts=0
    )
  assert made.reason == "response truncated"


def test_a_prompt_longer_than_the_text_encoder_reads_is_invalid(tmp_path):
  tokenizer = str(standin.HERE / "tokenizer.json")
  changes = {"tokenizer": tokenizer, "repair_attempts": 0}
  (made,) = caption_client.undisturbed(
    [caption_client.pair(1)], tmp_path, max_text_len=20, **changes
  )
  assert (
    made.reason == "prompt is too long" and "the limit of 20" in made.detail
  )
  (made,) = caption_client.undisturbed(
    [caption_client.pair(1)], tmp_path, max_text_len=512, **changes
  )
  assert isinstance(made, clips.Clip)


def test_cached_answers_are_reused(tmp_path):
  pairs = [caption_client.pair(n) for n in range(5)]
  copy = clips.Clip(id="copy", path="other", facts=pairs[2][0].facts)
  with captioner.serving() as server:
    ours = caption_client.captioned(
      server.url, tmp_path, [*pairs, (copy, pairs[2][1])]
    )
    assert len(server.bodies) == 5
    assert ours[5].facts["captions"] == ours[2].facts["captions"]
    # A run that needs other words of the same answers, elsewhere, faster.
    changes = {"variants": ("960x960_5s",), "concurrency": 1, "seed": 5}
    caption_client.captioned(server.url, tmp_path, pairs, **changes)
    assert len(server.bodies) == 5
    for change in (
      {"model": "other"},
      {"instruction": "Say."},
      {"temperature": 1.0},
    ):
      caption_client.captioned(server.url, tmp_path, pairs[:1], **change)
    assert len(server.bodies) == 8
  count, _, tokens_out = caption_client.spent(tmp_path)
  assert count == 8 and tokens_out > 0


def test_damaged_cache_files_are_requested_again(tmp_path):
  caption_client.undisturbed([caption_client.pair(1)], tmp_path)
  (file,) = tmp_path.glob("*/*.json")
  whole = file.read_bytes()
  for damaged in (whole[:-5], b"[]", b'{"a": 1}'):
    file.write_bytes(damaged)
    caption_client.undisturbed([caption_client.pair(1)], tmp_path)
    assert file.read_bytes() == whole


def test_missing_media_fail_only_their_clip(tmp_path):
  broken = caption_client.pair(1)
  del broken[1].bytes["frame_4.jpg"]
  ours = caption_client.undisturbed([broken, caption_client.pair(2)], tmp_path)
  assert ours[0].failed and "frame_4.jpg" in ours[0].detail
  assert isinstance(ours[1], clips.Clip)


def test_the_api_key_is_written_nowhere(tmp_path, monkeypatch):
  key = "sk-very-secret"
  monkeypatch.setenv("CAPTION_KEY", key)
  chosen = caption_client.config(
    "http://h/v1", tmp_path, api_key_env="CAPTION_KEY"
  )
  assert key not in json.dumps(captions.fingerprint(chosen)) + repr(chosen)
  with captioner.serving() as server:
    caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)], api_key_env="CAPTION_KEY"
    )
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
  files = [path.read_text() for path in tmp_path.glob("*/*.json")]
  assert files and key not in "".join(files)
  with (
    captioner.serving(lambda n, b: captioner.status(401)) as server,
    pytest.raises(stage.Unavailable, match="check url, model") as error,
  ):
    caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(2)], api_key_env="CAPTION_KEY"
    )
  assert key not in str(error.value)
  monkeypatch.delenv("CAPTION_KEY")
  with pytest.raises(ValueError, match="CAPTION_KEY is empty"):
    captions.load(chosen)


def test_a_cache_path_that_is_no_directory_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(ValueError, match="cache_dir: expected a folder"):
    captions.load(caption_client.config("http://h/v1", tmp_path / "file"))


def test_the_fingerprint_holds_what_captions_depend_on():
  one = caption_client.config(
    "http://a/v1", "x", concurrency=3, usd_per_mtok_in=1.0, max_attempts=2
  )
  other = caption_client.config("http://b/v1", "y", api_key_env="K")
  assert captions.fingerprint(one) == captions.fingerprint(other)
  for change in (
    {"model": "n"},
    {"variants": ("960x960_5s",)},
    {"instruction": "Say."},
    {"repair_attempts": 0},
    {"visual_chars": (1, 9)},
    {"on_timeout": "reject"},
  ):
    changed = caption_client.config("http://a/v1", "x", **change)
    assert captions.fingerprint(changed) != captions.fingerprint(one), change
  assert json.dumps(captions.fingerprint(one))


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"variants": ()}, "variants: expected at least one"),
    ({"variants": ("1x1",)}, "variant '1x1' is unknown"),
    ({"on_timeout": "cry"}, "on_timeout: expected one of"),
    ({"visual_chars": (5, 2)}, "visual_chars: expected minimum and maximum"),
    ({"repair_attempts": -1}, "repair_attempts of at least 0"),
    ({"extra_body": {"messages": []}}, "messages.* cannot be set"),
    ({"cache_dir": ""}, "cache_dir: expected a folder"),
    (
      {"cache_dir": "gs://b/c"},
      "cache_dir: .* mounted there, got the URL 'gs://b/c'",
    ),
  ],
)
def test_settings_are_checked(changes, expected):
  with pytest.raises(ValueError, match=expected):
    caption_client.config("http://h/v1", "x", **changes)


def test_a_model_must_be_named():
  with pytest.raises(ValueError, match="model: expected"):
    captions.load(captions.Config())


def from_table(folder, rows: str, paths, **changes):
  """The outcomes of files of those paths."""
  table = folder / "own.csv"
  table.write_text(rows, encoding="utf-8-sig", newline="\r\n")
  config = captions.Config(captions_file=str(table), **changes)
  pairs = [
    (clips.Clip(id=f"clip-{n}", path=path), None)
    for n, path in enumerate(paths)
  ]
  return captions.load(config)(pairs)


def test_captions_of_a_table_are_matched_by_path_without_requests(tmp_path):
  rows = (
    "path,caption\n"
    'a/b.mp4,"A dog, it says <S>Hi<E>. <AUDCAP>barking<ENDAUDCAP>"\n'
    "a/b.mp4,Another.\nd.mp4,\n"
  )
  paths = ["/films/a/b.mp4", "/films/c/b.mp4", "/films/d.mp4"]
  made, other, blank = from_table(
    tmp_path, rows, paths, variants=("720x720_5s", "960x960_5s")
  )
  assert made.facts["captions"]["prompts"] == [
    "A dog, it says <S>Hi<E>. <AUDCAP>barking<ENDAUDCAP>",
    "A dog, it says <S>Hi<E>. Audio: barking",
    "Another.",
  ]
  assert other.reason == blank.reason == "not in the table"
  assert (other.detail, blank.detail) == (
    "no row has its path",
    "its rows have no text",
  )
  assert not other.failed


def test_too_long_captions_of_a_table_are_refused(tmp_path, release):
  tokenizer = next(release.rglob("tokenizer.json"))
  rows = f"path,caption\na.mp4,{'long ' * 50}\nb.mp4,short\n"
  long, short = from_table(
    tmp_path,
    rows,
    ["a.mp4", "b.mp4"],
    tokenizer=str(tokenizer),
    max_text_len=16,
  )
  assert long.reason == "prompt is too long"
  assert short.facts["captions"]["prompts"] == ["short"]


def test_the_fingerprint_depends_on_the_content_of_the_table(tmp_path):
  table = tmp_path / "own.csv"
  table.write_text("path,caption\na.mp4,One.\n")
  before = captions.fingerprint(captions.Config(captions_file=str(table)))
  same = captions.fingerprint(
    captions.Config(captions_file=str(table), model="m")
  )
  table.write_text("path,caption\na.mp4,Two.\n")
  after = captions.fingerprint(captions.Config(captions_file=str(table)))
  assert before == same != after


def test_missing_caption_settings_are_reported_with_their_flags(
  tmp_path, monkeypatch
):
  monkeypatch.delenv("NO_SUCH_KEY", raising=False)
  problems = captions.missing_requirements(
    captions.Config(api_key_env="NO_SUCH_KEY")
  )
  assert len(problems) == 2 and all(
    "captions.captions_file=FILE.csv" in s for s in problems
  )
  assert "captions.model=MODEL" in problems[0] and "NO_SUCH_KEY" in problems[1]
  table = tmp_path / "own.csv"
  table.write_text("file,text\na.mp4,One.\n")
  (problems,) = captions.missing_requirements(
    captions.Config(captions_file=str(table))
  )
  assert (
    "path and caption" in problems
    and "captions.captions_file=FILE.csv" in problems
  )
  table.write_text("path,caption\na.mp4,One.\n")
  assert not captions.missing_requirements(
    captions.Config(captions_file=str(table))
  )
