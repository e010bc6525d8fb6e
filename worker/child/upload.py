"""Frames -> files -> storage, so that no finished clip is sampled twice.

The files are written to scratch, then uploaded, then a manifest is uploaded next to them; only then is the job marked
completed. A later execution of the same job looks for these files first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import StorageError
from service.jobs.model import Generation, Job, Output
from service.storage import StorageRetry, VideoStorage, object_keys, sha256_of
from service.storage.manifest import FILE_NAME, MEDIA_TYPE, Manifest, StoredFile, manifests
from worker.child import mp4
from worker.scratch import Scratch

log = logging.getLogger("ivmix.child")

VIDEO, THUMBNAIL, SHEET = "video.mp4", "thumbnail.webp", "spritesheet.jpg"
MEDIA_TYPES = {VIDEO: "video/mp4", THUMBNAIL: "image/webp", SHEET: "image/jpeg"}


@dataclass(frozen=True)
class Uploader:
    """`on_wait` is called while waiting for an unavailable storage. An exception from it ends the wait; the files stay
    on scratch for the next execution of the job."""

    storage: VideoStorage
    scratch: Scratch
    retry: StorageRetry

    def find(self, job: Job, execution_id: str, *, on_wait: Callable[[], None]) -> Manifest | None:
        """The manifest of a clip that an earlier execution finished, uploaded if necessary. Raises StorageError."""
        folder = self.scratch.claim(job.id, execution_id)
        manifest = None if folder is None else _intact_manifest(folder, job.generation)
        if folder is not None and manifest is not None:
            log.info("job %s: uploading the finished clip left on scratch", job.id)
            self._store(folder, manifest, on_wait)
            return manifest
        try:
            return next((found for found in manifests(self.storage, job.id) if self._is_usable(found, job)), None)
        except StorageError as e:
            log.warning("job %s: cannot check for a finished clip: %s", job.id, e)
            return None

    def upload(
        self,
        job: Job,
        execution_id: str,
        frames: mp4.Frames,
        *,
        timings: Mapping[str, float],
        peak_memory_mb: float,
        on_wait: Callable[[], None],
    ) -> Manifest:
        """Raises StorageError if the storage is unavailable for longer than the retry budget."""
        folder = self.scratch.open(job.id, execution_id)
        try:
            files = _write(frames, folder, job.generation, object_keys.execution(job.id, execution_id))
            output = _output(files)
            manifest = Manifest.of(job, files, output, timings=timings, peak_memory_mb=peak_memory_mb)
            (folder / FILE_NAME).write_text(manifest.model_dump_json())
        except OSError:
            self.scratch.discard(job.id, execution_id)  # disk full: an incomplete file is useless
            raise
        self.scratch.finish(folder)
        self._store(folder, manifest, on_wait)
        return manifest

    def _store(self, folder: Path, manifest: Manifest, on_wait: Callable[[], None]) -> None:
        path = folder / FILE_NAME
        last = StoredFile(
            key=manifest.key, size_bytes=path.stat().st_size, sha256=sha256_of(path), media_type=MEDIA_TYPE
        )
        for file in (*manifest.files, last):
            self.retry.call(lambda file=file: self._put(folder, file), on_wait=on_wait)

    def _put(self, folder: Path, file: StoredFile) -> None:
        self.storage.put(folder / file.name, key=file.key, media_type=file.media_type, sha256=file.sha256)

    def _is_usable(self, manifest: Manifest, job: Job) -> bool:
        """The same request gives the same bytes, so the files of any execution can be used."""
        return manifest.job.generation == job.generation and manifest.is_complete(self.storage)


def _write(frames: mp4.Frames, folder: Path, generation: Generation, prefix: str) -> tuple[StoredFile, ...]:
    mp4.write_mp4(frames, folder / VIDEO, fps=generation.fps)
    mp4.write_thumbnail(frames, folder / THUMBNAIL)
    mp4.write_spritesheet(frames, folder / SHEET)
    return tuple(
        StoredFile(
            key=prefix + name,
            size_bytes=(folder / name).stat().st_size,
            sha256=sha256_of(folder / name),
            media_type=media_type,
        )
        for name, media_type in MEDIA_TYPES.items()
    )


def _output(files: tuple[StoredFile, ...]) -> Output:
    named = {file.name: file for file in files}
    return Output(
        key=named[VIDEO].key,
        thumbnail_key=named[THUMBNAIL].key,
        spritesheet_key=named[SHEET].key,
        size_bytes=named[VIDEO].size_bytes,
        sha256=named[VIDEO].sha256,
    )


def _intact_manifest(folder: Path, generation: Generation) -> Manifest | None:
    """The manifest in the folder if it is for this generation and every checksum matches."""
    try:
        manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
        is_whole = all(sha256_of(folder / file.name) == file.sha256 for file in manifest.files)
    except (OSError, ValueError) as e:
        log.warning("scratch folder %s rejected: %s", folder, e)
        return None
    return manifest if is_whole and manifest.job.generation == generation else None
