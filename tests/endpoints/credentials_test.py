"""API keys are refused in settings and redacted in outputs."""

import base64
import html
import json
import logging
import pickle
import textwrap
import urllib.parse

import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.stages import captions
from ovi_jax.endpoints import client as endpoint
from ovi_jax.endpoints import credentials
from tests.lib.curation import caption_client
from tests.lib.curation import caption_server as captioner

pytest.importorskip("httpx", reason="pip install 'ovi_jax[curate]'")

KEY = 'sk-Very/Secret+"0123456789"'
VARIABLE = "CAPTION_KEY"


def full_width(text):
  return "".join(chr(ord(c) + 0xFEE0) for c in text)


def encoded(key):
  """The key in each form that a reader could turn back."""
  raw = key.encode()
  return {
    "plain": key,
    "header": f"Bearer {key}",
    "lower": key.lower(),
    "url": urllib.parse.quote(key, safe=""),
    "url twice": urllib.parse.quote(urllib.parse.quote(key, safe="")),
    "url, all": "".join(f"%{byte:02x}" for byte in raw),
    "json": json.dumps(key)[1:-1],
    "json in json": json.dumps(json.dumps(key))[1:-1],
    "json, all": "".join(f"\\u{byte:04X}" for byte in raw),
    "html": html.escape(key).replace("-", "&#45;"),
    "html, all": "".join(f"&#x{byte:X};" for byte in raw),
    "full width": full_width(key),
    "zero width": "\u200b".join(key),
    "wrapped": "\n".join(textwrap.wrap(key, 3)),
    "hex": raw.hex(),
    "hex of bytes": raw.hex(":"),
    "escaped bytes": "".join(f"x{byte:02x}" for byte in raw)[1:].replace(
      "x", "\\x"
    ),
    "base64": base64.b64encode(raw).decode(),
    "base64 of a header": base64.b64encode(b"Bearer " + raw).decode(),
    "base64 of a login": base64.b64encode(b":" + raw + b"!").decode(),
    "base64 for URLs": base64.urlsafe_b64encode(b"me" + raw).decode(),
  }


@pytest.mark.parametrize("form", encoded(KEY))
def test_a_key_is_replaced_in_every_form(form):
  redact = credentials.Redaction(KEY)
  text = f"before {encoded(KEY)[form]} after"
  found = redact.text(text)
  assert found.startswith("before ") and found.endswith(" after")
  # Of base64 the ends may hold bits of what stood around the key.
  assert credentials.REDACTED in found and len(found) < 40, found
  assert redact.json({text: [text, {"a": (text, 5)}]}) == {
    found: [found, {"a": (found, 5)}]
  }


def test_other_text_is_left_alone():
  redact = credentials.Redaction(KEY)
  text = f"A man says: sk-very secret. {KEY[:-2]}"
  assert redact.text(text) == text


@pytest.mark.parametrize("key", ["", "EMPTY", "none"])
def test_a_placeholder_is_not_a_secret(key):
  assert credentials.Redaction(key).text("an empty room") == "an empty room"


@pytest.mark.parametrize("start", ["", KEY[0], "73"])
@pytest.mark.parametrize("part", ["\\", "&amp;", "%25", "\\u00", "\\x", " "])
def test_long_runs_of_escapes_take_linear_time(start, part):
  """With cubic time, this would take days."""
  text = start + part * 2**15
  assert credentials.Redaction(KEY).text(text) == text
  assert credentials.Redaction(KEY).text(text + KEY).endswith("[key]")


def test_the_repr_of_a_redaction_hides_its_key():
  redact = credentials.Redaction(KEY)
  assert KEY not in repr(redact)
  with pytest.raises(TypeError, match="cannot be pickled"):
    pickle.dumps(redact)


KEYS = [
  "sk-proj-abcdefghijklmnop",
  "hf_abcdefghijklmnopqrstuvwx",
  "0123456789abcdef0123456789abcdef",
  "AIzaSyA-1234567890abcdefghijklmnopqrstuv",
  "AKIAIOSFODNN7EXAMPLE",
  "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
  "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
  "key with spaces",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_given_as_a_variable_name_is_refused_and_not_shown(key, tmp_path):
  with pytest.raises(ValueError, match="name of an environment") as caught:
    caption_client.config("http://h/v1", tmp_path, api_key_env=key)
  assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "K", "VLLM_KEY_2", "HF"])
