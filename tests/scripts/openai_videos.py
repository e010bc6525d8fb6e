"""What an application does with the openai SDK; run by the Python of each SDK version: BASE_URL API_KEY FOLDER."""

import sys
import warnings
from pathlib import Path

import openai

warnings.simplefilter("ignore", DeprecationWarning)  # said of OpenAI's own, closed service

base_url, api_key, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
PROMPT = "a red circle moving right on a teal background"
client = openai.OpenAI(base_url=base_url, api_key=api_key)

extras = {"seed": 5, "num_inference_steps": 2, "sampler": {"name": "ddim"}, "metadata": {"from": openai.__version__}}
made = client.videos.create(prompt=PROMPT, model="demo", seconds="1", size="384x384", extra_body=extras)
assert made.status in ("queued", "in_progress"), made
assert (made.seconds, made.size, made.model_extra["metadata"]) == ("1", "384x384", {"from": openai.__version__}), made
done = client.videos.poll(made.id, poll_interval_ms=200)
assert (done.status, done.progress, done.error) == ("completed", 100, None), done

file = folder / f"{openai.__version__}.mp4"
client.videos.download_content(done.id).write_to_file(file)
assert file.read_bytes()[4:8] == b"ftyp"
assert client.videos.download_content(done.id, variant="thumbnail").read()[8:12] == b"WEBP"
assert client.videos.download_content(done.id, variant="spritesheet").read()[:2] == b"\xff\xd8"

remix = client.videos.remix(done.id, prompt="a blue square moving up on a pink background")
assert (remix.remixed_from_video_id, remix.model_extra["seed"]) == (done.id, 5), remix
assert client.videos.poll(remix.id, poll_interval_ms=200).status == "completed"
whole = client.videos.create_and_poll(prompt=PROMPT, poll_interval_ms=200, extra_body={"num_inference_steps": 1})
assert whole.status == "completed", whole

mine = [whole.id, remix.id, made.id]
assert [video.id for video in client.videos.list(limit=1)] == mine, "auto-pagination, newest first"
assert [video.id for video in client.videos.list(limit=2, order="asc")] == mine[::-1]
assert [model.id for model in client.models.list()] == ["demo"]
assert client.models.retrieve("demo").id == "demo"

named = {"extra_headers": {"Idempotency-Key": f"once {openai.__version__}"}, "extra_body": {"num_inference_steps": 1}}
first, again = (client.videos.create(prompt=PROMPT, **named) for _ in range(2))
assert first.id == again.id
client.videos.poll(first.id, poll_interval_ms=200)

for video_id in [first.id, *mine]:
    assert client.videos.delete(video_id).deleted is True
assert list(client.videos.list()) == []

for call, error in (
    (lambda: client.videos.retrieve(made.id), openai.NotFoundError),
    (lambda: client.videos.create(prompt=PROMPT, size="720x1280"), openai.BadRequestError),
    (lambda: client.with_options(api_key="wrong").videos.list(), openai.AuthenticationError),
):
    try:
        call()
    except error as e:
        assert e.code, e
        assert e.request_id, e
    else:
        raise AssertionError(f"no {error.__name__}")
print("well")
