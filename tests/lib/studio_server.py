"""A server of the studio with trivial models.

As a program, `python -m tests.lib.studio_server FOLDER PORT STEP_SECONDS`, it
serves until it is killed.
"""

import contextlib
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs
from ovi_jax.studio import service
from tests.lib import fake_sampling


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
  """Serve an application in a thread; gives its address."""
  with socket.create_server(("127.0.0.1", 0)) as listening:
    config = uvicorn.Config(app, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
      yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join()


def main(folder: str, port: str, step_seconds: str) -> None:
  pipeline, _ = fake_sampling.pipeline(float(step_seconds))
  store = jobs.JobStore(pathlib.Path(folder))
  with engines.Engine(pipeline, store, batch_size=2) as engine:
    app = service.create_app(engine)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
  main(*sys.argv[1:])