def test_variable_names_are_accepted(name, tmp_path):
  assert caption_client.config("http://h/v1", tmp_path, api_key_env=name)


SECRET = "abc123def456"  # a secret only by the name of its field


@pytest.mark.parametrize(
  "changes, where",
  [
    ({"extra_body": {"api_key": SECRET}}, "extra_body.api_key"),
    ({"extra_body": {"API-Key": SECRET}}, "extra_body.API-Key"),
    (
      {"extra_body": {"a": {"Authorization": SECRET}}},
      "extra_body.a.Authorization",
    ),
    ({"extra_body": {"a": [{"password": SECRET}]}}, "extra_body.a.password"),
    ({"extra_body": {"token": SECRET}}, "extra_body.token"),
    ({"extra_body": {"user": KEYS[0]}}, "extra_body.user"),
    ({"extra_body": {"a": [1, f"Bearer {SECRET}"]}}, "extra_body.a"),
    ({"extra_body": {KEYS[1]: 1}}, r"extra_body\.\(a name\)"),
    ({"instruction": f"Say what you see. {KEYS[0]}"}, "instruction"),
    ({"url": f"http://h/{KEYS[0]}/v1"}, "url"),
  ],
)
def test_settings_that_hold_a_credential_are_refused(changes, where, tmp_path):
  with pytest.raises(ValueError, match=f"{where}: looks like a cred") as caught:
    caption_client.config(
      **{"url": "http://h/v1", "folder": tmp_path, **changes}
    )
  assert "api_key_env" in str(caught.value)
  for secret in (SECRET, *KEYS):
    assert secret not in str(caught.value)


def test_settings_without_credentials_are_accepted(tmp_path):
  extra = {
    "max_tokens": 5,
    "stop_token_ids": [1],
    "modalities": ["text"],
    "chat_template_kwargs": {"tokenizer": "x", "monkey": "y"},
    "key": "",
  }
  chosen = caption_client.config("http://h/v1", tmp_path, extra_body=extra)
  assert chosen.extra_body == extra
  assert captions.Config(instruction="Describe the keys on the sk-table.")


def answer(number, form):
  """A fit caption of a clip that repeats the key."""
  del number
  text = encoded(KEY)[form]
  voice = ("gender", "age", "accent", "pitch", "prosody", "emotion", "rate")
  rest = ("effects", "ambience", "music", "acoustics")
  caption = {
    "visual": f"A man holds a sheet that reads {text} and looks up.",
    "audio": f"A calm voice reads {text} over a soft hum.",
    "speech": [],
    "speakers": [dict.fromkeys(voice, text[:200])],
    "sounds": dict.fromkeys(rest, "soft"),
  }
  return captioner.says(json.dumps(caption), finish=text)


def leaked(text):
  """The forms of the key that a text holds; of base64 the middle."""
  forms = encoded(KEY).items()
  return [name for name, form in forms if form[4:-4].lower() in text.lower()]


def kept(folder):
  return "".join(p.read_text() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("form", ["plain", "header", "json", "base64", "html"])
def test_an_answer_that_repeats_the_key_is_redacted(
  form, tmp_path, monkeypatch
):
  monkeypatch.setenv(VARIABLE, KEY)
  with captioner.serving(lambda n, b: answer(n, form)) as server:
    (found,) = caption_client.captioned(
      server.url,
      tmp_path,
      [caption_client.pair(1)],
      api_key_env=VARIABLE,
      visual_chars=(1, 9999),
      audio_chars=(1, 9999),
    )
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
  assert isinstance(found, clips.Clip), found.detail
  facts = json.dumps(found.facts, ensure_ascii=False)
  assert credentials.REDACTED in facts and not leaked(facts)
  assert credentials.REDACTED in kept(tmp_path) and not leaked(kept(tmp_path))


def test_a_key_assembled_by_cleaning_is_redacted(tmp_path, monkeypatch):
  """Cleaning writes ligatures as letters."""
  key = "sk-fine-secret-0123"
  monkeypatch.setenv(VARIABLE, key)
  fit = json.loads(answer(0, "plain")["text"])
  hidden = key.replace("fi", "\ufb01")
  fit["visual"] = f"A man holds a sheet that reads {hidden} and looks."
  with captioner.serving(
    lambda n, b: captioner.says(json.dumps(fit))
  ) as server:
    (found,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)], api_key_env=VARIABLE
    )
  assert "reads [key] and" in found.facts["captions"]["visual"]
  assert key not in json.dumps(found.facts)
  assert key not in getattr(found, "detail", "")


