/**
 * The form of Create: what a person has changed, and the request that this makes. What is not changed is not sent, so
 * that the model's own settings apply; the server alone decides what a request means.
 */

import { referenceFields } from './reference.js'

/** Prompts to try with a model that names none itself. */
export const EXAMPLES = [
  'A paper boat drifting down a narrow stream, macro shot, morning light',
  'A lighthouse on a cliff at dusk, waves breaking below, slow aerial shot',
  'A fox walking through fresh snow towards the camera',
  'Steam rising from a cup of tea by a window on a rainy day',
]

const NUMBERS = ['num_frames', 'fps', 'num_inference_steps', 'guidance_scale', 'seed', 'clip_skip', 'num_videos']
const TEXTS = ['size', 'negative_prompt', 'priority', 'callback_url', 'cache']

/** An unchanged form for a model. */
export const emptyForm = (model, prompt = '') => ({ model: model.id, prompt, sampler: {}, metadata: [] })

// What the API leaves out of the sampler in its responses, because it is the default of the API.
export const LEFT_OUT = {
  network: 'video',
  grid: 'adjacent',
  solver: 'ddim',
  guidance_rule: 'cfg',
  apg_eta: 0,
  apg_norm_threshold: 15,
  apg_momentum: -0.5,
  zero_init_steps: 1,
  image_interval: [0.5, 1],
}

/** A setting of the sampler: the person's, else the model's. */
export const samplerValue = (form, model, name) => form.sampler[name] ?? model.sampler[name] ?? LEFT_OUT[name]

/** The name of the sampler that the form asks for. */
export const samplerName = (form, model) => samplerValue(form, model, 'name')

/** The form after the choice of another sampler; settings that it does not read are dropped. */
export function withSampler(form, model, name) {
  const kept = Object.entries(form.sampler).filter(([setting]) => model.sampler_settings[name]?.includes(setting))
  return { ...form, sampler: { ...Object.fromEntries(kept), name } }
}

/** The body of POST /v1/videos. Numbers that cannot be read are sent as they are; the server says what is wrong. */
export function requestBody(form) {
  const body = { model: form.model, prompt: form.prompt }
  for (const name of NUMBERS) if (isGiven(form[name])) body[name] = asNumber(form[name])
  for (const name of TEXTS) if (isGiven(form[name]) || name in form && name === 'negative_prompt') body[name] = form[name]
  if (Object.keys(form.sampler).length) body.sampler = form.sampler
  Object.assign(body, referenceFields(form))
  Object.assign(body, loraFields(form))
  const pairs = form.metadata.filter(([name]) => name.trim())
  if (pairs.length) body.metadata = Object.fromEntries(pairs)
  return body
}

/** Without a scale, the server takes that of the LoRA. */
const loraBody = ({ scale, ...lora }) => (isGiven(scale) ? { ...lora, scale: asNumber(scale) } : lora)

/** The chosen LoRAs as a part of the request. */
export const loraFields = ({ loras }) => (loras?.length ? { loras: loras.map(loraBody) } : {})

export const isGiven = (value) => value !== undefined && value !== null && value !== ''

/** A number if the text is one, for fields and pairs. */
export function asNumber(text) {
  const number = Number(text)
  return String(text).trim() === '' || Number.isNaN(number) ? text : number
}

/** The form with all settings of a video, to change some of them. */
export function formOf(video, model) {
  const reads = model?.sampler_settings[video.sampler.name] // unknown while no worker can load the model
  const settings = Object.entries(video.sampler).filter(([name]) => name === 'name' || !reads || reads.includes(name))
  const others = Object.entries(LEFT_OUT).filter(([name]) => reads?.includes(name) && name in model.sampler)
  return {
    model: video.model,
    prompt: video.prompt ?? '',
    sampler: Object.fromEntries([...others, ...settings]), // a default of the model would apply to what is not sent
    metadata: Object.entries(video.metadata),
    loras: video.loras,
    cache: video.cache ?? undefined, // with its settings, until another one is chosen
    kept: video.input_reference && { id: video.id, ...video.input_reference }, // run_again has the file
    strength: video.input_reference?.strength ?? undefined,
    priority: video.priority === 'normal' ? undefined : video.priority,
    ...Object.fromEntries([...NUMBERS, 'size', 'negative_prompt'].map((name) => [name, video[name]])),
    clip_skip: video.clip_skip === (model?.clip_skip ?? 0) ? undefined : video.clip_skip,
  }
}

/** The request that makes the same video again, without what is a label only, and without its picture. */
export function recipeOf(video, model) {
  const { metadata: _metadata, priority: _priority, kept: _kept, strength: _strength, ...form } = formOf(video, model)
  return requestBody({ ...form, metadata: [] })
}
