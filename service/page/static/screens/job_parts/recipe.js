/** All settings of a video, and where its time went. */

import { html } from '../../vendor/preact-htm.js'
import { ago, seconds } from '../../parts.js'
import { SAMPLERS } from '../create_parts/sampler.js'

const words = (value) => (Array.isArray(value) ? value.join(' to ') : String(value))
const pretty = (name) => name.replaceAll('_', ' ')
const when = (unix) => new Date(1000 * unix).toLocaleString()

/** @param {{video: object, model: object | undefined}} props */
export function Recipe({ video, model }) {
  const reads = model?.sampler_settings[video.sampler.name]
  const settings = Object.entries(video.sampler).filter(([name]) => name !== 'name' && (!reads || reads.includes(name)))
  const calls = video.network_calls ? Object.entries(video.network_calls) : []
  const rows = [
    ['Model', video.model],
    ['Size', video.size.replace('x', ' × ')],
    ['Length', `${seconds(video.duration_s)}, ${video.num_frames} frames at ${video.fps} fps`],
    ['Seed', html`<span class="number">${video.seed}</span>`],
    ['Steps', video.num_inference_steps],
    ['Guidance', video.guidance_scale],
    ...(video.clip_skip ? [['CLIP layers skipped', video.clip_skip]] : []),
    ['Sampler', (SAMPLERS[video.sampler.name]?.[0] ?? video.sampler.name) + (video.experimental ? ', experimental' : '')],
    ...settings.map(([name, value]) => [html`<span class="sub">${pretty(name)}</span>`, words(value)]),
    ...(video.loras ?? []).map((lora) => [html`<span class="sub">LoRA ${lora.name}</span>`, `${lora.scale}, ${lora.networks.join(' and ')} network`]),
    ...(video.approximations?.length ? [['Approximate', approximateWords(video)]] : []),
    ['Network calls', calls.map(([network, count]) => `${count} ${network}`).join(', ')],
    ...(video.input_reference ? [['Starts from', startWords(video.input_reference)]] : []),
    ['Negative prompt', video.negative_prompt || '–'],
    ...(video.priority === 'normal' ? [] : [['Priority', video.priority]]),
    ...(video.user ? [['User', video.user]] : []),
    ...Object.entries(video.metadata),
    ...(video.remixed_from_video_id ? [['Made from', html`<a href="#/videos/${video.remixed_from_video_id}">another video</a>`]] : []),
    ['Created', html`<time title=${when(video.created_at)}>${ago(video.created_at)}</time>`],
    ...(video.expires_at ? [['Kept until', when(video.expires_at)]] : []),
    ['Id', html`<code>${video.id}</code>`],
  ]
  return html`<dl class="facts recipe">${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`
}

function approximateWords({ approximations, cache }) {
  const settings = Object.entries(cache ?? {}).filter(([name]) => name !== 'name')
  return [approximations.join(', '), ...settings.map(([name, value]) => `${pretty(name)} ${value}`)].join(', ')
}

function startWords({ type, use, strength, conditioning_scale: scale }) {
  const what = type === 'image' ? 'a picture' : 'a clip'
  return use === 'start' ? `${what}, strength ${strength}` : `${what}, kept as first frame, scale ${scale}`
}

const STAGES = {
  text_encode_gen_ms: 'Text',
  denoise_gen_ms: 'Sampling',
  vae_decode_gen_ms: 'Decoding',
  upload_ms: 'Storing',
}

/** @param {{video: object}} props */
export function Timings({ video }) {
  const stages = Object.entries(video.stage_durations).map(([name, ms]) => [STAGES[name] ?? pretty(name.replace(/_ms$/, '')), ms / 1000])
  if (stages.length === 0) return null
  const total = stages.reduce((sum, [, time]) => sum + time, 0)
  return html`<section class="card stack" aria-labelledby="timings">
    <div class="row between"><h2 id="timings">Timings</h2>${total > 0 && html`<span class="number muted">${seconds(total)}</span>`}</div>
    ${total > 0 && html`<div class="timings" aria-hidden="true">${stages.map(([name, time]) => html`<span key=${name} style=${{ flexGrow: time / total }}></span>`)}</div>`}
    <dl class="legend number">
      ${stages.map(([name, time]) => html`<div key=${name}><dt>${name}</dt><dd>${seconds(time)}</dd></div>`)}
      ${video.queue_time_s !== null && html`<div class="waited"><dt>Waited before</dt><dd>${seconds(video.queue_time_s)}</dd></div>`}
    </dl>
    <p class="hint">${attempts(video)}</p>
  </section>`
}

function attempts(video) {
  const memory = video.peak_memory_mb ? ` Peak memory ${Math.round(video.peak_memory_mb)} MB.` : ''
  if (video.attempt <= 1) return `One attempt.${memory}`
  return `${video.attempt} attempts: earlier ones lost their worker; a later one went on from the last checkpoint.${memory}`
}
