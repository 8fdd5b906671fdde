"""The page in a real browser: a clip from its prompt to the gallery."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from ovi_jax.media import wav
from tests.lib import browser as browsers
from tests.lib import child_env

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    browsers.find() is None,
    reason=f"needs a browser: none of {', '.join(browsers.NAMES)} on the PATH",
  ),
]
FACE = child_env.ROOT / "docs/images/face.png"
SAMPLING = 300.0  # seconds that are waited for a clip
READY = "document.querySelector('.studio')?.dataset.ready"
# The loudest sample that the video plays within a second.
LOUDNESS = """
(async () => {
  const context = new AudioContext();
  await context.resume();
  const analyser = context.createAnalyser();
  const video = document.querySelector("#video-a");
  context.createMediaStreamSource(video.captureStream()).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let most = 0;
  for (let i = 0; i < 300 && most < 0.01; i += 1) {
    await new Promise((done) => setTimeout(done, 20));
    analyser.getFloatTimeDomainData(samples);
    most = Math.max(most, ...samples.map(Math.abs));
  }
  return most;
})()
"""
# Pixels of a canvas that are drawn.
DRAWN = """
(() => {{
  const canvas = document.querySelector("#{}");
  const pixels = canvas.getContext("2d")
    .getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.filter((value, i) => i % 4 === 3 && value).length;
}})()
"""


@contextlib.contextmanager
def serving(folder: pathlib.Path):
  """The studio in a process of its own; its address."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  log = folder / "log.txt"
  with open(log, "ab") as output:
    process = subprocess.Popen(
      [
        *(sys.executable, "-m", "ovi_jax.studio"),
        *(f"--out={folder / 'clips'}", f"--port={port}", "--nowarm_up"),
      ],
      cwd=folder,
      env=child_env.environment(PYTHONPATH=child_env.ROOT),
      stdout=output,
      stderr=subprocess.STDOUT,
    )
  origin = f"http://127.0.0.1:{port}/"
  try:
    end = time.monotonic() + SAMPLING
    while True:
      assert process.poll() is None and time.monotonic() < end, log.read_text()
      try:
        urllib.request.urlopen(origin, timeout=5).close()
        break
      except OSError:
        time.sleep(0.1)
    yield origin
  finally:
    process.terminate()
    process.wait(60)


def check_requests(page, origin):
  """No request to another host, and no error of the page."""
  urls = []
  for event in page.events():
    assert event["method"] != "Runtime.exceptionThrown", event
    if event["method"] == "Log.entryAdded":
      assert event["params"]["entry"]["level"] != "error", event
    if event["method"] == "Network.requestWillBeSent":
      urls.append(event["params"]["request"]["url"])
  own = (origin, "data:", f"blob:{origin}")
  assert urls and all(url.startswith(own) for url in urls), urls


def has_text(selector, text):
  return f"document.querySelector('{selector}').textContent.includes('{text}')"


def test_a_clip_from_its_prompt_to_the_gallery_after_a_restart(tmp_path):
  clips = tmp_path / "clips"
  with browsers.started() as chromium:
    page = chromium.page()
    page.dark(False)
    with serving(tmp_path) as origin:
      page.open(origin)
      page.wait(READY)
      watch_prompt(page)
      watch_progress(page)
      watch_result(page)
      extend(page, *clips.glob("*.mp4"))
      cancel_with_picture(page)
      check_requests(page, origin)
    assert len(list(clips.glob("*.mp4"))) == 2
    tone_A = 0.5 * np.sin(np.arange(16_000) / 5)
    wav.write(clips / "beep.wav", tone_A)
    recipe = {"prompt": "A low beep.", "generate": "audio"}
    (clips / "beep.json").write_text(json.dumps(recipe))
    with serving(tmp_path) as origin:
      page.open("about:blank")
      page.events()
      page.resize(390, 844, mobile=True)
      page.dark(True)
      page.open(origin)
      page.wait(READY)
      find_in_gallery(page)
      check_requests(page, origin)


def watch_prompt(page):
  """Marks and notes follow what is typed."""
  page.click("#prompt")
  for text in ("A face in a blue hat says ", "<S>ah oh<E>.", " Audio: a deep"):
    page.type(text)
  page.wait(has_text("#marks .speech", "ah oh"))
  page.wait(has_text("#marks .sound", " a deep"))
  page.type(" dragon")
  page.wait(has_text("#notes", "left out: dragon"))
  page.type("<img src=x onerror=document.title='x'>")
  page.wait(has_text("#marks", "onerror"))
  assert not page.run("document.querySelectorAll('#marks img').length")
  page.click("#clear")
  page.click("#examples button")
  page.wait("!document.querySelector('#notes').children.length")
  page.click("#words summary")
  page.wait("document.querySelectorAll('#words button').length > 20")


