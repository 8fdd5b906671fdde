"""The ComfyUI nodes: loaded as ComfyUI does, run against the service."""

import importlib.util
import inspect
import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ovi_jax.media import mp4
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import service
from tests.lib import child_env
from tests.lib import fake_sampling
from tests.lib import studio_server

FOLDER = child_env.ROOT / "integrations" / "comfyui"
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
SOCKETS = {"IMAGE", "AUDIO", "VIDEO", "OVI_LORA"}


class Interrupted(Exception):
  """ComfyUI's, for the button."""


class Tensor:
  """As much of a torch tensor as nodes use."""

  def __init__(self, values):
    self.values = np.asarray(values)

  def __getitem__(self, key):
    return Tensor(self.values[key])

  def cpu(self):
    return self

  def numpy(self):
    return self.values


@pytest.fixture
def comfy(monkeypatch):
  """ComfyUI's modules that nodes import when they run."""
  found = types.SimpleNamespace(progress=[], interrupted=False)

  class ProgressBar:
    def __init__(self, total):
      assert total == 100

    def update_absolute(self, value, total=None, preview=None):
      found.progress.append(value)

  def throw():
    if found.interrupted:
      raise Interrupted

  def module(name, **values):
    made = types.ModuleType(name)
    vars(made).update(values)
    monkeypatch.setitem(sys.modules, name, made)
    return made

  management = module(
    "comfy.model_management",
    throw_exception_if_processing_interrupted=throw,
  )
  utils = module("comfy.utils", ProgressBar=ProgressBar)
  module("comfy", model_management=management, utils=utils)
  api = types.SimpleNamespace(VideoFromFile=lambda file: file)
  module("comfy_api")
  module("comfy_api.latest", InputImpl=api)
  return found


@pytest.fixture
def nodes(monkeypatch):
  """The node classes by name, loaded as by ComfyUI: a folder, any name."""
  name = str(FOLDER).replace(".", "_x_")
  spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, name, module)
  spec.loader.exec_module(module)
  for part in ("nodes", "client"):
    monkeypatch.delitem(sys.modules, f"{name}.{part}")
  assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == (
    module.NODE_CLASS_MAPPINGS.keys()
  )
  return module.NODE_CLASS_MAPPINGS


@pytest.fixture
def served(tmp_path):
  """An engine, and the address of its service."""
  pipeline, _ = fake_sampling.pipeline()
  store = jobs.JobStore(tmp_path)
  with (
    engines.Engine(pipeline, store) as engine,
    studio_server.served(service.create_app(engine)) as address,
  ):
    yield engine, address
  store.close()


def defaults(node) -> dict:
  """What a node is called with if nothing is changed or connected."""
  inputs = node.INPUT_TYPES()
  return {
    name: options["default"]
    for part in ("required", "optional")
    for name, (_, *more) in inputs[part].items()
    for options in more
    if "default" in options
  }


def _kind(kind) -> str:
  """A list of choices is a combo box."""
  return "COMBO" if isinstance(kind, list) else kind


def test_the_nodes_load_without_torch_or_comfyui(nodes):
  assert set(nodes) == {"OviVideo", "OviSound", "OviLora"}
  for node in nodes.values():
    inputs = node.INPUT_TYPES()
    named = {**inputs["required"], **inputs.get("optional", {})}
    kinds = {_kind(kind) for kind, *_ in named.values()}
    assert kinds <= WIDGETS | SOCKETS
    function = inspect.signature(getattr(node, node.FUNCTION))
    assert set(function.parameters) - {"self"} == set(named)
    optional = {
      name
      for name, parameter in function.parameters.items()
      if parameter.default is not inspect.Parameter.empty
    }
    assert optional == set(inputs.get("optional", {}))
    assert set(node.RETURN_TYPES) <= SOCKETS and node.CATEGORY
  for path in FOLDER.glob("*.py"):
    lines = path.read_text().splitlines()
    top = [x for x in lines if x.startswith(("import ", "from "))]
    assert not [x for x in top if "torch" in x or "comfy" in x or "numpy" in x]


def test_the_example_workflow_fits_the_nodes(nodes):
  workflow = json.loads((FOLDER / "example_workflow.json").read_text())
  (ours,) = [x for x in workflow["nodes"] if x["type"] in nodes]
  inputs = nodes[ours["type"]].INPUT_TYPES()
  expected = []
  for part in ("required", "optional"):
    for kind, *options in inputs[part].values():
      kind = _kind(kind)
      if kind in WIDGETS:
        expected.append(kind)
        if options and options[0].get("control_after_generate"):
          expected.append("STRING")
  kinds = {"STRING": str, "INT": int, "FLOAT": float, "COMBO": str}
  assert len(ours["widgets_values"]) == len(expected)
  for value, kind in zip(ours["widgets_values"], expected):
    assert isinstance(value, kinds[kind])
  (link,) = workflow["links"]
  assert link[1] == ours["id"] and link[5] == "VIDEO"
  assert ours["outputs"][0]["links"] == [link[0]]


