"""A running service for tests of the page: two HTTP servers, one of which wants API keys, a Valkey and a worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from service.settings import MODELS_FILE, Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.dispatching import dispatching
from tests.processes import finished_video, started
from tests.valkey import Valkey

PROMPT = "a red circle moving right on a teal background"


@dataclass(frozen=True)
class Site:
    """`url` needs no API key, `keyed_url` does; both show the same queue and storage."""

    url: str
    keyed_url: str
    services: Services
    http: httpx2.Client
    hold: Path

    def create(self, **fields: Any) -> dict[str, Any]:
        """A new video of the server without keys, as POST /v1/videos returns it. 4 steps unless given."""
        answer = self.http.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 4} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def finished(self, **fields: Any) -> dict[str, Any]:
        """A new video when its worker is done."""
        return finished_video(self.http, self.create(**fields)["id"])

    def new_key(self, name: str, **options: Any) -> str:
        """An API key for `keyed_url`."""
        return self.services.keys.create(name, **options)[1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """The worker stops after the next step of its job until the end of this block; cancelling works."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink()


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Receivers of webhooks may be on loopback."""
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        settings = Settings(
            redis_url=valkey.url,
            data_dir=folder / "data",
            models_file=models_with_loras(folder),
            auth="off",
            webhook_allow=("127.0.0.0/8",),
            webhook_allow_http=True,
        )
        services = open_services(settings)
        keyed = open_services(settings.model_copy(update={"auth": "keys"}))
        stack.callback(services.close)
        stack.callback(keyed.close)
        stack.callback(wait_for_event_threads)
        hold = folder / "hold"
        environment = {
            "IVMIX_REDIS_URL": valkey.url,
            "IVMIX_DATA_DIR": str(settings.data_dir),
            "FAKE_HOLD": str(hold),
        }
        stack.enter_context(started(environment, "tests.page.worker"))
        stack.enter_context(dispatching(services))
        url, keyed_url = stack.enter_context(serve(services)), stack.enter_context(serve(keyed))
        http = stack.enter_context(httpx2.Client(base_url=url, timeout=30, trust_env=False))
        yield Site(url, keyed_url, services, http, hold)


def models_with_loras(folder: Path) -> Path:
    """The registry, with two LoRAs of the demo models that requests may choose."""
    text = MODELS_FILE.read_text().replace("../../demo/weights", str(MODELS_FILE.parents[2] / "demo" / "weights"))
    tables = [f'[sources.own]\nfolder = "{folder}"']
    for name, rest in (("ink", 'scale = 0.8\ndescription = "Ink drawings."\ntrigger_words = ["inked"]'), ("zoom", "")):
        (folder / f"{name}.safetensors").touch()
        tables.append(f'[[models.demo.selectable_loras]]\nname = "{name}"\nfile = "own/{name}.safetensors"\n{rest}')
    file = folder / "models.toml"
    file.write_text("\n".join([text, *tables]))
    return file


def wait_for_event_threads() -> None:
    """They end when their last client has left, and read from Valkey until then."""
    for thread in threading.enumerate():
        if thread.name == "events":
            thread.join(5)
