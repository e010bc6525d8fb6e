"""From the body of a request to a VideoRequest and the file of its reference."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.api.auth import Principal
from service.api.body_reader import Upload
from service.api.open_requests import client_of
from service.api.reference_field import FIELD, decoded, is_video_id, text_of
from service.api.uploads import Uploads
from service.api.video_request_parser import Body, normalise, read_body, validate
from service.api.visible_jobs import get_job
from service.errors import InvalidParameter, VideoNotFound
from service.jobs.job_record import DamagedJob
from service.jobs.model import Job
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from service.references import Limits, sanitise
from service.storage import object_keys
from service.wiring import Services

# Stands for a file that is looked at only when everything else in the request is right.
_ANY_FILE = ReferenceFile(sha256="0" * 64, media_type="image/png", width=1, height=1)


@dataclass
class ParsedRequest:
    """A request, and how to get at its reference. `close` removes the temporary files; it may be called twice."""

    body: VideoRequest
    fetch: Callable[[], Path] | None = None  #: returns the reference as a file on this machine
    _open: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self._open.close()


@asynccontextmanager
async def parsed_request(
    request: Request, principal: Principal, source: Job | None = None, **omitted: Any
) -> AsyncGenerator[ParsedRequest]:
    """Read the body of a request for a video; at the end its temporary files are gone.

    Args:
        source: of a remix.
        omitted: values of fields that the body may omit.

    Raises:
        InvalidParameter, or HTTPException 400, 413 or 415.
    """
    reader = _Reader(request, principal)
    with reader.open:
        yield await reader.read(source, omitted)


class _Reader:
    def __init__(self, request: Request, principal: Principal) -> None:
        self._request, self._principal = request, principal
        self._services: Services = request.app.state.services
        self._uploads: Uploads = request.app.state.uploads
        self._folder: Path | None = None
        self.open = ExitStack()

    async def read(self, source: Job | None, omitted: Body) -> ParsedRequest:
        settings = self._services.settings
        upload = Upload(self._make_folder, settings.max_reference_bytes, settings.max_data_url_bytes)
        has_body = (
            self._request.headers.get("content-length", "0") != "0" or "transfer-encoding" in self._request.headers
        )
        given = await read_body(self._request, upload) if has_body or not omitted else {}
        given = normalise(omitted | given)
        text = text_of(given.pop(FIELD, None))
        if text and upload.path:
            raise InvalidParameter(FIELD, f"'{FIELD}' is given as a file and as a text; send one of them.")
        if source is not None and isinstance(model := given.get("model"), str):
            given["model"] = self._services.models.real_name(model)
        body = validate(given, source and source.generation, _ANY_FILE if text or upload.path else None)
        if text and is_video_id(text):
            file, fetch = await run_in_threadpool(self._video, text)
        elif text or upload.path:
            file, fetch = await self._new_file(text, upload)
        elif body.input_reference and source:
            file = body.input_reference
            fetch = self._stored(object_keys.reference(source.id), f"The reference of video '{source.id}'")
        else:
            return ParsedRequest(body, None, self.open)
        return ParsedRequest(body.model_copy(update={FIELD: file}), fetch, self.open)

    def _make_folder(self) -> Path:
        if self._folder is None:
            client = client_of(self._request, self._principal.owner)
            self._folder = self.open.enter_context(self._uploads.folder(client))
        return self._folder

    async def _new_file(self, data_url: str | None, upload: Upload) -> tuple[ReferenceFile, Callable[[], Path]]:
        settings, path = self._services.settings, upload.path
        if path is None:
            assert data_url is not None
            path = self._make_folder() / "upload"
            data = await run_in_threadpool(decoded, data_url, settings.max_reference_bytes)
            await run_in_threadpool(path.write_bytes, data)
        clean = path.with_name("reference")
        file = await self._uploads.read(sanitise, path, clean, Limits.of(settings))
        path.unlink()
        return file, lambda: clean

    def _video(self, video_id: str) -> tuple[ReferenceFile, Callable[[], Path]]:
        try:
            job = get_job(self._services, self._principal, video_id)
        except VideoNotFound as e:
            raise InvalidParameter(FIELD, e.message) from e
        output, made = job.output, job.generation
        if output is None or isinstance(job, DamagedJob):
            message = f"The video '{video_id}' is not completed, so nothing can start from it; use another one."
            raise InvalidParameter(FIELD, message)
        file = ReferenceFile(
            sha256=output.sha256,
            media_type="video/mp4",
            num_frames=made.num_frames,
            width=made.width,
            height=made.height,
        )
        return file, self._stored(output.key, f"The video '{video_id}'")

    def _stored(self, key: str, what: str) -> Callable[[], Path]:
        """A function that copies a file from the storage, once the new job is certain."""

        def fetch() -> Path:
            storage = self._services.storage
            if storage.size(key) is None:
                raise InvalidParameter(FIELD, f"{what} is no longer stored; send the picture or clip as {FIELD}.")
            path = self._make_folder() / "reference"
            with path.open("wb") as file:
                for chunk in storage.open(key):
                    file.write(chunk)
            return path

        return fetch