def test_a_clip_is_made_from_given_media(nodes, comfy, served):
  engine, address = served

  class Video:
    def save_to(self, path):
      pathlib.Path(path).write_bytes(clip)

  node = nodes["OviVideo"]()
  ramp = Tensor(np.linspace(-0.5, 1.5, 64 * 64 * 3).reshape(1, 64, 64, 3))
  wanted = defaults(node) | {"url": address, "num_steps": 2, "seed": 9}
  (video,) = node.make(
    **wanted | {"negative_prompt": " blur "},
    first_image=ramp,
    last_image=ramp,
  )
  clip = video.getvalue()
  assert len(mp4.read(io.BytesIO(clip))[0]) == 5
  assert comfy.progress[-1] == 100
  (job,) = engine.query()
  assert job.request.settings == {
    "seed": 9,
    "num_steps": 2,
    "width": 1280,
    "height": 704,
    "negative_prompt": "blur",
  }
  assert set(job.request.given) == {"image", "last_image"}
  given = engine.store.given_folder(job.id) / "image"
  pixels = np.asarray(Image.open(given))
  assert pixels[0, 0].tolist() == [0] * 3 and pixels[-1, -1].min() == 255
  sound = Tensor(np.zeros((1, 2, 6 * 8000), np.float32))
  audio = {"waveform": sound, "sample_rate": 8000}
  node.make(**wanted | {"audio_guidance": 2.5}, audio=audio)
  (job, _) = engine.query()
  assert job.request.settings["guidance_scale"] == {"audio": 2.5}
  (video,) = node.make(**wanted, video=Video())
  assert len(mp4.read(video)[0]) == 5
  assert engine.query()[0].request.given == {"video": "video"}
  voice = {"waveform": Tensor(tone()), "sample_rate": 8000}
  node.make(**wanted, voice=voice)
  assert engine.query()[0].request.given == {"voice": "voice"}
  node.make(**wanted | {"seconds": 0.5, "generate": "video"}, extend=None)
  request = engine.query()[0].request
  assert (request.seconds, request.generate) == (0.5, "video")
  with pytest.raises(Exception, match="extend and generate=video cannot be"):
    node.make(**wanted | {"generate": "video"}, extend=Video())


def test_a_clip_is_continued(nodes, comfy, served, monkeypatch):
  """Up to the request: the trivial models make clips of one window."""
  engine, address = served
  example = child_env.ROOT / "ovi_jax/studio/assets/examples/1.mp4"

  class Video:
    def save_to(self, path):
      pathlib.Path(path).write_bytes(example.read_bytes())

  node = nodes["OviVideo"]()
  module = type(node).make.__globals__
  answer = lambda _, found: json.dumps(found).encode()  # noqa: E731
  monkeypatch.setitem(module, "_wait", answer)
  wanted = defaults(node) | {"url": address, "seconds": 1.0}
  (video,) = node.make(**wanted, extend=Video())
  found = json.loads(video.getvalue())
  request = engine.get(found["id"]).request
  assert (request.given, request.seconds) == ({"extend": "extend"}, 1.0)
  engine.cancel(found["id"])


def tone() -> np.ndarray:
  """1.5 s at 8 kHz, [1, 1, A]."""
  times = np.arange(12_000) / 8000
  return np.sin(2 * np.pi * 220 * times).astype(np.float32)[None, None]


def test_sound_is_made_alone(nodes, comfy, served, monkeypatch):
  engine, address = served
  torch = types.SimpleNamespace(from_numpy=Tensor)
  monkeypatch.setitem(sys.modules, "torch", torch)
  node = nodes["OviSound"]()
  wanted = defaults(node) | {"url": address, "num_steps": 2, "seconds": 0.5}
  voice = {"waveform": Tensor(tone()), "sample_rate": 8000}
  (sound,) = node.make(**wanted, voice=voice)
  assert sound["sample_rate"] == 16_000
  assert sound["waveform"].numpy().shape[:2] == (1, 1)
  assert np.abs(sound["waveform"].numpy()).max() > 0.5
  (job,) = engine.query()
  assert job.request.generate == "audio" and job.clip.endswith(".wav")
  assert job.request.given == {"voice": "voice"}


def test_the_interrupt_button_cancels_the_clip(nodes, comfy, served):
  engine, address = served
  gate = engine.pipeline._loaded["denoiser"].gate
  gate.clear()
  comfy.interrupted = True
  node = nodes["OviVideo"]()
  with pytest.raises(Interrupted):
    node.make(**defaults(node) | {"url": address})
  assert engine.query()[0].status == jobs.CANCELLED
  gate.set()


def test_an_interrupt_is_shown_though_the_service_has_ended(nodes, comfy):
  module = nodes["OviVideo"].make.__globals__
  clients = module["clients"]

  class Client:
    def cancel(self, id):
      raise clients.ServiceError("does not answer")

  comfy.interrupted = True
  with pytest.raises(Interrupted):
    module["_wait"](Client(), {"id": "", "status": "queued", "progress": 0})


def test_errors_of_the_service_are_shown(nodes, comfy, served):
  _, address = served
  node = nodes["OviVideo"]()
  for changes, message in (
    ({"prompt": " "}, "the prompt is empty"),
    ({"keep": "x"}, "keep: expected intervals"),
    ({"url": "http://127.0.0.1:9"}, "does not answer.*python -m ovi_jax"),
    ({"url": "file:///etc/passwd"}, "expected http"),
  ):
    with pytest.raises(Exception, match=message):
      node.make(**defaults(node) | {"url": address} | changes)


def test_loras_are_chained(nodes):
  node = nodes["OviLora"]()
  (first,) = node.add("a.safetensors", 0.5)
  assert node.add(" b.safetensors ", -1.0, first) == (
    "a.safetensors:0.5,b.safetensors:-1",
  )


def test_new_widgets_come_after_those_of_saved_workflows(nodes):
  optional = nodes["OviVideo"].INPUT_TYPES()["optional"]
  widgets = [n for n, (kind, *_) in optional.items() if _kind(kind) in WIDGETS]
  assert widgets == ["keep", "negative_prompt", "seconds", "generate"]
