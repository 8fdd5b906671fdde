"""A web page and an HTTP API that generate clips.

  python -m ovi_jax.studio [--out=samples] [--weights=DIR] [--lora=FILES]
    [--host=127.0.0.1] [--port=8000] [--batch_size=1]

The page is at the address that is printed; the service, with OpenAI's video
API, is below /v1 of it. Without --weights, the small Ovi in the package is
used. Clips are written to --out, where `sample.py` writes them too; unfinished
clips are generated after the next start. The variable OVI_STUDIO_API_KEY, if it
is set, is the key that clients send and that browsers ask for. See
docs/how_to/studio.md.
"""

import contextlib
import importlib.util
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax import synthetic
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sharding import mesh as meshes
from ovi_jax.studio import adapters
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import requests

FLAGS = flags.FLAGS
KEY_VARIABLE = "OVI_STUDIO_API_KEY"
_NEEDED = ("fastapi", "gradio", "multipart", "uvicorn")
_MAX_CONNECTIONS = 256
_log = logging.getLogger(__name__)


def main() -> None:
  if missing := [n for n in _NEEDED if importlib.util.find_spec(n) is None]:
    raise ValueError(
      f"the packages {', '.join(missing)} are missing; in a clone of ovi_jax:"
      " pip install -e '.[studio]'"
    )
  folder = storage.local(FLAGS.out)
  limits = requests.Limits(
    file_bytes=FLAGS.max_file_mib << 20, queued=FLAGS.max_queued
  )
  with contextlib.ExitStack() as stack:
    listening = stack.enter_context(_listen(FLAGS.host, FLAGS.port))
    pipeline = pipelines.Pipeline.from_pretrained(
      FLAGS.weights, lora=FLAGS.lora, mesh=_mesh(FLAGS.mesh)
    )
    store = stack.enter_context(contextlib.closing(jobs.JobStore(folder)))
    engine = engines.Engine(
      pipeline,
      store,
      batch_size=FLAGS.batch_size,
      save_latents=FLAGS.save_latents,
      lora=FLAGS.lora,
      adapters=adapters.Adapters(
        storage.local(FLAGS.loras) if FLAGS.loras else None
      ),
      limits=limits,
      warm_up=FLAGS.warm_up,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    waiting = store.count(jobs.QUEUED)
    stack.enter_context(engine)
    _serve(engine, listening, waiting)


def _mesh(parts: Sequence[str]) -> dict[str, int]:
  """Devices along mesh axes from a flag such as `data=4,fsdp=2`."""
  found = {}
  for part in parts:
    name, _, count = part.partition("=")
    if name not in meshes.AXES or not re.fullmatch("[0-9]{1,6}", count):
      raise ValueError(
        f"--mesh: expected AXIS=DEVICES with an axis of"
        f" {', '.join(meshes.AXES)}, got {part!r}"
      )
    found[name] = int(count)
  return found


def _listen(host: str, port: int) -> socket.socket:
  """A socket that listens.

  Raises:
    OSError: the port is taken, or the address is not of this machine.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise OSError(
      f"cannot listen at {host}:{port}: {error.strerror}; choose another --port"
    ) from error


def _serve(
  engine: engines.Engine, listening: socket.socket, waiting: int
) -> None:
  """Answer requests until the process is interrupted."""
  import uvicorn

  from ovi_jax.studio import page
  from ovi_jax.studio import service

  # It warns of each malformed request, which gets an answer.
  logging.getLogger("python_multipart").setLevel(logging.ERROR)
  host, port = listening.getsockname()[:2]
  key = os.environ.get(KEY_VARIABLE, "")
  names = list(FLAGS.allowed_hosts)
  if not ipaddress.ip_address(host).is_loopback:
    names.append(socket.gethostname())
    if not key:
      _log.warning(
        "anyone who can reach %s can generate clips; set %s to a secret key",
        host,
        KEY_VARIABLE,
      )
  app: Any = service.create_app(engine, api_key=key, allowed_hosts=names)
  page.mount(app, engine, api_key=key)
  shown = f"[{host}]" if ":" in host else host
  _log.info(
    "page at http://%s:%d, service at http://%s:%d/v1 (%d clips queued); press"
    " Ctrl-C to stop. Unfinished clips are generated after the next start",
    *(shown, port, shown, port),
    waiting,
  )
  config = uvicorn.Config(
    app,
    log_level="warning",
    access_log=False,
    server_header=False,
    limit_concurrency=_MAX_CONNECTIONS,
    timeout_graceful_shutdown=5,
  )
  uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
  flags.DEFINE_string("out", "samples", "Folder of clips.")
  flags.DEFINE_string(
    "weights",
    str(synthetic.WEIGHTS),
    "Directory of converted or exported weights.",
  )
  flags.DEFINE_string(
    "lora",
    "",
    "LoRAs: FILE[:STRENGTH] with commas; FILE:VIDEO/AUDIO for each tower.",
  )
  flags.DEFINE_string(
    "loras", "", "Folder of LoRA files that requests may name."
  )
  flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve at; 0.0.0.0 for other machines."
  )
  flags.DEFINE_integer(
    "port",
    8000,
    "Port to serve at; 0 for any.",
    lower_bound=0,
    upper_bound=65535,
  )
  flags.DEFINE_list(
    "allowed_hosts", [], "Names of this server that browsers may use."
  )
  flags.DEFINE_integer(
    "batch_size",
    1,
    "Largest number of clips that are generated together.",
    lower_bound=1,
  )
  flags.DEFINE_list(
    "mesh", [], "Devices along mesh axes, such as data=8 for a clip on each."
  )
  flags.DEFINE_bool("warm_up", True, "Load weights and compile at the start.")
  flags.DEFINE_bool("save_latents", True, "Also write the final latents.")
  flags.DEFINE_integer(
    "max_file_mib", 64, "Largest input file, in MiB.", lower_bound=1
  )
  flags.DEFINE_integer(
    "max_queued", 1000, "Largest number of queued clips.", lower_bound=1
  )
  cli.run(main)
