"""A real Chromium, driven over a pipe by its DevTools protocol: no driver, no port, no further package.

The protocol is JSON, one message up to a zero byte: what we write goes to the browser's descriptor 3, what it
answers comes from 4. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root, and the only pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--mute-audio",
    "--disable-gpu-compositing",
    "--force-prefers-reduced-motion",  # a page that moves costs a core, and screenshots are of one moment
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no outside host, whatever a page asks for
    "--remote-debugging-pipe",
)
KEYS = {
    "Tab": (9, None),
    "Enter": (13, "\r"),
    "Escape": (27, None),
    "Space": (32, " "),
    "ArrowLeft": (37, None),
    "ArrowUp": (38, None),
    "ArrowRight": (39, None),
    "ArrowDown": (40, None),
}


def find_chromium() -> str | None:
    """The browser, if one is installed; ``CHROMIUM`` names another one."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process. Pages of it are strangers to each other: they have no storage and no cache in common."""

    def __init__(self, binary: str, folder: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, self._out = os.pipe()
        # Out of the way of 3 and 4, which the child gets.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (theirs_in, theirs_out)]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
        self._pid = os.posix_spawn(
            binary,
            [binary, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            dict(os.environ),
            file_actions=actions,
            setpgroup=0,
        )
        for fd in (theirs_in, theirs_out, null, *high):
            os.close(fd)
        self._in, self._rest, self._number = ours_in, b"", 0
        self._pages: dict[str, Page] = {}

    def page(self) -> Page:
        """A new page in a world of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str | None = None, timeout: float = 20, **params: Any) -> Any:
        """Send a command and wait for its answer; events on the way go to their pages."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            got = self._read(end)
            if got is None:
                raise TimeoutError(f"{method} got no answer")
            if got.get("id") == self._number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']}")
                return got["result"]

    def pump(self, seconds: float) -> None:
        """Take in events for a while."""
        end = time.monotonic() + seconds
        while self._read(end) is not None:
            pass

    def _read(self, end: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return None
            piece = os.read(self._in, 1 << 16)
            if not piece:
                raise RuntimeError("the browser is gone")
            self._rest += piece
        one, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(one)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.event(message["method"], message["params"])
        return message

    def close(self) -> None:
        """End the process, and everything that it started."""
        with contextlib.suppress(Exception):
            self.call("Browser.close", timeout=5)
        end = time.monotonic() + 5
        while time.monotonic() < end and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        os.close(self._in)
        os.close(self._out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """A page, used as a person uses it: real mouse, real keys.

    Attributes:
        problems: What the console complained of: exceptions, refused scripts, failed loads.
        urls: What was asked for over the network.
    """

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self.problems: list[str] = []
        self.urls: list[str] = []

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def reset(self) -> None:
        """Nothing open, a screen of a middling size, and everything else as it was in the beginning."""
        self.forbid()
        self.screen(1000, 700)
        self.dark(False)
        self.open("about:blank")
        self.problems.clear()
        self.urls.clear()

    # Looking

    def js(self, code: str) -> Any:
        """The value of an expression; promises are awaited."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise AssertionError(done["exceptionDetails"].get("exception", {}).get("description", code))
        return done["result"].get("value")

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self._browser.pump(seconds)

    def until(self, code: str, seconds: float = 30) -> Any:
        """Wait until an expression is true; its value."""
        end = time.monotonic() + seconds
        while True:
            value = self.js(f"(value => value instanceof Node || value)({code})")
            if value:
                return value
            if time.monotonic() > end:
                text = self.js("document.body.innerText")
                raise AssertionError(f"not within {seconds} s: {code}\n{text}\n{self.problems}")
            self._browser.pump(0.03)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def count(self, selector: str) -> int:
        return int(self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    # Doing

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def reload(self) -> None:
        self.js("window.old = true")
        self.call("Page.reload")
        self.until("!window.old && document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """Press the middle of an element with the mouse."""
        found = self.until(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              if (!element) return null;
              element.scrollIntoView({{block: 'center', behavior: 'instant'}});
              const box = element.getBoundingClientRect();
              return [box.left + box.width / 2, box.top + box.height / 2];
            }})()"""
        )
        self.press_at(*found)

    def move_to(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press_at(self, x: float, y: float) -> None:
        self.move_to(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str, times: int = 1, shift: bool = False) -> None:
        """Press a key: one of ``KEYS``, or a single sign."""
        code, text = KEYS.get(name, (0, name))
        sign = " " if name == "Space" else name
        more = {"text": text} if text else {}
        for _ in range(times):
            both = {"key": sign, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **both, **more)
            self.call("Input.dispatchKeyEvent", type="keyUp", **both)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def choose_file(self, selector: str, path: Path) -> None:
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def screen(self, width: int, height: int, scale: float = 1, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )

    def dark(self, on: bool = True) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def forbid(self, *patterns: str) -> None:
        """Let requests fail as if the server were gone; no pattern: let them through again."""
        self.call("Network.setBlockedURLs", urls=list(patterns))
