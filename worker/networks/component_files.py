"""The files of a component on this machine. What cannot be read is refused by name, with the way out."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from service.catalog.weight_files import Component
from service.errors import ConfigurationError, ServiceError

LFS_POINTER = b"version https://git-lfs"
DOWNLOAD_AGAIN = "download it again"
PUT_THERE = "put it there, or name its folder in the entry"
RIGHTS = "give this user the right to read it"
MAX_REASON = 300  # characters of another library's error


@contextmanager
def refused(where: Path | str, way_out: str) -> Generator[None]:
    """Any error inside becomes a ConfigurationError: `where`, the reason in one line, and the way out.

    For calls of diffusers, transformers, tokenizers and safetensors, whose exceptions have no common class.
    """
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except Exception as e:
        raise ConfigurationError(f"{where} cannot be loaded: {reason(e)}; {way_out}") from e


def reason(e: Exception) -> str:
    """What an exception says, in one line."""
    text = " ".join(str(e).split()).rstrip(".")
    named = text if text and not isinstance(e, KeyError) else f"{type(e).__name__} {text}".strip()
    return named if len(named) <= MAX_REASON else f"{named[:MAX_REASON]} ..."


def component_folder(component: Component) -> Path:
    """Raises ConfigurationError if the component is not a folder that can be read."""
    folder = component.path
    if folder is None:
        raise ConfigurationError(f"{component.name} has not been fetched; fetch the model with `ivmix models fetch`")
    if why := unreadable(folder, PUT_THERE):
        raise ConfigurationError(why)
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} is not a folder; {component.name} is a folder in the diffusers layout, with its config and "
            "its weights as files inside"
        )
    return folder


def unreadable(path: Path, if_missing: str) -> str | None:
    """Why nothing can be read there, with the way out; None if something can."""
    try:
        path.stat()
    except FileNotFoundError:
        return f"{path} {'is a link to what does not exist' if path.is_symlink() else 'is missing'}; {if_missing}"
    except OSError as e:
        way_out = RIGHTS if isinstance(e, PermissionError) else if_missing
        return f"{path} cannot be read: {e.strerror}; {way_out}"
    return None


def file_names(folder: Path) -> list[str]:
    """Raises ConfigurationError if the folder cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as e:
        raise ConfigurationError(f"{folder} cannot be read: {e.strerror}; {RIGHTS}") from e


def check_file(file: Path) -> None:
    """Raises ConfigurationError for what is no file, cannot be read, is empty, or is the wrong download."""
    if why := unreadable(file, DOWNLOAD_AGAIN):
        raise ConfigurationError(why)
    if not file.is_file():
        raise ConfigurationError(f"{file} is not a file; {DOWNLOAD_AGAIN}")
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as e:
        raise ConfigurationError(f"{file} cannot be read: {e.strerror}; {RIGHTS}") from e
    if not start:
        raise ConfigurationError(f"{file} is empty; {DOWNLOAD_AGAIN}")
    if start.startswith(LFS_POINTER):
        raise ConfigurationError(
            f"{file} is a git-LFS pointer, not the file itself; run `git lfs pull` in the folder you cloned"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ConfigurationError(f"{file} is a web page, such as an error or login page; {DOWNLOAD_AGAIN}")


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigurationError."""
    check_file(file)
    try:
        content = json.loads(file.read_text("utf-8"))
    except UnicodeDecodeError as e:
        raise ConfigurationError(f"{file} is not UTF-8 text; {DOWNLOAD_AGAIN}, or save it as UTF-8") from e
    except (OSError, RecursionError, ValueError) as e:
        raise ConfigurationError(f"{file} is not JSON: {reason(e)}; {DOWNLOAD_AGAIN}") from e
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} holds a JSON {type(content).__name__}, not an object; {DOWNLOAD_AGAIN}")
    return cast("dict[str, Any]", content)
