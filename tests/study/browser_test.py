"""The page in a real browser: keyboard, sound, reloads, a phone, the bundle."""

import contextlib
import functools
import http.server
import json
import threading

import pytest

from ovi_jax.study import bundle
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import server as server_lib
from tests.lib import browser as browsers
from tests.lib import study_clips

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    browsers.find() is None,
    reason=f"needs a browser: none of {', '.join(browsers.NAMES)} on the PATH",
  ),
]
SYSTEMS = ["ourmodel", "baseline"]
SHOWN = "!document.querySelector('#{}').hidden"
LOUDNESS = """
(async () => {
  const levels = [];
  for (const letter of "ab") {
    const video = document.querySelector(`#video-${letter}`);
    const context = new AudioContext();
    await context.resume();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(video.captureStream()).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    let most = 0;
    for (let i = 0; i < 12; i += 1) {
      await new Promise((done) => setTimeout(done, 20));
      analyser.getFloatTimeDomainData(samples);
      if (!video.paused) most = Math.max(most, ...samples.map(Math.abs));
    }
    levels.push(most);
  }
  return levels;
})()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("browser")
  return study_clips.make(
    folder,
    SYSTEMS,
    2,
    {"frames": 30, "size": 64},
    items_per_session=3,
    gold_share=0.3,
    repeat_share=0,
    headphone_trials=1,
    raters_per_item=9,
  )


@pytest.fixture(scope="module")
def chromium():
  with browsers.started() as found:
    yield found


@contextlib.contextmanager
def running(server):
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def begin(page, link):
  """Consent and sound check, by keyboard alone."""
  page.open(link)
  page.wait(SHOWN.format("consent"))
  assert page.run("document.querySelector('#begin').disabled")
  for key in ("Tab", " ", "Tab", "Enter"):
    page.key(key)
  page.wait(SHOWN.format("headphones"))
  page.key("Enter")
  page.wait("!document.querySelector('.tone').disabled")
  inverted = page.run("check.inverted")
  for _ in range(8):  # the same tones whenever they are played
    page.run("playTones()")
    assert page.run("check.inverted") == inverted != page.run("check.quiet")
  page.key("2")
  page.wait(SHOWN.format("pair"))


def judge(page, number, keys="123"):
  """Play both clips and answer three questions by keyboard."""
  page.wait(
    "document.querySelector('#progress').textContent.startsWith("
    f"'Pair {number} ')"
  )
  page.key(" ")
  page.wait("document.querySelector('#state-a').textContent.includes('played')")
  page.key("1")  # locked until both were played
  assert not page.run("document.querySelectorAll('input:checked[name]').length")
  # The focus is where the selection is.
  assert page.run("document.activeElement.id") == "play-b"
  page.key(" ")
  page.wait("!document.querySelector('fieldset').disabled")
  for key in keys:
    page.key(key)
  page.wait("document.activeElement.id === 'next'")
  page.key("Enter")


def choices(store):
  """Choices of each answered item, in order, by rater."""
  found: dict[str, list] = {}
  for vote in store.votes():
    items = found.setdefault(vote["rater"], [])
    if not items or items[-1][0] != vote["position"]:
      items.append((vote["position"], []))
    items[-1][1].append(vote["choice"])
  return found


def check_requests(page, origin):
  """No request to another host, no error, nothing that names a system."""
  urls = []
  for event in page.events():
    assert event["method"] != "Runtime.exceptionThrown", event
    if event["method"] == "Log.entryAdded":
      assert event["params"]["entry"]["level"] != "error", event
    if event["method"] == "Network.requestWillBeSent":
      urls.append(event["params"]["request"]["url"])
  assert urls and all(url.startswith(origin) for url in urls), urls
  text = " ".join(urls) + page.run("document.documentElement.outerHTML")
  for secret in (*SYSTEMS, "gold", "noise"):
    assert secret not in text
  return urls


def test_two_raters_judge_by_keyboard_with_a_reload_and_on_a_phone(
  made, chromium, tmp_path
):
  folder, study = made
  with running(server_lib.Server(folder, study)) as server:
    origin = server.link.partition("#")[0]
    page, phone = chromium.page(), chromium.page(390, 844)
    phone.resize(390, 844, mobile=True)
    begin(page, server.link)
    begin(phone, server.link)
    # One clip sounds at a time.
    page.key(" ")
    page.wait("document.querySelector('#video-a').currentTime > 0.05")
    first, second = page.run(LOUDNESS)
    assert first > 0.01 and second == 0
    page.key("b")
    page.wait("document.querySelector('#video-b').currentTime > 0.05")
    assert page.run("document.querySelector('#video-a').paused")
    page.reload()
    page.wait(SHOWN.format("pair"))
    judge(page, 1)
    page.wait(
      "document.querySelector('#progress').textContent.includes('2 of')"
    )
    (tmp_path / "page.png").write_bytes(page.picture(whole=True))
    page.reload()  # in the middle, without the code in the address
    assert "#rater=" in page.run("location.href")
    assert "code" not in page.run("location.hash")
    page.wait(SHOWN.format("pair"))
    judge(page, 2, "444")
    width = phone.run("document.documentElement.scrollWidth")
    assert width <= 390
    sizes = phone.run(
      "[...document.querySelectorAll('#pair button, .choice')]"
      ".map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 44
    judge(phone, 1, "222")
    judge(page, 3)
    page.wait(SHOWN.format("done"))
    urls = check_requests(page, origin)
    check_requests(phone, origin)
    assert not any("rater" in url or "code" in url for url in urls)
    found = choices(server.database)
    assert sorted(map(len, found.values())) == [1, 3]
    longest = max(found.values(), key=len)
    assert [items for _, items in longest] == [
      ["left", "equal", "right"],
      ["cannot_judge"] * 3,
      ["left", "equal", "right"],
    ]
    (row,) = min(found.values(), key=len)
    assert row == (0, ["equal"] * 3)


def test_the_next_person_on_a_device_begins_a_session_of_their_own(
  made, chromium, tmp_path
):
  folder, study = made
  (tmp_path / "media").symlink_to(folder / "media")
  with running(server_lib.Server(tmp_path, study)) as server:
    page = chromium.page()
    begin(page, server.link)
    hidden = "document.querySelector('#another-rater').hidden"
    assert page.run(hidden) and server.database.count() == 1
    first = page.run("location.hash")
    # The link again in the same window: the session of before.
    page.run(f"location.hash = 'code={server.code}'")
    page.wait(f"location.hash === '{first}' && !{hidden}")
    assert server.database.count() == 1
    page.run("window.confirm = () => true")
    page.click("#another")
    page.wait(SHOWN.format("consent"))
    page.wait(f"location.hash.startsWith('#rater=') && {hidden}")
    assert page.run("location.hash") != first and server.database.count() == 2


def test_an_answer_survives_a_server_that_is_away(made, chromium, tmp_path):
  folder, study = made
  (tmp_path / "media").symlink_to(folder / "media")
  server = server_lib.Server(tmp_path, study)
  port = server.server_address[1]
  page = chromium.page()
  with running(server):
    begin(page, server.link)
    page.wait("document.querySelector('#video-b').readyState === 4")
    page.wait("document.querySelector('#video-a').readyState === 4")
    for key in ("a",):
      page.key(key)
    page.wait(
      "document.querySelector('#state-a').textContent.includes('played')"
    )
    page.key("b")
    page.wait("!document.querySelector('fieldset').disabled")
  # The connection of the page is still open: end it as a crash would.
  page.call(
    "Network.emulateNetworkConditions",
    offline=True,
    latency=0,
    downloadThroughput=-1,
    uploadThroughput=-1,
  )
  for key in ("1", "2", "3", "Enter"):
    page.key(key)
  page.wait(
    "document.querySelector('#status').textContent.includes('press Next')"
  )
  page.call(
    "Network.emulateNetworkConditions",
    offline=False,
    latency=0,
    downloadThroughput=-1,
    uploadThroughput=-1,
  )
  with running(server_lib.Server(tmp_path, study, port=port)) as server:
    page.click("#next")
    page.wait(
      "document.querySelector('#progress').textContent.includes('2 of')"
    )
    assert len(server.database.votes()) == 3


def test_the_bundle_ends_with_a_code_that_can_be_imported(
  made, chromium, tmp_path
):
  folder, study = made
  public = tmp_path / "public"
  bundle.write(folder, study, public)
  handler = functools.partial(QuietHandler, directory=str(public))
  with running(
    http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  ) as server:
    origin = f"http://127.0.0.1:{server.server_address[1]}/"
    page = chromium.page()
    begin(page, f"{origin}index.html#session=1")
    judge(page, 1)
    page.wait(
      "document.querySelector('#progress').textContent.includes('2 of')"
    )
    page.reload()
    page.wait(SHOWN.format("pair"))
    judge(page, 2)
    judge(page, 3, "333")
    page.wait(SHOWN.format("done"))
    code = page.run("document.querySelector('#code').value")
    check_requests(page, origin)
  (tmp_path / "codes.csv").write_text(f"code\n{code}\n")
  for name in (manifest.FILE, bundle.FILE):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  found = bundle.import_sessions(tmp_path, tmp_path / "codes.csv")
  assert found == (1, 0, ())
  votes = database.Database(tmp_path / manifest.VOTES, study).votes()
  (stored,) = choices(
    database.Database(tmp_path / manifest.VOTES, study)
  ).items()
  assert [items for _, items in stored[1]][-1] == ["right"] * 3
  listed = json.loads((public / "sessions.json").read_text())["sessions"][1]
  assert len(votes) == 3 * len(listed)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, format, *args):
    pass
