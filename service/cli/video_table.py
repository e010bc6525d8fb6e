"""Videos as a table, for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table

from service.cli.client import Video
from service.cli.follow import state_of


def print_videos(videos: Sequence[Video]) -> None:
    """One line each, in local time. A narrow terminal cuts prompts, never ids."""
    rows = [_row(video) for video in videos]
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(("id", "status", "model", "size", "created")):
        table.add_column(name, no_wrap=True, min_width=max((len(row[index]) for row in rows), default=0))
    table.add_column("prompt", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)


def _row(video: Video) -> tuple[str, ...]:
    created = datetime.fromtimestamp(video["created_at"]).astimezone().strftime("%Y-%m-%d %H:%M")
    prompt = (video.get("prompt") or "").replace("\n", " ")
    return video["id"], state_of(video), video["model"], video.get("size") or "", created, prompt
