"""LoRA files by name: only those of the folder, with their strengths."""

import dataclasses

import pytest
from fastapi import testclient

from ovi_jax.lora import adapter
from ovi_jax.lora import apply as lora_lib
from ovi_jax.lora import files
from ovi_jax.modality import AV
from ovi_jax.studio import adapters
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import requests
from ovi_jax.studio import service
from tests.lib import fake_sampling


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / "loras"
  made.mkdir()
  for name in ("b.safetensors", "a.safetensors", "x:1.safetensors", "c.txt"):
    (made / name).write_bytes(b"")
  (tmp_path / "outside.safetensors").write_bytes(b"")
  (made / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
  return made


def test_names_become_paths_with_strengths(folder):
  found = adapters.Adapters(folder)
  assert found.names() == ["a.safetensors", "b.safetensors"]
  resolved = found.resolve("a.safetensors:0.5, b.safetensors:1/-2")
  assert lora_lib.parse(resolved) == [
    (str(folder / "a.safetensors"), AV(0.5, 0.5)),
    (str(folder / "b.safetensors"), AV(1.0, -2.0)),
  ]
  assert found.resolve("") == ""


@pytest.mark.parametrize(
  "text",
  [
    *("../outside.safetensors", "link.safetensors", "c.txt", "/etc/passwd"),
    *("a.safetensors:99999", "a.safetensors," * 9, "a" * 3000),
  ],
)
def test_other_files_and_strengths_are_refused(folder, text):
  with pytest.raises(ValueError, match=r"unknown|strength|at most") as error:
    adapters.Adapters(folder).resolve(text)
  assert str(folder) not in str(error.value)


def test_without_a_folder_no_lora_can_be_asked_for(tmp_path):
  assert adapters.Adapters().names() == []
  with pytest.raises(ValueError, match="the server has none"):
    adapters.Adapters().resolve("a.safetensors")
  with pytest.raises(ValueError, match="expected a folder"):
    adapters.Adapters(tmp_path / "none")


def test_requests_of_the_service_name_loras(folder, tmp_path, monkeypatch):
  pipeline, _ = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path / "out")
  found = adapters.Adapters(folder)
  engine = engines.Engine(pipeline, store, adapters=found)
  monkeypatch.setattr(requests.opening, "with_loras", lambda *_: None)
  app = service.create_app(engine)
  with testclient.TestClient(app, "http://localhost") as client:
    asked = {"prompt": "A red ball bounces.", "lora": "a.safetensors:0.5"}
    made = client.post("/v1/videos", json=asked)
    assert made.status_code == 200, made.text
    asked["lora"] = "../outside.safetensors"
    refused = client.post("/v1/videos", json=asked)
  lora = engine.get(made.json()["id"]).request.lora
  assert lora_lib.parse(lora) == [(str(folder / "a.safetensors"), AV(0.5, 0.5))]
  assert refused.status_code == 400 and "unknown" in refused.text
  assert str(tmp_path) not in refused.text
  store.close()


@pytest.mark.parametrize(("strength", "mode"), [(1, "clean"), (0, "renoise")])
def test_a_lora_recommends_how_given_latents_are_shown(
  strength, mode, tmp_path
):
  pipeline, _ = fake_sampling.pipeline()
  metadata = {files.CONDITIONING_KEY: files.CLEAN}
  lora = lora_lib.Lora(
    path="a",
    strength=AV(strength, 0),
    sha256="",
    adapter=adapter.Adapter(pairs={}, metadata=metadata),
  )
  components = dataclasses.replace(pipeline.components, loras=(lora,))
  store = jobs.JobStore(tmp_path / "out")
  engine = engines.Engine(type(pipeline)(components), store)
  request = jobs.ClipRequest(prompt="A red ball bounces.", settings={"seed": 1})
  _, settings = engine.planner.plan(request, tmp_path)
  assert settings.conditioning == mode
  store.close()
