"""Headless Chromium for tests, driven over the DevTools protocol.

A browser is launched once (:func:`launch`); each test opens its own page in it (:meth:`Chromium.page`), which
shares nothing with other pages: storage, permissions and downloads are those of its own browser context.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

NAMES = ("chromium", "chromium-browser", "google-chrome")

_LAUNCH_S = 30.0
_WAIT_S = 15.0
_POLL_S = 0.05
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)


class PageError(Exception):
    """A script in the page failed, or what was waited for did not come."""


def find_chromium() -> str | None:
    """Return the path of a Chromium on PATH, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def microphone_arguments(wav: Path) -> tuple[str, ...]:
    """Return arguments that replace the microphone by a WAV file, played in a loop, and allow its use."""
    return (
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    )


@contextlib.contextmanager
def launch(*arguments: str) -> Iterator[Chromium]:
    """Run a browser with a profile of its own.

    Args:
        arguments: Added to the command line.

    Yields:
        The browser, ready for connections.

    Raises:
        FileNotFoundError: There is no Chromium on PATH.
        PageError: It did not start.
    """
    executable = find_chromium()
    if executable is None:
        raise FileNotFoundError(f"no Chromium on PATH; looked for {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        profile = Path(folder)
        command = [executable, *_ARGUMENTS, f"--user-data-dir={profile}", *arguments, "about:blank"]
        with (profile / "stderr").open("wb") as errors:
            process = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
        try:
            yield Chromium(_devtools_address(profile, process))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its renderers; the profile is thrown away
            process.wait()


def _devtools_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for the file in which Chromium tells its port."""
    port_file = profile / "DevToolsActivePort"
    until = time.monotonic() + _LAUNCH_S
    while time.monotonic() < until and process.poll() is None:
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(_POLL_S)
    errors = (profile / "stderr").read_text(errors="replace")[-2000:]
    raise PageError(f"Chromium did not start (exit status {process.poll()}); it said:\n{errors}")


@dataclass(frozen=True)
class Chromium:
    """A running browser.

    Attributes:
        address: Its DevTools websocket.
    """

    address: str

    @contextlib.asynccontextmanager
    async def page(self, url: str, *, downloads: Path | None = None) -> AsyncIterator[Page]:
        """Open a page without anything in common with others, and close it in the end.

        Args:
            url: Where to go.
            downloads: Folder for downloads; without it there are none.

        Yields:
            The page, loaded.
        """
        async with connect(self.address, max_size=None) as socket:
            tools = _DevTools(socket)
            reader = asyncio.create_task(tools.read())
            try:
                context = await tools.send("Target.createBrowserContext", disposeOnDetach=True)
                context_id = context["browserContextId"]
                if downloads is not None:
                    await tools.send(
                        "Browser.setDownloadBehavior",
                        behavior="allow",
                        downloadPath=str(downloads),
                        browserContextId=context_id,
                    )
                target = await tools.send(
                    "Target.createTarget", url="about:blank", browserContextId=context_id
                )
                attached = await tools.send(
                    "Target.attachToTarget", targetId=target["targetId"], flatten=True
                )
                page = Page(tools, attached["sessionId"], context_id)
                await page.prepare()
                await page.navigate(url)
                yield page
                await tools.send("Target.disposeBrowserContext", browserContextId=context_id)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)


class _DevTools:
    """The DevTools protocol: numbered commands and their answers, events in between."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.on_event: Callable[[str, dict[str, Any]], None] = lambda method, params: None

    async def send(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        command = {"id": number, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send(json.dumps(command))
        return await asyncio.wait_for(answer, _LAUNCH_S)

    async def read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                message = json.loads(text)
                if "id" not in message:
                    self.on_event(message["method"], message["params"])
                    continue
                answer = self._answers.pop(int(message["id"]))
                if answer.done():
                    continue
                if "error" in message:
                    answer.set_exception(PageError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])


class Page:
    """A page and what a person can do with it.

    Attributes:
        errors: Exceptions and error messages of the page's console so far.
        url: Where it was sent last.
    """

    def __init__(self, tools: _DevTools, session: str, context_id: str) -> None:
        self.errors: list[str] = []
        self.url = "about:blank"
        self._tools = tools
        self._session = session
        self._context_id = context_id
        self._answers: set[asyncio.Task[dict[str, Any]]] = set()
        tools.on_event = self._note

    async def prepare(self) -> None:
        """Switch on the domains that report errors."""
        for domain in ("Page", "Runtime", "Log"):
            await self._send(f"{domain}.enable")

    async def navigate(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        self.url = url
        await self._send("Page.navigate", url=url)
        await self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({url!r})")

    async def evaluate(self, expression: str) -> Any:
        """Run JavaScript and return its value, that of a promise once it is kept.

        Args:
            expression: An expression whose value has a JSON form.

        Raises:
            PageError: It threw.
        """
        answer = await self._send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def wait_for(self, condition: str, *, timeout_s: float = _WAIT_S) -> None:
        """Wait until a JavaScript expression is true.

        Args:
            condition: Evaluated again and again; an element that is there is true.
            timeout_s: The longest wait.

        Raises:
            PageError: It stayed false; the page's text is told.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if await self.evaluate(f"Boolean({condition})"):
                return
            await asyncio.sleep(_POLL_S)
        text = await self.evaluate("document.body.innerText")
        raise PageError(f"not within {timeout_s:g} s: {condition}\nerrors: {self.errors}\npage:\n{text}")

    async def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(await self.evaluate(f"document.querySelector({selector!r}).innerText"))

    async def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse, as a person would."""
        box = await self.evaluate(
            f"""(() => {{
              const element = document.querySelector({selector!r});
              element.scrollIntoView({{block: "nearest"}});
              const {{x, y, width, height}} = element.getBoundingClientRect();
              return [x + width / 2, y + height / 2, width];
            }})()"""
        )
        if not box[2]:
            raise PageError(f"{selector} is not visible")
        for kind in ("mousePressed", "mouseReleased"):
            await self._send(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1
            )

    async def press(self, key: str) -> None:
        """Press and release a key without a character, such as ArrowRight or Escape."""
        for kind in ("keyDown", "keyUp"):
            await self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def type(self, text: str) -> None:
        """Type into the focused field."""
        await self._send("Input.insertText", text=text)

    async def set_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file field."""
        found = await self._send("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        await self._send(
            "DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"]
        )

    async def set_size(self, width: int, height: int, *, scale: float = 1, mobile: bool = False) -> None:
        """Set the window's inner size in CSS pixels."""
        await self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    async def set_media(self, **features: str) -> None:
        """Set media features, with underscores for hyphens: ``prefers_color_scheme="dark"``."""
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self._send("Emulation.setEmulatedMedia", features=values)

    async def set_permission(self, name: str, setting: str) -> None:
        """Set a permission of the page to granted, denied or prompt."""
        await self._tools.send(
            "Browser.setPermission",
            permission={"name": name},
            setting=setting,
            browserContextId=self._context_id,
        )

    async def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        picture = await self._send("Page.captureScreenshot", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._tools.send(method, session=self._session, **params)

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Page.javascriptDialogOpening":  # "leave this page?": yes
            answer = asyncio.create_task(self._send("Page.handleJavaScriptDialog", accept=True))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(each.get("value")) for each in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")