def watch_progress(page):
  """A step, the time left and two previews are shown."""
  page.click("input[value='Balanced']")
  page.fill("#seconds", "2")
  page.run(
    "window.steps = new Set(); new MutationObserver(() => { const { step } ="
    " document.querySelector('#player').dataset; if (step) steps.add(step); })"
    ".observe(document.querySelector('#player'), {attributes: true})"
  )
  page.click("#generate")
  page.wait(has_text("#live-title", "Step "), SAMPLING)
  page.wait(has_text("#left", " s left"), SAMPLING)
  page.wait("steps.size >= 1", SAMPLING)
  page.wait("document.querySelector('#video-a').videoWidth > 0")
  page.wait("!document.querySelector('#result').hidden", SAMPLING)
  assert page.run("steps.size") >= 2


def watch_result(page):
  """The clip plays with sound, over a waveform and frames."""
  page.wait("document.querySelector('#video-a').readyState >= 3")
  page.run("document.querySelector('#timeline').focus()")
  page.key(" ")
  page.wait("document.querySelector('#video-a').currentTime > 0.1")
  assert page.run(LOUDNESS) > 0.01
  page.key(" ")
  for canvas in ("strip", "wave-a"):
    page.wait(f"{DRAWN.format(canvas)} > 1000")
  assert page.run("document.querySelector('#settings').innerText").count("12")
  page.wait(has_text("#events", "in the sound"))
  assert page.run("document.querySelectorAll('#marks-audio i').length")


def extend(page, clip):
  """The clip is continued from the page, without its beginning."""
  page.click("input[value='Fast']")
  page.fill("#seconds", "1")
  page.click("#given summary")
  page.upload("#file-extend", clip)
  handle = "[data-name=extend] .trim input:not([disabled])"
  page.wait(f"!!document.querySelector('{handle}')")
  page.run(f"document.querySelector('{handle}').focus()")
  for _ in range(10):
    page.key("ArrowRight")
  page.wait(has_text("[data-name=extend] .span", "0.50 to "))
  page.click("#generate")
  page.wait("document.querySelectorAll('#clips li').length === 2", SAMPLING)
  # 1.5 of 2 seconds, and one more.
  page.wait("document.querySelector('#video-a').duration > 2.3", SAMPLING)
  assert page.run("document.querySelector('#video-a').duration") < 2.8
  page.click("[data-name=extend] button")
  page.wait("!!document.querySelector('#file-extend')")


def cancel_with_picture(page):
  """A clip of a given picture begins, and is cancelled."""
  page.upload("#file-input_reference", FACE)
  page.wait(
    "document.querySelector('[data-name=input_reference] img')?.naturalWidth"
  )
  page.run("document.querySelector('#generate').focus()")
  page.key("Enter")
  page.wait("!document.querySelector('#live').hidden")
  page.click("#cancel")
  page.wait(has_text("#status", "Cancelled"))
  page.click("[data-name=input_reference] button")
  page.wait("!!document.querySelector('#file-input_reference')")


def find_in_gallery(page):
  """The clips of before the restart are found and played."""
  page.wait("document.querySelectorAll('#clips li').length === 3")
  page.click("#search")
  page.type("dragon")
  page.wait("!document.querySelector('#gallery-empty').hidden")
  page.run("document.querySelector('#search').value = ''")
  page.type("beep")
  page.wait("document.querySelectorAll('#clips li').length === 1")
  page.click("#clips button")
  page.wait("document.querySelector('#video-a').readyState >= 2")
  shown = "getComputedStyle(document.querySelector('#strip')).display"
  assert page.run(shown) == "none"
  page.wait(f"{DRAWN.format('wave-a')} > 1000")
  page.fill("#search", "BALL red 12")
  page.wait("document.querySelectorAll('#clips li').length === 1")
  page.wait(has_text("#clips", "red ball"))
  page.click("#clips button")
  page.wait("document.querySelector('#video-a').videoWidth > 0")
  page.wait("document.querySelector('#video-a').readyState >= 3")
  page.run("document.querySelector('#timeline').focus()")
  page.key(" ")
  page.wait("document.querySelector('#video-a').currentTime > 0.1")
  assert page.run("document.documentElement.scrollWidth") <= 390
  sizes = page.run(
    "[...document.querySelectorAll('.studio button, .studio .button')]"
    ".filter((e) => e.offsetParent)"
    ".map((e) => e.getBoundingClientRect().height)"
  )
  assert min(sizes) >= 44
