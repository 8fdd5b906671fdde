"""A headless Chromium, driven through a pipe by the DevTools protocol.

No driver program and no package is needed, only Chromium or Chrome itself.
"""

import base64
import collections
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0  # for any answer of the browser
_FLAGS = (
  "--headless=new",
  "--remote-debugging-pipe",
  "--no-sandbox",  # tests run as root in containers
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--no-first-run",
  "--mute-audio",
)
# Key -> code, and the text that it types.
_KEYS = {
  " ": ("Space", " "),
  "Tab": ("Tab", ""),
  "Enter": ("Enter", "\r"),
  "ArrowRight": ("ArrowRight", ""),
}
_VIRTUAL = {" ": 32, "Tab": 9, "Enter": 13, "ArrowRight": 39}


def find() -> str | None:
  """The path of a browser; None if there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """A browser process; see `started`."""

  def __init__(self, process: Any, write: int, read: int):
    self._process, self._write, self._read = process, write, read
    self._buffer = b""
    self._number = 0
    self._events: collections.deque[dict[str, Any]] = collections.deque()

  def call(self, method: str, session: str = "", **parameters: Any) -> Any:
    """Call a method of the protocol and wait for its result."""
    self._number += 1
    number = self._number
    message = {"id": number, "method": method, "params": parameters}
    if session:
      message["sessionId"] = session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._write, data) :]
    end = time.monotonic() + SECONDS
    while True:
      found = self._receive(end)
      if found.get("id") == number:
        if "error" in found:
          raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]
      self._events.append(found)

  def _receive(self, end: float) -> dict[str, Any]:
    while b"\0" not in self._buffer:
      left = end - time.monotonic()
      if left <= 0 or not select.select([self._read], [], [], left)[0]:
        raise TimeoutError("the browser does not answer")
      part = os.read(self._read, 1 << 20)
      if not part:
        raise RuntimeError(f"the browser ended: {self._process.poll()}")
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)

  def events(self, session: str) -> list[dict[str, Any]]:
    """What a page has reported since the last call."""
    found = [e for e in self._events if e.get("sessionId") == session]
    self._events = collections.deque(
      e for e in self._events if e.get("sessionId") != session
    )
    return found

  def page(self, width: int = 1280, height: int = 900) -> "Page":
    """A new page in a context of its own, as another person's browser."""
    context = self.call("Target.createBrowserContext")["browserContextId"]
    target = self.call(
      "Target.createTarget", url="about:blank", browserContextId=context
    )["targetId"]
    session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
      "sessionId"
    ]
    return Page(self, session, width, height)


class Page:
  """A page of a browser."""

  def __init__(self, browser: Browser, session: str, width: int, height: int):
    self._browser, self._session = browser, session
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")
    self.resize(width, height)

  def call(self, method: str, **parameters: Any) -> Any:
    return self._browser.call(method, self._session, **parameters)

  def resize(self, width: int, height: int, mobile: bool = False) -> None:
    # A picture of the whole page is laid out without a scroll bar.
    self.call("Emulation.setScrollbarsHidden", hidden=True)
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=mobile,
    )

  def dark(self, dark: bool) -> None:
    """Prefer dark colours, or light ones."""
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def open(self, url: str) -> None:
    self.call("Page.navigate", url=url)

  def reload(self) -> None:
    self.run("window.isOld = true")
    self.call("Page.reload")
    self.wait("!window.isOld && document.readyState === 'complete'")

  def run(self, script: str) -> Any:
    """The value of a JavaScript expression, a promise's when it is settled."""
    found = self.call(
      "Runtime.evaluate",
      expression=script,
      returnByValue=True,
      awaitPromise=True,
      userGesture=False,
    )
    if "exceptionDetails" in found:
      raise RuntimeError(f"{script}: {found['exceptionDetails']}")
    return found["result"].get("value")

  def wait(self, condition: str, seconds: float = SECONDS) -> Any:
    """Wait until a JavaScript expression is true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      with contextlib.suppress(RuntimeError):  # the page is being replaced
        if value := self.run(condition):
          return value
      time.sleep(0.02)
    state = self.run("document.body.innerText")
    raise TimeoutError(f"never true: {condition}\n{state}")

  def key(self, key: str) -> None:
    """Press and release a key."""
    code, text = _KEYS.get(key, (f"Key{key.upper()}", key))
    if key.isdigit():
      code = f"Digit{key}"
    virtual = _VIRTUAL.get(key, ord(key.upper()[0]))
    common = {"key": key, "code": code, "windowsVirtualKeyCode": virtual}
    down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
    self.call("Input.dispatchKeyEvent", **down, **common)
    self.call("Input.dispatchKeyEvent", type="keyUp", **common)

  def click(self, selector: str) -> None:
    """Click in the middle of an element."""
    x, y = self.run(
      f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
      " e.scrollIntoView({block: 'center'}); const r ="
      " e.getBoundingClientRect();"
      " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
      self.call(
        "Input.dispatchMouseEvent",
        type=kind,
        x=x,
        y=y,
        button="left",
        clickCount=1,
      )

  def type(self, text: str) -> None:
    """Type a text where the focus is."""
    self.call("Input.insertText", text=text)

  def upload(self, selector: str, path: pathlib.Path) -> None:
    """Choose a file in an input element."""
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)
    self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

  def picture(self, whole: bool = False) -> bytes:
    """A PNG of what the window shows, or of the whole page."""
    found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
    return base64.b64decode(found["data"])

  def fill(self, selector: str, text: str) -> None:
    """Replace the text of a field."""
    self.run(f"document.querySelector({json.dumps(selector)}).select()")
    self.type(text)

  def events(self) -> list[dict[str, Any]]:
    """Requests, errors and messages since the last call."""
    return self._browser.events(self._session)


@contextlib.contextmanager
def started() -> Iterator[Browser]:
  """Start a browser with a profile of its own; it ends with the block."""
  path = find()
  assert path is not None
  theirs_read, write = os.pipe()
  read, theirs_write = os.pipe()
  # Above the numbers that the program expects: 3 and 4.
  ends = [
    fcntl.fcntl(e, fcntl.F_DUPFD, 20) for e in (theirs_read, theirs_write)
  ]
  for each in (theirs_read, theirs_write):
    os.close(each)
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [
        "bash",
        "-c",
        f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
        "bash",
        path,
        *_FLAGS,
        f"--user-data-dir={profile}",
      ],
      pass_fds=ends,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    for each in ends:
      os.close(each)
    try:
      yield Browser(process, write, read)
    finally:
      os.close(write)
      os.close(read)
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
