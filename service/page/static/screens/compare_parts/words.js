/** What a comparison calls samplers and settings. */

import { LEFT_OUT } from '../create_parts/form.js'
import { OF_RULE, SAMPLERS } from '../create_parts/sampler.js'

/** The sampler in a few words. `sampler` may lack settings, as in a request. */
export function samplerTitle(sampler) {
  if (sampler.name === 'ddim') return sampler.network === 'image' ? 'Image network alone' : 'Video network alone'
  return SAMPLERS[sampler.name]?.[0] ?? sampler.name
}

const WORDS = {
  prompt: 'Prompt',
  seed: 'Seed',
  model: 'Model',
  size: 'Size',
  num_frames: 'Frames',
  fps: 'Frames per second',
  num_inference_steps: 'Steps',
  guidance_scale: 'Guidance',
  negative_prompt: 'Negative prompt',
  loras: 'LoRAs',
  clip_skip: 'CLIP layers skipped',
  approximations: 'Approximate',
  name: 'Sampler',
  network: 'Network',
  grid: 'Step ends',
  solver: 'Solver',
  combination: 'Combination',
  order: 'Order',
  interval: 'Interval',
  image_guidance: 'Image guidance',
  video_guidance: 'Video guidance',
  interval_guidance: 'Guidance in the interval',
  rho: 'Rho',
  image_frames: 'Image network on latent frames',
  image_every: 'Image network in every n-th step',
  goback_guidance: 'Guidance of the way back',
  iterations: 'Iterations',
  image_interval: 'Image steps',
  enlarge: 'Enlarged',
  image_step_guidance: 'Guidance of the image steps',
  guidance_rule: 'Guidance rule',
  apg_eta: 'APG: parallel part',
  apg_norm_threshold: 'APG: greatest length',
  apg_momentum: 'APG: momentum',
  zero_init_steps: 'CFG-Zero*: empty first steps',
  active_steps: 'Active steps',
  zz: 'Video instead of image in every n-th step',
}

const OF_VIDEO = ['prompt', 'seed', 'model', 'size', 'num_frames', 'fps', 'num_inference_steps', 'guidance_scale', 'negative_prompt']

const text = (value) => (Array.isArray(value) ? value.join(' to ') : String(value))

/** The settings of a video in words; of the sampler those that it reads. */
function settingsOf(video, models) {
  const model = models.find(({ id }) => id === video.model)
  const reads = model?.sampler_settings[video.sampler.name] ?? Object.keys(video.sampler)
  const loras = video.loras?.map((lora) => `${lora.name} ${lora.scale} (${lora.networks.join(' and ')})`).join(', ')
  const own = [
    ...OF_VIDEO.map((name) => [name, video[name]]),
    ['loras', loras || undefined],
    ['clip_skip', video.clip_skip || undefined],
    ['approximations', video.approximations?.join(', ') || undefined],
  ]
  const rule = video.sampler.guidance_rule ?? LEFT_OUT.guidance_rule
  const read = reads.filter((name) => (OF_RULE[name] ?? rule) === rule)
  const sampler = ['name', ...read].map((name) => [name, video.sampler[name] ?? LEFT_OUT[name]])
  return Object.fromEntries([...own, ...sampler].filter(([, value]) => value !== undefined && value !== null))
}

/**
 * What two or more videos have in common, and in what they differ.
 * @returns {{same: [string, string][], different: [string, (string | null)[]][]}} names in words with their values
 */
export function settingsCompared(videos, models) {
  const all = videos.map((video) => settingsOf(video, models))
  const rows = Object.keys(WORDS)
    .map((name) => [WORDS[name], all.map((settings) => (name in settings ? text(settings[name]) : null))])
    .filter(([, values]) => values.some((value) => value !== null))
  const isSame = ([, values]) => values.every((value) => value === values[0])
  return { same: rows.filter(isSame).map(([name, [value]]) => [name, value]), different: rows.filter((row) => !isSame(row)) }
}

/**
 * A title for each video. If two have the same sampler, the title also names the settings in which they differ.
 * @returns {Map<string, string>} by id
 */
export function titlesOf(videos, models) {
  const titles = new Map()
  for (const video of videos) {
    const alike = videos.filter((other) => samplerTitle(other.sampler) === samplerTitle(video.sampler))
    const { different } = settingsCompared(alike, models)
    const details = different.slice(0, 2).map(([name, values]) => `${name.toLowerCase()} ${values[alike.indexOf(video)] ?? 'none'}`)
    titles.set(video.id, [samplerTitle(video.sampler), ...details].join(', '))
  }
  return titles
}