def test_invalid_answers_are_reported_without_the_key(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, KEY)
  faulty = captioner.says(f"I will not. Your key is {KEY}")
  with captioner.serving(lambda n, b: faulty) as server:
    (found,) = caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)], api_key_env=VARIABLE
    )
    # The answer goes back with what is wrong with it.
    assert not leaked(json.dumps(server.bodies))
  assert isinstance(found, clips.Reject) and "[key]" in found.detail
  assert not leaked(found.detail) and not leaked(kept(tmp_path))


def raw(text):
  return {"kind": "raw", "content": text.encode()}


@pytest.mark.parametrize(
  "faulty",
  [
    captioner.status(401, X_Echo=f"{KEY}"),
    captioner.status(400),
    captioner.status(500, Retry_After=KEY),
    captioner.status(302, Location=f"http://127.0.0.1:1/{KEY}?k={KEY}"),
    captioner.status(307, Location=f"http://{KEY}@127.0.0.1:1/"),
    raw(f"<html>{KEY}</html>"),
    raw("x" * 280 + KEY),
    raw(json.dumps({"choices": [KEY]})),
    raw(json.dumps({"choices": [{"message": KEY}]})),
    raw("[" * 100_000),
    raw('{"a":' + "1" * 5000 + "}"),
  ],
  ids=lambda faulty: str(faulty.get("status", faulty.get("content", b"")[:12])),
)
def test_errors_are_reported_without_the_key(
  faulty, tmp_path, monkeypatch, caplog, capsys
):
  caplog.set_level(logging.DEBUG)
  monkeypatch.setenv(VARIABLE, KEY)
  with captioner.serving(lambda n, b: faulty) as server:
    try:
      (found,) = caption_client.captioned(
        server.url,
        tmp_path,
        [caption_client.pair(1)],
        api_key_env=VARIABLE,
        max_attempts=2,
      )
      message = found.detail
    except (stage.Unavailable, endpoint.AttemptsExhausted) as error:
      message = str(error)
  assert message and not leaked(message) and "\n" not in message
  # Nor its beginning, where a long text was cut.
  assert KEY[:12] not in message
  assert not leaked(caplog.text) and KEY not in caplog.text
  assert not leaked("".join(capsys.readouterr()))


def test_cached_answers_that_hold_the_key_are_redacted(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, KEY)
  with captioner.serving() as server:
    caption_client.captioned(server.url, tmp_path, [caption_client.pair(1)])
    (file,) = tmp_path.glob("*/*.json")
    held = json.loads(file.read_text())
    text = held["text"].replace("bright room", f"room {KEY}")
    file.write_text(json.dumps({**held, "text": text}))
    caption_client.captioned(
      server.url, tmp_path, [caption_client.pair(1)], api_key_env=VARIABLE
    )
    assert len(server.bodies) == 1
  assert "[key]" in file.read_text() and not leaked(file.read_text())


@pytest.mark.parametrize(
  "text",
  [
    "[" * 100_000,
    "[]",
    '{"text": 5}',
    '{"text": "a", "finish": "", "tokens_in": "1", "tokens_out": 0}',
    '{"text": "a", "finish": "", "tokens_in": ' + "1" * 400 + "}",
  ],
  ids=lambda text: text[:30],
)
def test_damaged_cached_answers_are_requested_again(tmp_path, text):
  with captioner.serving() as server:
    caption_client.captioned(server.url, tmp_path, [caption_client.pair(1)])
    (file,) = tmp_path.glob("*/*.json")
    whole = file.read_text()
    file.write_text(text)
    caption_client.captioned(server.url, tmp_path, [caption_client.pair(1)])
    assert len(server.bodies) == 2
  assert file.read_text() == whole
