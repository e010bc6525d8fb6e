"""Temporary URLs of a video's files on this server, for `<img>` and `<video>`, which cannot send an API key."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from service.errors import UrlNotValid
from service.settings import Settings
from service.signatures import Signer

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]

DEFAULT_LIFETIME_S = 3600  # where IVMIX_PRESIGN_SECONDS=0 turns off those of the storage
PURPOSE = "file"


@dataclass(frozen=True)
class FileUrls:
    """Signs URLs and checks them. A URL is valid for one file of one video, until it expires."""

    signer: Signer
    base: str
    lifetime_s: int

    @classmethod
    def of(cls, settings: Settings, signer: Signer) -> FileUrls:
        """Absolute URLs if the server knows its public one, else URLs relative to its host."""
        base = settings.root_path if settings.client_base_url is None else settings.client_base_url
        return cls(signer, base, settings.presign_seconds or DEFAULT_LIFETIME_S)

    def expires_at(self) -> int:
        """Unix seconds, one to one and a half lifetimes from now.

        It changes only every half lifetime: a page that polls sees the same URL again and does not load the video anew.
        """
        period = max(1, self.lifetime_s // 2)
        return (int(time.time()) // period + 3) * period

    def url(self, video_id: str, variant: Variant, expires_at: int, version: int | None = None) -> str:
        """`version`: of a file that changes, so that a browser loads it anew."""
        kind = "" if variant == "video" else f"variant={variant}&"
        kind += "" if version is None else f"version={version}&"
        signature = self.signer.sign(*_signed(video_id, variant, expires_at, version))
        return f"{self.base}/v1/videos/{video_id}/content?{kind}expires={expires_at}&signature={signature}"

    def check(
        self, video_id: str, variant: Variant, expires_at: int | None, signature: str, version: int | None = None
    ) -> None:
        """Raises UrlNotValid if the URL was changed, is of another file, or has expired."""
        if not self.signer.is_valid(signature, *_signed(video_id, variant, expires_at, version)):
            raise UrlNotValid("The signature of this URL does not match; read the video again for a valid one.")
        if expires_at is None or expires_at <= time.time():
            raise UrlNotValid("This URL has expired; read the video again for a new one.")


def _signed(video_id: str, variant: Variant, expires_at: int | None, version: int | None) -> list[str]:
    return [PURPOSE, video_id, variant, str(expires_at), *([] if version is None else [str(version)])]
