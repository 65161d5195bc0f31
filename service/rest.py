"""OpenAI's REST interface: ``POST /v1/audio/transcriptions`` and ``GET /v1/models``, on a port of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from asr.errors import AudioError, OptionError
from asr.events import Final, Partial
from service.connection import Hub
from service.handshake import Doorkeeper
from service.rest_audio import audio_blocks
from service.rest_formats import EventStream, body, failure
from service.rest_request import RequestError, TranscriptionRequest, parse_fields
from service.rest_stream import recognize
from service.routes import OPENAI_KEY_HINT, Refusal, openai_error
from service.stream_settings import Finished, Output

_FORM_BYTES = 1 << 20  # of all that is not the file
_log = logging.getLogger(__name__)


class RestApi:
    """The interface as an ASGI application.

    Attributes:
        app: The application.
    """

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        hub: Callable[[], Hub | None],
        *,
        allow_origins: tuple[str, ...],
        upload_bytes: int,
    ) -> None:
        """Build the application.

        Args:
            doorkeeper: Knows who may use the server, and whether there is room.
            hub: The server's; None while the model loads.
            allow_origins: Foreign web pages that may use it.
            upload_bytes: Of one recording.
        """
        self._doorkeeper = doorkeeper
        self._hub = hub
        self._upload_bytes = upload_bytes
        self._created = int(time.time())
        cors = Middleware(
            CORSMiddleware, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"]
        )
        self.app = Starlette(
            routes=[
                Route("/v1/audio/transcriptions", self._transcribe, methods=["POST"]),
                Route("/v1/models", self._list_models),
                Route("/v1/models/{name:path}", self._show_model),
            ],
            middleware=[cors] if allow_origins else [],
            exception_handlers={
                kind: _answer_error
                for kind in (RequestError, AudioError, OptionError, HTTPException, Exception)
            },
        )

    async def _list_models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def _show_model(self, request: Request) -> Response:
        self._admit(request)
        name, model = request.path_params["name"], self._model()
        if name != model["id"]:
            message = f"The model '{name}' does not exist; this server has '{model['id']}'."
            raise RequestError(message, status=404, code="model_not_found", param="model")
        return JSONResponse(model)

    async def _transcribe(self, request: Request) -> Response:
        hub, key = self._admit(request)
        if too_often := self._doorkeeper.too_often(key):
            raise self._refuse(too_often)
        request = self._bounded(request, patience_s=hub.limits.idle_s)
        async with AsyncExitStack() as stack:
            form = await stack.enter_async_context(_form(request))
            file, asked = self._parsed(form)
            if no_room := self._doorkeeper.no_room(key):
                raise self._refuse(no_room)
            place = hub.registry.reserve(key)
            assert place
            stack.callback(place.release)
            hub.metrics.sessions_started.inc()
            queue_s = hub.limits.queue_s
            outputs = recognize(hub.batcher, audio_blocks(file.file), asked.settings, queue_s=queue_s)
            await stack.enter_async_context(aclosing(outputs))
            told = _counted(outputs, hub)
            await stack.enter_async_context(aclosing(told))
            if asked.is_streamed:
                first = await anext(told)  # what is wrong with the file is an answer, not an event
                return _EventResponse(_events(first, told, asked), on_end=stack.pop_all().aclose)
            return await _whole(told, asked, request)

    def _admit(self, request: Request) -> tuple[Hub, str]:
        """Let a request in that shows a key, once the model is there; the key's name comes along."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        keys = [given.strip()] if scheme.lower() == "bearer" else []
        origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
        doorkeeper, hub = self._doorkeeper, self._hub()
        key = doorkeeper.admit(origin=origin, host=host, keys=keys, key_hint=OPENAI_KEY_HINT)
        if isinstance(key, Refusal):
            raise self._refuse(key)
        closed = doorkeeper.closed()
        if closed or hub is None:
            raise self._refuse(closed)
        return hub, key

    def _refuse(self, refusal: Refusal | None) -> RequestError:
        """What to tell; counted as the handshakes' refusals are."""
        if refusal:
            self._doorkeeper.count(refusal)
        return _as_error(refusal)

    def _bounded(self, request: Request, *, patience_s: float) -> Request:
        """The same request, whose body ends with an error where it gets too long or does not go on."""
        limit, n_bytes = self._upload_bytes + _FORM_BYTES, 0
        announced = request.headers.get("content-length", "")
        too_long = RequestError(
            f"Maximum content size limit ({self._upload_bytes} bytes) exceeded", status=413, param="file"
        )
        if announced.isdigit() and int(announced) > limit:
            raise too_long

        async def receive() -> Message:
            nonlocal n_bytes
            try:
                message = await asyncio.wait_for(request.receive(), patience_s)
            except asyncio.TimeoutError as error:
                text = f"The request did not go on for {patience_s:g} s; send it again."
                raise RequestError(text, status=408) from error
            n_bytes += len(message.get("body", b""))
            if n_bytes > limit:
                raise too_long
            return message

        return Request(request.scope, receive)

    def _parsed(self, form: FormData) -> tuple[UploadFile, TranscriptionRequest]:
        fields: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields.setdefault(name.removesuffix("[]"), []).append(value)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            message = "Missing required parameter: 'file'; send multipart/form-data with the recording in it."
            raise RequestError(message, code="missing_required_parameter", param="file")
        return file, parse_fields(fields, self._doorkeeper.opening)

    def _model(self) -> dict[str, Any]:
        name = self._doorkeeper.opening.model
        return {"id": name, "object": "model", "created": self._created, "owned_by": "foresound"}


