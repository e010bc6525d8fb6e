"""Webhooks with released OpenAI SDKs: unwrap in all of them, endpoint management in those that have it."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.settings import Settings
from service.webhooks.signature import SigningSecret, new_secret, signed_headers
from tests.external_programs import run, sdk_node, sdk_python
from tests.webhook_receivers import Receiver

pytestmark = [
    pytest.mark.timeout(1200),  # the first run installs the clients
    pytest.mark.usefixtures("dispatcher"),
]

PYTHON = ["2.8.1", "3.54.0"]
NODE = "7.57.0"

UNWRAP_PY = """
import json, sys
from openai import InvalidWebhookSignatureError, OpenAI
given = json.load(sys.stdin)
def check(secret):
    client = OpenAI(api_key="unused", webhook_secret=secret)
    try:
        event = client.webhooks.unwrap(given["body"], given["headers"])
    except InvalidWebhookSignatureError:
        return None
    return [event.type, event.data.id, event.data.status]
print(json.dumps([check(secret) for secret in given["secrets"]]))
"""

UNWRAP_JS = """
import OpenAI from "openai";
import { readFileSync } from "node:fs";
const given = JSON.parse(readFileSync(0, "utf8"));
const check = async (secret) => {
  const client = new OpenAI({ apiKey: "unused", webhookSecret: secret });
  try {
    const event = await client.webhooks.unwrap(given.body, given.headers);
    return [event.type, event.data.id, event.data.status];
  } catch (e) {
    if (e instanceof OpenAI.InvalidWebhookSignatureError) return null;
    throw e;
  }
};
console.log(JSON.stringify(await Promise.all(given.secrets.map(check))));
"""

MANAGE_PY = """
import json, sys
from openai import NotFoundError, OpenAI
base_url, receiver = sys.argv[1:]
webhooks = OpenAI(api_key="unused", base_url=base_url, max_retries=0).webhooks
made = [webhooks.create(name=str(i), url=receiver, event_types=["video.completed"]) for i in range(5)]
listed = [endpoint.id for endpoint in webhooks.list(limit=2)]  # goes through the pages
updated = webhooks.update(made[0].id, name="renamed", event_types=["video.completed", "video.failed"])
tested = webhooks.test(made[0].id, event_type="video.failed")
rotated = webhooks.rotate_secret(made[0].id, keep_old_secret_active_for_24_hours=True)
plain = webhooks.rotate_secret(made[1].id)
deleted = webhooks.delete(made[4].id)
try:
    webhooks.retrieve(made[4].id)
    raise SystemExit("a deleted endpoint was found")
except NotFoundError as e:
    missing = e.code
print(json.dumps({
    "made": [endpoint.id for endpoint in made],
    "listed": listed,
    "secret": made[0].signing_secret,
    "hint": webhooks.retrieve(made[0].id).signing_secret_hint,
    "updated": [updated.name, updated.event_types, updated.object],
    "tested": [tested.status_code, tested.success, tested.event_type],
    "rotated": rotated.signing_secret,
    "plain": plain.signing_secret != made[1].signing_secret,
    "deleted": [deleted.id, deleted.deleted, deleted.object],
    "missing": missing,
    "types": webhooks.event_types.list().data,
}))
"""

MANAGE_JS = """
import OpenAI from "openai";
const [baseURL, url] = process.argv.slice(2);
const { webhooks } = new OpenAI({ apiKey: "unused", baseURL, maxRetries: 0 });
const made = [];
for (let i = 0; i < 5; i++) {
  made.push(await webhooks.create({ name: String(i), url, event_types: ["video.completed"] }));
}
const listed = [];
for await (const endpoint of webhooks.list({ limit: 2 })) listed.push(endpoint.id);
const updated = await webhooks.update(made[0].id, {
  name: "renamed", event_types: ["video.completed", "video.failed"],
});
const tested = await webhooks.test(made[0].id, { event_type: "video.failed" });
const rotated = await webhooks.rotateSecret(made[0].id, { keep_old_secret_active_for_24_hours: true });
const plain = await webhooks.rotateSecret(made[1].id, {});
const deleted = await webhooks.delete(made[4].id);
let missing = "a deleted endpoint was found";
try { await webhooks.retrieve(made[4].id); } catch (e) { missing = e.code; }
console.log(JSON.stringify({
  made: made.map((endpoint) => endpoint.id),
  listed,
  secret: made[0].signing_secret,
  hint: (await webhooks.retrieve(made[0].id)).signing_secret_hint,
  updated: [updated.name, updated.event_types, updated.object],
  tested: [tested.status_code, tested.success, tested.event_type],
  rotated: rotated.signing_secret,
  plain: plain.signing_secret !== made[1].signing_secret,
  deleted: [deleted.id, deleted.deleted, deleted.object],
  missing,
  types: (await webhooks.eventTypes.list()).data,
}));
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow": ("127.0.0.0/8",), "webhook_allow_http": True})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as opened:
        yield opened


