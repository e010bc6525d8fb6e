// What an application does with the openai package: BASE_URL API_KEY
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const PROMPT = "a red circle moving right on a teal background";

async function ended(id) {
  for (;;) {
    const video = await client.videos.retrieve(id);
    if (video.status === "completed" || video.status === "failed") return video;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const made = await client.videos.create({
  prompt: PROMPT, model: "demo", seconds: "1", size: "384x384", seed: 5, num_inference_steps: 2, sampler: { name: "ddim" },
});
assert.equal(made.seconds, "1");
assert.equal(made.sampler.name, "ddim");
const done = await ended(made.id);
assert.deepEqual([done.status, done.progress, done.error], ["completed", 100, null]);

const video = Buffer.from(await (await client.videos.downloadContent(made.id)).arrayBuffer());
assert.equal(video.subarray(4, 8).toString(), "ftyp");
const thumbnail = await client.videos.downloadContent(made.id, { variant: "thumbnail" });
assert.equal(thumbnail.headers.get("content-type"), "image/webp");

const remix = await client.videos.remix(made.id, { prompt: "a blue square moving up on a pink background" });
assert.deepEqual([remix.remixed_from_video_id, remix.seed], [made.id, 5]);
assert.equal((await ended(remix.id)).status, "completed");

const listed = [];
for await (const video of client.videos.list({ limit: 1 })) listed.push(video.id);
assert.deepEqual(listed, [remix.id, made.id]);
assert.equal((await client.models.retrieve("demo")).id, "demo");

for (const id of listed) assert.equal((await client.videos.delete(id)).deleted, true);
await assert.rejects(client.videos.retrieve(made.id), (e) => e.status === 404 && e.code === "video_not_found");
await assert.rejects(client.videos.create({ prompt: PROMPT, size: "720x1280" }), (e) => e.status === 400 && e.param === "size");
console.log("well");