@asynccontextmanager
async def _form(request: Request) -> AsyncGenerator[FormData, None]:
    """The request's form; what is large in it is on a disk, which may be full."""
    try:
        form = await request.form()
    except OSError as error:
        _log.error("an upload could not be kept: %s", error)
        while (await request.receive()).get("more_body"):
            pass  # a client that is still sending would not hear the answer
        message = "The server has no room for the recording; try again later or send a smaller one."
        raise RequestError(message, status=507, code="server_error") from error
    try:
        yield form
    finally:
        await form.close()


class _EventResponse(StreamingResponse):
    """Server-sent events; whatever becomes of them, something is done at the end."""

    def __init__(self, events: AsyncGenerator[str, None], *, on_end: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._on_end()


async def _counted(outputs: AsyncGenerator[Output, None], hub: Hub) -> AsyncGenerator[Output, None]:
    """The same outputs, counted in the metrics."""
    outcome = "lost"
    try:
        async for output in outputs:
            if isinstance(output, Finished):
                outcome = "stop"
                hub.metrics.audio_s.inc(output.audio_s)
            yield output
    except (AudioError, OptionError):
        outcome = "bad_audio"
        raise
    except Exception as error:
        outcome = "model_error"
        _log.exception("a transcription failed")
        message = "The recogniser failed; try again."
        raise RequestError(message, status=500, code="server_error") from error
    finally:
        hub.metrics.sessions_ended.labels(outcome).inc()


async def _whole(
    outputs: AsyncGenerator[Output, None], asked: TranscriptionRequest, request: Request
) -> Response:
    finals: list[Final] = []
    audio_s = 0.0
    async for output in outputs:
        if isinstance(output, Final):
            finals.append(output)
        elif isinstance(output, Finished):
            audio_s = output.audio_s
        if await request.is_disconnected():
            return Response()  # nobody reads it
    text, media_type = body(finals, audio_s=audio_s, request=asked)
    return Response(text, media_type=media_type)


async def _events(
    first: Output, outputs: AsyncGenerator[Output, None], asked: TranscriptionRequest
) -> AsyncGenerator[str, None]:
    stream = EventStream(logprobs=asked.wants_logprobs)

    def tell(output: Output) -> str:
        return stream.tell(output) if isinstance(output, Partial | Final) else ""

    try:
        if text := tell(first):
            yield text
        async for output in outputs:
            if text := tell(output):
                yield text
        yield stream.done()
    except Exception as error:
        yield failure(_described(error)[1])


def _as_error(refusal: Refusal | None) -> RequestError:
    if refusal is None:
        return RequestError("The server is loading.", status=503)
    error = openai_error(refusal)
    return RequestError(
        refusal.text, status=refusal.status, code=error["code"], headers=dict(refusal.headers)
    )


def _described(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, the error in OpenAI's form, and more headers."""
    status, message, headers = 500, "The server failed; try again.", dict[str, str]()
    code: str | None = "server_error"
    param: str | None = None
    if isinstance(error, RequestError):
        status, code, param, headers = error.status, error.code, error.param, error.headers
        message = str(error)
    elif isinstance(error, HTTPException):
        status, code, message = error.status_code, None, error.detail
        headers = dict(error.headers or {})
    elif isinstance(error, AudioError):
        status, code, param, message = 400, "invalid_audio", "file", str(error)
    elif isinstance(error, OptionError):
        status, code, param, message = 400, "invalid_value", str(error).split(maxsplit=1)[0], str(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"message": message, "type": kind, "param": param, "code": code}, headers


async def _answer_error(request: Request, error: Exception) -> Response:
    status, details, headers = _described(error)
    return JSONResponse({"error": details}, status_code=status, headers=headers)
