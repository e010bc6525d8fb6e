"""`ivmix submit`, `list`, `get`, `wait`, `cancel` and `download` against a real server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.client import RequestError, Video, VideoClient, VideoFailedError
from service.cli.main import app
from service.jobs.sampler_settings import USES
from service.settings import Settings
from tests.api_calls import services_for
from tests.conftest import serve
from tests.factories import PROMPT
from tests.faulty_proxy import FaultyProxy
from tests.page.site import models_with_loras
from tests.processes import clean_environment
from tests.reference_calls import PICTURE
from tests.terminal import Terminal

Finish = Callable[[str, bytes], None]


class Cli:
    """`ivmix` in this process, with the server's URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, status: int = 0) -> str:
        run = CliRunner().invoke(app, [*arguments, "--url", self.url], catch_exceptions=False)
        assert run.exit_code == status, run.output
        return run.stdout.strip()


@pytest.fixture
def cli(server: str) -> Cli:
    return Cli(server)


def test_a_detached_video_is_listed_shown_and_cancelled(cli: Cli) -> None:
    ids = [cli("submit", f"{PROMPT} {word}", "--detach", "--seed", "5") for word in ("up", "down")]
    first, second = ids
    table = cli("list")
    assert table.index(second) < table.index(first)
    assert "queued" in table
    assert [video["id"] for video in json.loads(cli("list", "--limit", "1", "--json"))["data"]] == [second]
    assert json.loads(cli("get", first))["seed"] == 5
    assert cli("cancel", *ids) == f"{first}: cancelled\n{second}: cancelled"
    assert first not in cli("list", "--status", "queued,in_progress")


def test_a_longer_list_says_how_it_goes_on(cli: Cli) -> None:
    first, second = (cli("submit", PROMPT, "-d") for _ in range(2))
    run = CliRunner().invoke(app, ["list", "--limit", "1", "--url", cli.url])
    assert f"ivmix list --after {second}" in run.stderr
    assert first in cli("list", "--after", second)


def test_options_of_a_request_reach_the_server(cli: Cli) -> None:
    options = ("--steps", "9", "--guidance", "3", "--fps", "4", "--negative-prompt", "", "--frames", "8")
    sampler = ("--sampler", "zigzag", "--interval", "0.25", "0.75", "--goback-guidance", "0.5")
    cache = ("--cache", '{"name": "deep-cache", "levels": 2}')
    video = json.loads(cli("get", cli("submit", PROMPT, "-d", *options, *sampler, *cache)))
    assert video["cache"] == {"name": "deep-cache", "steps": 1, "levels": 2}
    found = [video[name] for name in ("num_inference_steps", "guidance_scale", "fps", "negative_prompt", "num_frames")]
    assert found == [9, 3, 4, "", 8]
    chosen = video["sampler"]
    assert (chosen["name"], chosen["interval"], chosen["goback_guidance"]) == ("zigzag", [0.25, 0.75], 0.5)


def test_several_videos_are_listed_and_downloaded(cli: Cli, finished: Finish, tmp_path: Path) -> None:
    ids = cli("submit", PROMPT, "-d", "--num-videos", "2", "--clip-skip", "1", "--seed", "5").split()
    assert [json.loads(cli("get", video_id))["seed"] for video_id in ids] == [5, 6]
    assert json.loads(cli("get", ids[1]))["clip_skip"] == 1
    with VideoClient(cli.url) as client, ThreadPoolExecutor(1) as pool:
        command = ("submit", PROMPT, "--num-videos", "3", "-o", str(tmp_path / "v.mp4"))
        run = pool.submit(CliRunner().invoke, app, [*command, "--url", cli.url])
        while len(new := client.list(status="queued")["data"]) < 5:
            time.sleep(0.02)
        client.cancel(new[1]["id"])
        for video, content in ((new[2], b"first"), (new[0], b"third")):
            finished(video["id"], content)
        assert isinstance(run.result().exception, VideoFailedError)  # at the end
    made = {file.name: file.read_bytes() for file in tmp_path.glob("v-*.mp4")}
    assert made == {"v-1.mp4": b"first", "v-3.mp4": b"third"}


def test_a_picture_and_loras_reach_the_server_for_several_videos(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(PICTURE)
    changed = settings.model_copy(update={"models_file": models_with_loras(tmp_path)})
    with services_for(changed) as services, serve(services) as url:
        cli = Cli(url)
        chosen = ("--lora", "ink:0.5", "--lora", "zoom", "--num-videos", "2")
        given = ("--input-reference", str(file), "--strength", "0.5", *chosen)
        for video_id in cli("submit", PROMPT, "-d", *given).split():
            video = json.loads(cli("get", video_id))
            assert [(lora["name"], lora["scale"]) for lora in video["loras"]] == [("ink", 0.5), ("zoom", 1.0)]
            assert video["input_reference"]["strength"] == 0.5
        with pytest.raises(RequestError, match="no LoRA 'inc'; did you mean 'ink'"):
            cli("submit", PROMPT, "-d", "--lora", "inc")
    wrong = CliRunner().invoke(app, ["submit", PROMPT, "--input-reference", "cat.png"])
    assert (wrong.exit_code, "'cat.png' is neither a file nor" in wrong.output) == (2, True)


def test_help_names_every_sampler_and_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["submit", "--help"]).output
    assert all(name in shown for name in USES)
    settings = {f"--{name.replace('_', '-')}" for names in USES.values() for name in names}
    further = " ".join(shown[shown.index("--set") :].split())  # its text names them
    assert all(option in shown or option[2:].replace("-", "_") in further for option in settings)