def script(folder: Path, text: str) -> str:
    """Write the script where node finds the package; returns its path."""
    file = folder / f"script-{zlib.crc32(text.encode()):x}.mjs"
    file.write_text(text)
    return str(file)


def sent(server: str, receiver: Receiver) -> tuple[dict[str, Any], str]:
    """A webhook as it was sent over the wire, and the secret that signed it."""
    with httpx2.Client(base_url=server, timeout=60) as http:
        body = {"name": "test", "url": receiver.url, "event_types": ["video.completed"]}
        endpoint = http.post("/v1/webhook_endpoints", json=body).json()
        http.post(f"/v1/webhook_endpoints/{endpoint['id']}/test", json={"event_type": "video.completed"})
    (got,) = receiver.received
    return {"body": got.body.decode(), "headers": got.headers}, endpoint["signing_secret"]


def assert_unwraps(given: dict[str, Any], secret: str, printed: str) -> None:
    video_id = json.loads(given["body"])["data"]["id"]
    assert json.loads(printed) == [["video.completed", video_id, "completed"], None]
    assert given["secrets"][0] == secret


@pytest.mark.sample(1)
@pytest.mark.parametrize("version", PYTHON)
def test_the_python_sdk_unwraps_what_we_send(server: str, receiver: Receiver, version: str) -> None:
    given, secret = sent(server, receiver)
    given["secrets"] = [secret, new_secret().value]
    assert_unwraps(given, secret, run(str(sdk_python(version)), "-c", UNWRAP_PY, stdin=json.dumps(given)))


def test_the_node_sdk_unwraps_what_we_send(server: str, receiver: Receiver) -> None:
    given, secret = sent(server, receiver)
    given["secrets"] = [secret, new_secret().value]
    node, folder = sdk_node(NODE)
    assert_unwraps(given, secret, run(str(node), script(folder, UNWRAP_JS), stdin=json.dumps(given)))


@pytest.mark.sample(1)
@pytest.mark.parametrize("version", PYTHON)
def test_the_python_sdk_accepts_either_secret_after_a_rotation(version: str) -> None:
    old, new = new_secret(), new_secret()
    body = '{"id":"evt_1","object":"event","type":"video.failed","data":{"id":"video_1","status":"failed"}}'
    secrets = (new, SigningSecret(value=old.value, expires_at=time.time() + 3600))
    headers = signed_headers(secrets, webhook_id="whd_1", timestamp=int(time.time()), body=body.encode())
    given = {"body": body, "headers": headers, "secrets": [old.value, new.value, new_secret().value]}
    printed = run(str(sdk_python(version)), "-c", UNWRAP_PY, stdin=json.dumps(given))
    assert json.loads(printed) == [["video.failed", "video_1", "failed"]] * 2 + [None]


def assert_managed(printed: str, receiver: Receiver) -> None:
    result = json.loads(printed)
    assert result["listed"] == result["made"][::-1]
    assert result["updated"] == ["renamed", ["video.completed", "video.failed"], "webhook_endpoint"]
    assert result["tested"] == [204, True, "video.failed"]
    assert result["rotated"] != result["secret"]
    assert result["hint"].endswith(result["rotated"][-4:])
    assert result["plain"] is True
    assert result["deleted"] == [result["made"][4], True, "webhook_endpoint.deleted"]
    assert result["missing"] == "webhook_endpoint_not_found"
    assert result["types"] == ["video.completed", "video.failed"]
    assert [got.event(result["secret"]).type for got in receiver.received] == ["video.failed"]


def test_the_python_sdk_manages_endpoints(server: str, receiver: Receiver) -> None:
    python = str(sdk_python("3.54.0"))
    assert_managed(run(python, "-c", MANAGE_PY, f"{server}/v1", receiver.url), receiver)


def test_the_node_sdk_manages_endpoints(server: str, receiver: Receiver) -> None:
    node, folder = sdk_node(NODE)
    assert_managed(run(str(node), script(folder, MANAGE_JS), f"{server}/v1", receiver.url), receiver)
