"""The page of the studio in Chromium: pictures for its guide, accessibility.

  python -m benchmarks.studio_page --out=docs/images
  python -m benchmarks.studio_page --lighthouse

Starts the studio with the small Ovi and drives it as a user does. Writes
`studio.webp` (a clip from its prompt to its attention), `studio.png` (1280
pixels wide, light) and `studio_phone.png` (390, dark). `--lighthouse` runs
Lighthouse, which npx downloads, and prints its score for accessibility; it
fails below 95.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import flags
from PIL import Image

from ovi_jax import cli
from ovi_jax.media import images
from tests.lib import browser as browsers

FLAGS = flags.FLAGS
PROMPT = (
  "A face in a blue hat says ",
  "<S>ah oh ee<E>.",
  " Audio: a deep voice.",
)
BALL = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
LEAST = 95  # points of 100
LIGHTHOUSE = "lighthouse@12.8.2"
SECONDS = 300.0  # that are waited for anything
_WINDOW, _SIZE = (1280, 900), (832, 585)  # pixels, of the page and the movie
_TYPED = 6  # characters in a frame of the movie
_SOON, _LATER, _HOLD = 120, 300, 1500  # milliseconds of a frame
_QUALITY = 55  # of WebP


def _image(png: bytes) -> Image.Image:
  """A picture of the page."""
  return Image.fromarray(images.read_image(io.BytesIO(png))[0])


class Movie:
  """Frames of a page, and how long each is shown."""

  def __init__(self, page: browsers.Page):
    self._page = page
    self._frames: list[Image.Image] = []
    self._milliseconds: list[int] = []

  def add(self, milliseconds: int) -> None:
    """Show the page as it is now for some time; an equal frame for longer."""
    frame = _image(self._page.picture()).resize(_SIZE)
    if self._frames and frame.tobytes() == self._frames[-1].tobytes():
      self._milliseconds[-1] += milliseconds
      return
    self._frames.append(frame)
    self._milliseconds.append(milliseconds)

  def save(self, path: pathlib.Path) -> None:
    """Write an animated WebP."""
    first, *rest = self._frames
    first.save(
      path,
      save_all=True,
      append_images=rest,
      duration=self._milliseconds,
      loop=0,
      quality=_QUALITY,
      method=4,
      kmin=9,
      kmax=60,
    )


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
  """The studio, with warm programs; gives the address of the page."""
  command = [sys.executable, "-m", "ovi_jax.studio", "--port=0"]
  with subprocess.Popen(
    [*command, f"--out={folder}"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    address, lines = "", []
    try:
      for line in process.stdout:
        lines.append(line)
        if found := re.search(r"page at (http://\S+:\d+)", line):
          address = found[1]
        if "ready after" in line:
          break
      else:
        raise RuntimeError("the studio did not start:\n" + "".join(lines))
      yield f"{address}/studio/"
    finally:
      process.terminate()
      process.communicate()


def make(page: browsers.Page, movie: Movie | None = None) -> None:
  """Press the button and wait for the clip."""
  page.run("window.before = document.querySelectorAll('#clips li').length")
  page.click("#generate")
  ready = (
    "document.querySelectorAll('#clips li').length > window.before"
    " && !document.querySelector('#result').hidden"
    " && document.querySelector('#video-a').readyState >= 3"
  )
  page.run(
    "document.querySelector('#stage').scrollIntoView({block: 'nearest'})"
  )
  while movie is not None and not page.run(ready):
    movie.add(_LATER)
  page.wait(ready, SECONDS)
  page.wait("!document.querySelector('#events').hidden", SECONDS)


def play(page: browsers.Page, movie: Movie, seconds: float) -> None:
  """Show a part of the clip, a frame after another."""
  page.run("document.querySelector('#video-a').pause()")
  step = 0.15
  for number in range(round(seconds / step)):
    page.run(
      "(async () => { const video = document.querySelector('#video-a');"
      " const sought = new Promise((done) => video.addEventListener('seeked',"
      f" done, {{once: true}})); video.currentTime = {step * (number + 1)};"
      " await sought; })()"
    )
    movie.add(round(1000 * step))


def film(page: browsers.Page, path: pathlib.Path) -> None:
  """A clip from its prompt to its attention maps."""
  movie = Movie(page)
  movie.add(_HOLD)
  page.click("#clear")
  for text in PROMPT:
    for start in range(0, len(text), _TYPED):
      page.type(text[start : start + _TYPED])
      movie.add(_SOON)
  page.wait("!!document.querySelector('#marks .sound')")
  movie.add(_HOLD // 2)
  make(page, movie)
  play(page, movie, 3.0)
  page.click("#attention")
  page.wait(
    "document.querySelector('#attention').getAttribute('aria-pressed')"
    " === 'true' && document.querySelector('#video-a').readyState >= 3",
    SECONDS,
  )
  page.run("window.scrollTo(0, 0)")
  play(page, movie, 3.0)
  movie.add(_HOLD)
  page.click("#attention")
  movie.save(path)


def still(page: browsers.Page, path: pathlib.Path) -> None:
  """A picture of the whole page, once all of it is drawn."""
  page.run("document.querySelector('#video-a').pause()")
  page.run("document.querySelector('#video-a').currentTime = 1.5")
  page.run("document.querySelector('.go').style.position = 'static'")
  page.run("window.scrollTo(0, 0)")
  page.run(
    "Promise.all([...document.querySelectorAll('.thumbs video')].map((v) => {"
    " v.preload = 'auto'; v.src = v.src || v.dataset.source + '#t=0.6';"
    " return v.readyState >= 2 || new Promise((done) =>"
    " v.addEventListener('loadeddata', done, {once: true})); }))"
  )
  page.run("new Promise((done) => setTimeout(done, 1000))")
  _image(page.picture(whole=True)).save(path, optimize=True)


def pictures(address: str, out: pathlib.Path) -> None:
  """Write all pictures of the guide."""
  with browsers.started() as chromium:
    page = chromium.page(*_WINDOW)
    page.dark(False)
    page.open(address)
    page.wait("document.querySelector('.studio')?.dataset.ready")
    for seed, prompt in enumerate(
      (BALL, "A green lamp flashes three times. Audio: three low beeps."), 7
    ):
      page.fill("#prompt", prompt)
      page.fill("#seed", str(seed))
      make(page)
    film(page, out / "studio.webp")
    still(page, out / "studio.png")
    page.resize(390, 844, mobile=True)
    page.dark(True)
    page.open(address)
    page.wait("document.querySelector('.studio')?.dataset.ready")
    page.wait("!document.querySelector('#events').hidden", SECONDS)
    still(page, out / "studio_phone.png")


def lighthouse(address: str) -> float:
  """Lighthouse's score of the page for accessibility, of 100.

  Raises:
    RuntimeError: Lighthouse failed.
  """
  with browsers.started() as chromium:
    page = chromium.page(*_WINDOW)
    page.open(address)
    page.wait("document.querySelector('.studio')?.dataset.ready")
    page.fill("#seconds", "1")
    page.fill("#prompt", BALL)
    make(page)  # so that a clip is shown
  done = subprocess.run(
    [
      *("npx", "--yes", LIGHTHOUSE, address, "--quiet", "--output=json"),
      *("--only-categories=accessibility",),
      "--chrome-flags=--headless=new --no-sandbox --disable-gpu",
    ],
    env={**os.environ, "CHROME_PATH": browsers.find() or ""},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"lighthouse: {done.stderr[-2000:]}")
  found: dict[str, Any] = json.loads(done.stdout)
  for audit in found["audits"].values():
    if audit.get("score") == 0:
      print(f"{audit['id']}: {audit['title']}")
      for item in audit.get("details", {}).get("items", []):
        print("  ", item.get("node", {}).get("snippet", "")[:200])
  return 100 * found["categories"]["accessibility"]["score"]


def main() -> None:
  if browsers.find() is None:
    raise ValueError(f"needs one of {', '.join(browsers.NAMES)} on the PATH")
  if not (FLAGS.out or FLAGS.lighthouse):
    raise ValueError("pass --out=FOLDER for pictures, or --lighthouse")
  with (
    tempfile.TemporaryDirectory() as folder,
    served(pathlib.Path(folder)) as address,
  ):
    if FLAGS.out:
      folder = pathlib.Path(FLAGS.out)
      folder.mkdir(parents=True, exist_ok=True)
      pictures(address, folder)
    if FLAGS.lighthouse:
      score = lighthouse(address)
      print(f"accessibility: {score:.0f} of 100")
      if score < LEAST:
        raise ValueError(f"expected at least {LEAST} points, got {score:.0f}")


if __name__ == "__main__":
  flags.DEFINE_string("out", "", "Folder of the pictures; empty for none.")
  flags.DEFINE_bool("lighthouse", False, "Measure accessibility.")
  cli.run(main)
