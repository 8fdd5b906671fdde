"""Exit codes of the curation command."""

import types

import pytest

from ovi_jax.curation import command


@pytest.mark.parametrize(
  ("result", "code", "said"),
  [
    ([], 0, ""),
    (["shots, shard 3: no disk"], 3, "incomplete:\nshots, shard 3: no disk\n"),
    (ValueError("no inputs"), 1, "no inputs\n"),
  ],
)
def test_failed_shards_and_errors_have_codes_of_their_own(
  result, code, said, monkeypatch, capfd
):
  def run(*_, **__):
    if isinstance(result, ValueError):
      raise result
    return result

  names = ("only_pass", "shards", "retry_failed", "beam")
  given = types.SimpleNamespace(config={}, **dict.fromkeys(names, ""))
  monkeypatch.setattr(command, "FLAGS", given)
  monkeypatch.setattr(command.signal, "signal", lambda *_: None)
  monkeypatch.setattr(command.run, "run", run)
  chosen = types.SimpleNamespace(report=False)
  monkeypatch.setattr(
    command.settings.Settings, "from_config", lambda _: chosen
  )
  ended = 0
  try:
    command.main(["curation"])
  except SystemExit as error:
    ended = error.code
  assert ended == code
  assert capfd.readouterr().err.endswith(said)
