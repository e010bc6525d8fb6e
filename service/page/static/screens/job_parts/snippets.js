/** The request of a video as code, to copy. A test runs each of them. */

/** @typedef {{base: string, body: object, needsKey: boolean}} Request base: URL that ends in /v1 */

/** A JSON object with one line per field, which every language here reads. */
function pretty(object, indent) {
  const fields = Object.entries(object).map(([name, value]) => `${indent}  ${JSON.stringify(name)}: ${spaced(value)}`)
  return fields.length ? `{\n${fields.join(',\n')}\n${indent}}` : '{}'
}

/** JSON in one line, with spaces at which it can be wrapped. */
function spaced(value) {
  if (Array.isArray(value)) return `[${value.map(spaced).join(', ')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value)
  return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${spaced(inner)}`).join(', ')}}`
}

/** @param {Request} request */
export function curl({ base, body, needsKey }) {
  const key = needsKey ? ` \\\n  -H "authorization: Bearer $IVMIX_API_KEY"` : ''
  const data = pretty(body, '').replaceAll("'", String.raw`'\''`)
  return `curl -sS ${base}/videos \\\n  -H 'content-type: application/json'${key} \\\n  -d '${data}'\n`
}

/** @param {Request} request */
export function python({ base, body, needsKey }) {
  const { model, prompt, ...extra } = body
  const key = needsKey ? 'os.environ["IVMIX_API_KEY"]' : '"unused"'
  return `${needsKey ? 'import os\n\n' : ''}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})
video = client.videos.create_and_poll(
    model=${JSON.stringify(model)},
    prompt=${JSON.stringify(prompt)},
    extra_body=${pretty(extra, '    ')},
)
client.videos.download_content(video.id).write_to_file("out.mp4")
`
}

/** @param {Request} request */
export function javascript({ base, body, needsKey }) {
  const key = needsKey ? ', authorization: `Bearer ${process.env.IVMIX_API_KEY}`' : ''
  return `import { writeFile } from "node:fs/promises";

const url = ${JSON.stringify(`${base}/videos`)};
const headers = { "content-type": "application/json"${key} };
const body = JSON.stringify(${pretty(body, '')});
const read = async (response) => {
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response;
};
let video = await (await read(await fetch(url, { method: "POST", headers, body }))).json();
while (video.status === "queued" || video.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  video = await (await read(await fetch(\`\${url}/\${video.id}\`, { headers }))).json();
}
if (video.status === "failed") throw new Error(video.error.message);
const content = await read(await fetch(\`\${url}/\${video.id}/content\`, { headers }));
await writeFile("out.mp4", Buffer.from(await content.arrayBuffer()));
`
}
