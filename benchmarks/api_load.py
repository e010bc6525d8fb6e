"""`python -m benchmarks.api_load`: the load that one API process sustains, compared to bare FastAPI endpoints.

Two separate uvicorn processes: the API (real Valkey with `appendfsync always`, API keys on), and two endpoints, `async
def` and `def`, that only return as many bytes. This process generates the load. Creating is open-loop: requests are
sent on schedule whether or not earlier ones have finished, and latency counts from the scheduled time. Polling is
closed-loop over a few connections, alternating between the arms: one video that does not change, which the API has
decoded and shown before, and more videos in turn than it keeps. Prints a table; writes JSON with --json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import uvicorn
from fastapi import FastAPI, Response
from redis import Redis

from service.api.polls import KEPT
from service.api_keys import KeyStore
from service.jobs.keys import job_key
from service.process.embedded_valkey import EmbeddedValkey, free_port

PROMPT = "a red circle moving right on a teal background"
Arm = tuple[int, int, Sequence[bytes]]  # port and process id of a server, requests to send in turn

SHOWN = ("p50", "p95", "p99")


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        return serve_bare(int(sys.argv[2]), int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 100], help="new videos per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="per rate and per round of polling")
    parser.add_argument("--connections", type=int, default=16, help="number of polling connections")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of polling, alternating between the arms")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_url = stack.enter_context(EmbeddedValkey(data))
        with Redis.from_url(redis_url) as redis:
            key = KeyStore(redis).create("load", requests_per_minute=10**6, max_waiting=10**6)[1]
        port, api = stack.enter_context(api_process(redis_url, data))
        video = httpx2.post(
            f"http://127.0.0.1:{port}/v1/videos", json={"prompt": PROMPT}, headers={"authorization": f"Bearer {key}"}
        )
        bare_port, bare = stack.enter_context(bare_process(len(video.content)))
        copies = copies_of(video.json()["id"], redis_url)
        arms = {
            "bare, async def": (bare_port, bare, [request("GET", "/async")]),
            "bare, def": (bare_port, bare, [request("GET", "/def")]),
            "status poll": (port, api, [request("GET", f"/v1/videos/{video.json()['id']}", key)]),
            "polls of many": (port, api, [request("GET", f"/v1/videos/{video_id}", key) for video_id in copies]),
        }
        polls = polling(arms, arguments)
        posts = {rate: creating(port, key, rate, arguments.seconds) for rate in arguments.rates}
    print(report(polls, posts, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps({"polls": polls, "create": posts}, indent=1))


def copies_of(video_id: str, redis_url: str) -> list[str]:
    """Ids of new records that are equal to that of a video."""
    ids = [f"video_{i:032x}" for i in range(2 * KEPT)]
    with Redis.from_url(redis_url) as redis, redis.pipeline() as pipe:
        record = redis.hgetall(job_key(video_id))
        for copy in ids:
            pipe.hset(job_key(copy), mapping={**record, b"id": json.dumps(copy)})
        pipe.execute()
    return ids


def polling(arms: dict[str, Arm], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Requests per second, and milliseconds of server CPU per request, of each arm.

    Both are the best of all rounds, because other load on the machine only makes them worse. CPU time varies less."""
    best = {name: {"per_second": 0.0, "cpu_ms": math.inf} for name in arms}
    for _ in range(arguments.rounds):
        for name, (port, pid, requests) in arms.items():
            seconds, before = arguments.seconds / arguments.rounds, cpu_seconds(pid)
            done, took = asyncio.run(closed_loop(port, requests, arguments.connections, seconds))
            best[name]["per_second"] = max(best[name]["per_second"], done / took)
            best[name]["cpu_ms"] = min(best[name]["cpu_ms"], 1000 * (cpu_seconds(pid) - before) / done)
    return best


def cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def creating(port: int, key: str, rate: int, seconds: float) -> dict[str, float]:
    raw = request("POST", "/v1/videos", key, json.dumps({"prompt": PROMPT}))
    latencies = asyncio.run(open_loop(port, [raw], rate, seconds))
    return percentiles(latencies) | {"accepted": float(len(latencies)), "asked": float(int(rate * seconds))}


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Milliseconds, from seconds."""
    latencies = sorted(latencies)
    return {name: 1000 * latencies[min(len(latencies) - 1, len(latencies) * int(name[1:]) // 100)] for name in SHOWN}


def report(
    polls: dict[str, dict[str, float]], posts: dict[int, dict[str, float]], arguments: argparse.Namespace
) -> str:
    bare = polls["bare, async def"]["per_second"], polls["bare, def"]["per_second"]
    lines = [f"one uvicorn process, {os.cpu_count()} cores, {arguments.connections} polling connections"]
    lines += [f"{'polling':<20}{'per second':>12}{'x async':>9}{'x def':>9}{'CPU ms':>9}"]
    for name, found in polls.items():
        ratios = "".join(f"{found['per_second'] / rate:>9.2f}" for rate in bare)
        lines.append(f"{name:<20}{found['per_second']:>12.0f}{ratios}{found['cpu_ms']:>9.2f}")
    lines += [f"{'creating':<20}" + "".join(f"{name + ' ms':>12}" for name in SHOWN) + f"{'accepted':>12}"]
    for rate, found in posts.items():
        shown = "".join(f"{found[name]:>12.1f}" for name in SHOWN)
        accepted = f"{found['accepted']:.0f}/{found['asked']:.0f}"
        lines.append(f"{f'{rate} per second':<20}{shown}{accepted:>12}")
    return "\n".join(lines)


# --- the load: a minimal client, so that the server is the bottleneck


def request(method: str, path: str, key: str = "", body: str = "") -> bytes:
    headers = ["host: 127.0.0.1", f"authorization: Bearer {key}", f"content-length: {len(body)}"]
    headers += ["content-type: application/json"] if body else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", body]).encode()


class Connection:
    """Keep-alive, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Callable[[bytes], Awaitable[int]]:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self._ask

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def _ask(self, raw: bytes) -> int:
        """Send a request, read the whole response and return its status."""
        if self._reader.at_eof():  # the server has closed the idle connection; reconnect
            self._writer.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(raw)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return int(head[9:12])


async def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> tuple[int, float]:
    """Number of completed requests, and the seconds they took. `requests`: sent in turn."""
    end = time.perf_counter() + seconds
    done = 0

    async def client() -> None:
        nonlocal done
        async with Connection(port) as ask:
            while time.perf_counter() < end:
                done += 1
                status = await ask(requests[done % len(requests)])
                assert status == 200, status

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return done, time.perf_counter() - began


async def open_loop(port: int, requests: Sequence[bytes], rate: int, seconds: float) -> list[float]:
    """Seconds from the scheduled time to the response, of accepted requests. `requests`: sent in turn."""
    idle: asyncio.LifoQueue[Callable[[bytes], Awaitable[int]]] = asyncio.LifoQueue()
    latencies: list[float] = []
    async with _ConnectionPool(port, 64) as connections:
        for connection in connections:
            idle.put_nowait(connection)

        async def one(raw: bytes, due: float) -> None:
            ask = await idle.get()
            if await ask(raw) == 200:
                latencies.append(time.perf_counter() - due)
            idle.put_nowait(ask)

        began = time.perf_counter()
        running: list[asyncio.Task[None]] = []
        for i in range(int(rate * seconds)):
            due = began + i / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            running.append(asyncio.create_task(one(requests[i % len(requests)], due)))
        await asyncio.gather(*running)
    return latencies


class _ConnectionPool:
    def __init__(self, port: int, count: int) -> None:
        self._all = [Connection(port) for _ in range(count)]

    async def __aenter__(self) -> list[Callable[[bytes], Awaitable[int]]]:
        return [await connection.__aenter__() for connection in self._all]

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            await connection.__aexit__()


# --- the servers


@contextmanager
def api_process(redis_url: str, data: Path) -> Iterator[tuple[int, int]]:
    """The port and process id of the API."""
    port = free_port()
    settings = {"REDIS_URL": redis_url, "DATA_DIR": str(data), "PORT": str(port), "MAX_WAITING": "1000000"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IVMIX_")}
    environment |= {f"IVMIX_{name}": value for name, value in settings.items()}
    with _process([sys.executable, "-m", "service.api"], environment, port, "/livez") as pid:
        yield port, pid


@contextmanager
def bare_process(size: int) -> Iterator[tuple[int, int]]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.api_load", "bare", str(port), str(size)]
    with _process(command, dict(os.environ), port, "/async") as pid:
        yield port, pid


@contextmanager
def _process(command: list[str], environment: dict[str, str], port: int, path: str) -> Iterator[int]:
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # one log line per video
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
                break
            except httpx2.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def serve_bare(port: int, size: int) -> None:
    app = FastAPI()
    answer = b'"' + b"x" * (size - 2) + b'"'

    @app.get("/async")
    async def answer_async() -> Response:
        return Response(answer, media_type="application/json")

    @app.get("/def")
    def answer_def() -> Response:
        return Response(answer, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False, server_header=False)


if __name__ == "__main__":
    main()