def test_any_setting_can_be_set_by_its_name(cli: Cli) -> None:
    chosen = ("--sampler", "evs", "--set", "enlarge=1.5", "--set", "image-interval=0.2,0.6", "--image-every", "2")
    sampler = json.loads(cli("get", cli("submit", PROMPT, "-d", *chosen)))["sampler"]
    assert (sampler["enlarge"], sampler["image_interval"], sampler["image_every"]) == (1.5, [0.2, 0.6], 2)
    apg = ("--sampler", "ddim", "--set", "guidance_rule=apg", "--set", "apg_eta=1")
    assert json.loads(cli("get", cli("submit", PROMPT, "-d", *apg)))["sampler"]["apg_eta"] == 1
    with pytest.raises(RequestError, match="large"):
        cli("submit", PROMPT, "-d", "--set", "large=2")
    for given, complaint in (("enlarge", "must be NAME=VALUE"), ("=2", "must be NAME=VALUE")):
        assert complaint in CliRunner().invoke(app, ["submit", PROMPT, "-d", "--set", given, "--url", cli.url]).output


def test_wait_downloads_a_completed_video_or_says_why_there_is_none(cli: Cli, finished: Finish, tmp_path: Path) -> None:
    done, ended, cancelled = (cli("submit", PROMPT, "-d") for _ in range(3))
    finished(done, b"video")
    out = tmp_path / "out.mp4"
    assert cli("wait", done, "-o", str(out)) == str(out)
    assert out.read_bytes() == b"video"
    cli("download", done, "-o", str(tmp_path / "again.mp4"))
    assert (tmp_path / "again.mp4").read_bytes() == b"video"
    assert not list(tmp_path.glob(".*.part"))
    cli("cancel", cancelled)
    with pytest.raises(VideoFailedError, match="cancelled"):
        cli("wait", cancelled)
    with pytest.raises(RequestError, match=ended):
        cli("download", ended, "-o", str(tmp_path / "none.mp4"))
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.parametrize("output", ["absent/out.mp4", "."])
def test_output_that_cannot_be_written_is_refused_before_sending(cli: Cli, output: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--output"):
        cli("submit", PROMPT, "-o", str(tmp_path / output))
    assert json.loads(cli("list", "--json"))["data"] == []


def test_waiting_survives_a_server_that_does_not_answer_for_a_while(
    server: str, finished: Finish, tmp_path: Path
) -> None:
    video_id = Cli(server)("submit", PROMPT, "-d")
    with FaultyProxy(server, "GET") as proxy, VideoClient(proxy.url) as client:
        client.get(video_id)
        proxy.faults.extend(["drop", "503", "cut"])
        said: list[str] = []

        def end(video: Video) -> None:
            said.append(str(video["status"]))
            if said.count("queued") == 1:
                finished(video_id, b"video")

        client.wait(video_id, end)
        proxy.faults.extend(["drop", "503"])
        client.download(video_id, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"video"
    assert said.count("the server does not answer, trying again") == 3


def test_a_server_that_stays_away_ends_the_wait_with_a_sentence(server: str) -> None:
    video_id = Cli(server)("submit", PROMPT, "-d")
    with FaultyProxy(server, "GET") as proxy, VideoClient(proxy.url, retry_s=0.5) as client:
        client.get(video_id)
        proxy.faults.extend(["drop"] * 50)
        with pytest.raises(RequestError, match="did not respond"):
            client.wait(video_id, lambda _: None)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:9", "no server at http://127.0.0.1:9"),
        ("ftp://127.0.0.1", "looks like http"),
        ("http://[::1", "is not a URL"),
    ],
)
def test_a_wrong_url_is_one_sentence(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=message), VideoClient(url) as client:
        client.create({"prompt": PROMPT})


@pytest.mark.parametrize("answer", ["y", "n"])
def test_ctrl_c_offers_to_cancel(server: str, answer: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "submit", PROMPT, "--url", server]
    with Terminal(command, cwd=tmp_path, env=clean_environment()) as terminal:
        terminal.read_until("video_")
        [video] = json.loads(Cli(server)("list", "--json"))["data"]
        terminal.read_until("queued")
        time.sleep(0.3)  # it polls
        terminal.press("\x03")
        terminal.read_until("Cancel it?")
        terminal.press(f"{answer}\n")
        assert terminal.wait() == 130
        assert f"ivmix wait {video['id']} -o video.mp4" in terminal.text
    status = json.loads(Cli(server)("get", video["id"]))["status"]
    assert status == ("failed" if answer == "y" else "queued")


def test_a_second_ctrl_c_at_the_question_leaves_the_job_alone(server: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "submit", PROMPT, "--url", server]
    with Terminal(command, cwd=tmp_path, env=clean_environment()) as terminal:
        terminal.read_until("queued")
        time.sleep(0.3)
        terminal.press("\x03")
        terminal.read_until("Cancel it?")
        terminal.press("\x03")
        assert terminal.wait() != 0
        assert "Traceback" not in terminal.text
    assert json.loads(Cli(server)("list", "--json"))["data"][0]["status"] == "queued"
