"""What a process writes, seen from outside: a real process, its stderr."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from service.log_config import OnceAMinute

URL = "http://127.0.0.1/b/videos/v/e/video.mp4?X-Amz-Algorithm=A&X-Amz-Credential=key&X-Amz-Signature=5ecre7"


def logged(program: str, *, log_format: str = "json") -> list[str]:
    head = "import logging, warnings\nfrom service.log_config import log_context, configure_logging\n"
    command = [
        sys.executable,
        "-c",
        f"{head}configure_logging({log_format!r})\nlog = logging.getLogger('ivmix.x')\n{program}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()


def test_a_line_is_one_json_object_with_the_ids_it_is_about() -> None:
    lines = logged("""
with log_context(video_id="v1", execution_id="e1"):
    with log_context(request_id="r1"):
        log.info("step %d\\nof many", 3)
    log.warning("half")
log.info("nothing")
log.debug("too much")
""")
    inner, outer, bare = map(json.loads, lines)
    assert (inner["event"], inner["level"], inner["logger"]) == ("step 3\nof many", "info", "ivmix.x")
    assert (inner["video_id"], inner["execution_id"], inner["request_id"]) == ("v1", "e1", "r1")
    assert (outer["video_id"], "request_id" in outer, outer["level"]) == ("v1", False, "warning")
    assert not {"video_id", "execution_id", "request_id"} & set(bare)
    assert bare["timestamp"].endswith("Z")


def test_text_is_for_people() -> None:
    (line,) = logged("with log_context(video_id='v1'): log.info('hello')", log_format="text")
    assert "hello" in line
    assert "video_id=v1" in line


def test_without_a_terminal_auto_means_json() -> None:
    (line,) = logged("log.info('hello')", log_format="auto")
    assert json.loads(line)["event"] == "hello"


def test_a_traceback_is_in_the_line_without_the_values_of_variables() -> None:
    lines = logged("""
def draw(prompt):
    raise RuntimeError("broken")
try:
    draw("a private wish")
except RuntimeError:
    log.exception("job failed")
""")
    (line,) = map(json.loads, lines)
    assert "RuntimeError: broken" in line["exception"]
    assert "wish" not in str({**line, "exception": line["exception"].replace('draw("a private wish")', "")})


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"redirect to {URL}", "5ecre7"),
        (f"redirect to {URL}", "X-Amz-Credential=key"),
        ("redis://:5ecre7@127.0.0.1:6379/0 is unreachable", "5ecre7"),
        ("Authorization: Bearer 5ecre7", "5ecre7"),
    ],
)
def test_a_secret_that_got_into_a_line_is_taken_out(text: str, secret: str) -> None:
    (line,) = logged(f"log.error({text!r})")
    assert secret not in line
    (traceback,) = logged(f"try: raise OSError({text!r})\nexcept OSError: log.exception('x')")
    assert secret not in traceback.replace(repr(text), "")


def test_libraries_and_warnings_go_the_same_way() -> None:
    lines = logged("""
logging.getLogger("botocore").info("chatter")
logging.getLogger("botocore").error("trouble")
warnings.warn("old")
""")
    assert [json.loads(line)["logger"] for line in lines] == ["botocore", "py.warnings"]


def test_a_repeated_line_is_logged_once_a_minute_and_another_reason_at_once() -> None:
    now = 100.0
    throttle = OnceAMinute(now=lambda: now)

    def is_logged(message: str, *args: str, name: str = "ivmix.x", once: bool = True) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "file", 1, message, args, None)
        record.once_a_minute = once
        return throttle.filter(record)

    assert is_logged("Redis is unreachable: %s", "ConnectionError")
    assert not is_logged("Redis is unreachable: %s", "ConnectionError")
    assert is_logged("Redis is unreachable: %s", "AuthenticationError")
    assert is_logged("Redis is unreachable: %s", "ConnectionError", name="ivmix.y")
    assert [is_logged("created", once=False) for _ in range(2)] == [True, True]
    assert [is_logged("Could not connect", name="rq.worker", once=False) for _ in range(2)] == [True, False]
    now += 60
    assert is_logged("Redis is unreachable: %s", "ConnectionError")


@pytest.mark.parametrize("logger", ["uvicorn.error", "asyncio", "rq.worker"])
def test_what_a_library_repeats_is_logged_once_a_minute(logger: str) -> None:
    lines = logged(f"""
for message in ("Invalid HTTP request received.", "out of system resource"):
    for _ in range(100):
        logging.getLogger({logger!r}).warning(message)
        log.warning("ours")
""")
    assert [json.loads(line)["event"] for line in lines if logger in line] == [
        "Invalid HTTP request received.",
        "out of system resource",
    ]
    assert len(lines) == 202
