"""A headless Chromium that tests drive by its own protocol (CDP): no driver to install.

with chromium() as page: page.open(url); page.press("Tab"); page.value("document.title")
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

KEYS = {  # key: (code, Windows' virtual key, text)
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    " ": ("Space", 32, " "),
    "Home": ("Home", 36, ""),
    "End": ("End", 35, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
}
MODIFIERS = {"Alt": 1, "Ctrl": 2, "Shift": 8}


def found() -> str | None:
    """Where a Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one empty page, ended with the block."""
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
        ]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--lang=en", "about:blank"]
        process = subprocess.Popen(
            [str(found()), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port, path = _port(Path(folder) / "DevToolsActivePort")
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _port(file: Path) -> tuple[str, str]:
    for _ in range(300):
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return lines[0], lines[1]
        time.sleep(0.1)
    raise RuntimeError("the browser did not start")


class Page:
    """One page. What its script says in the console as an error is kept in `complaints`, and the address of
    whatever it asks for in `asked`."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers, self.session = socket, count(1), ""
        self.complaints: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            said = json.loads(self.socket.recv(timeout=300))
            if said.get("id") == number:
                assert "error" not in said, (method, said["error"])
                return dict(said["result"])
            self._heard(said)

    def _heard(self, said: dict[str, Any]) -> None:
        told = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif said.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif said.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What the expression gives, as JSON."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, script: str, seconds: float = 300) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"never: {script}; {self.complaints}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """The visible text of the first element, or nothing."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str, *modifiers: str, times: int = 1) -> None:
        code, number, text = KEYS[key]
        held = sum(MODIFIERS[m] for m in modifiers)
        named = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": held}
        for _ in range(times):
            down = {"type": "keyDown", "text": text} if text and not held else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **named, **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str, clicks: int = 1, where: tuple[float, float] | None = None) -> None:
        """The middle of the first such element, or a place of it from its top left."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{place}.scrollIntoView({{block: 'center'}})")
        box = self.value(f"{place}.getBoundingClientRect().toJSON()")
        x, y = where or (box["width"] / 2, box["height"] / 2)
        for n in range(1, clicks + 1):
            for kind in ("mousePressed", "mouseReleased"):
                at = {"x": box["x"] + x, "y": box["y"] + y}
                self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=n, **at)

    def give(self, selector: str, file: Path) -> None:
        """A file to a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, selector: str, file: Path) -> None:
        """A file dragged from elsewhere onto the middle of the element."""
        box = self.value(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **at)

    def paste(self, picture: bytes) -> None:
        """A PNG, put into the clipboard and pasted from it into what has the focus."""
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        allowed = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self.call("Browser.grantPermissions", permissions=allowed)
        coded = base64.b64encode(picture).decode()
        self.value(
            f"(async () => {{ const bytes = Uint8Array.from(atob('{coded}'), c => c.charCodeAt(0));"
            "await navigator.clipboard.write([new ClipboardItem("
            "{'image/png': new Blob([bytes], {type: 'image/png'})})]); })()"
        )
        held = {"key": "v", "code": "KeyV", "windowsVirtualKeyCode": 86, "modifiers": MODIFIERS["Ctrl"]}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", commands=["paste"], **held)
        self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and the colours preferred."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])
