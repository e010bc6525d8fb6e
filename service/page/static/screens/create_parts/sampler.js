/** Sampler and its settings. Which sampler reads which setting is what the server says. */

import { html } from '../../vendor/preact-htm.js'
import { Field } from '../../parts.js'
import { asNumber, samplerName, samplerValue, withSampler } from './form.js'
import { Interval } from './interval.js'

/** What a person reads about each sampler; one that is unknown here is offered by its name. */
export const SAMPLERS = {
  'iv-mixed': ['IV-Mixed', 'Image and video network take turns'],
  ddim: ['DDIM', 'One network alone'],
  zigzag: ['Z-Sampling', 'Zig-zag of the video network'],
  freeinit: ['FreeInit', 'Several runs, better first noise'],
  fused: ['Fused', 'Both networks in one step; experimental'],
  evs: ['EVS', 'Image and video network each make a part of the steps'],
  official: ['Official', "The authors' released code"],
}

const LETTERS = { I: 'image', V: 'video', R: 'random noise' }

/** A combination such as IV-VI in words. */
export function combinationWords(combination) {
  const [back, denoise] = combination.split('-').map((letters) => [...letters].map((letter) => LETTERS[letter]).join(', then '))
  return `Adds noise with ${back}; denoises with ${denoise}.`
}

const pair = (label, hint) => ({ label, hint, kind: 'pair' })
const number = (label, hint, step = 'any') => ({ label, hint, kind: 'number', step })

/** In the order in which they are shown. The first choice is what the API leaves out of its responses. */
const SETTINGS = {
  combination: { label: 'Combination', kind: 'combination' },
  order: { label: 'Order', kind: 'choice', choices: { denoise_first: 'Denoise first', goback_first: 'Add noise first' } },
  network: { label: 'Network', kind: 'choice', choices: { video: 'Video', image: 'Image: every frame by itself' } },
  solver: { label: 'Solver', kind: 'choice', choices: { ddim: 'DDIM', 'dpmpp-2m': 'DPM-Solver++: fewer steps', lcm: 'LCM: distilled models only' } },
  grid: { label: 'Step ends', kind: 'choice', choices: { adjacent: 'Next timestep of the run', diffusers: 'As diffusers' } },
  image_guidance: pair('Image guidance', 'At the first and the last step'),
  video_guidance: pair('Video guidance', 'At the first and the last step'),
  interval_guidance: number('Guidance in the interval', 'Of the video network, where the image network guides too'),
  rho: number('Rho', 'Curve of the guidance between both ends'),
  image_frames: { label: 'Image network on', kind: 'choice', choices: { all: 'All latent frames', first: 'The first latent frame' } },
  image_every: number('Image network in every n-th step', '', 1),
  goback_guidance: number('Guidance of the way back'),
  iterations: number('Iterations', 'Full runs', 1),
  image_interval: pair('Image steps', 'Part of the run, 0 to 1; the video network makes the others'),
  enlarge: number('Enlarged', 'How much larger the image network draws: 1 to 4'),
  image_step_guidance: number('Image guidance', 'Of the image steps'),
  guidance_rule: { label: 'Guidance rule', kind: 'choice', choices: { cfg: 'Classifier-free', apg: 'APG: less saturated', 'cfg-zero': 'CFG-Zero*' } },
  apg_eta: number('APG: parallel part', 'Share that stays, 0 to 1'),
  apg_norm_threshold: number('APG: greatest length', '0: any'),
  apg_momentum: number('APG: momentum', 'Negative: against the steps before'),
  zero_init_steps: number('CFG-Zero*: empty first steps', 'They call no network', 1),
  active_steps: pair('Active steps', 'First and last, counted from 0'),
  zz: number('Video instead of image in every n-th step', '', 1),
}

/** The only guidance rule that reads a setting. */
export const OF_RULE = { apg_eta: 'apg', apg_norm_threshold: 'apg', apg_momentum: 'apg', zero_init_steps: 'cfg-zero' }

/** The sampler with other settings, and without those of a guidance rule that is no longer chosen. */
function changed(sampler, changes) {
  const rule = changes.guidance_rule
  return Object.fromEntries(Object.entries({ ...sampler, ...changes }).filter(([name]) => !rule || (OF_RULE[name] ?? rule) === rule))
}

/** @param {{form: object, model: object, steps: number, errorOf: (param: string) => string | undefined, onChange: (form: object) => void}} props */
export function SamplerSettings({ form, model, steps, errorOf, onChange }) {
  const name = samplerName(form, model)
  const reads = model.sampler_settings[name] ?? []
  const set = (changes) => onChange({ ...form, sampler: changed(form.sampler, changes) })
  const rule = samplerValue(form, model, 'guidance_rule')
  const read = reads.filter((setting) => (OF_RULE[setting] ?? rule) === rule)
  const known = Object.keys(SETTINGS).filter((setting) => read.includes(setting))
  const shown = [...known, ...read.filter((setting) => setting !== 'interval' && !known.includes(setting))]
  return html`<div class="stack">
    <fieldset class="samplers" aria-label="Sampler">
      ${model.samplers.map((each) => html`<${SamplerCard} name=${each} model=${model} checked=${each === name} onChoose=${() => onChange(withSampler(form, model, each))} />`)}
    </fieldset>
    ${errorOf('sampler.name') && html`<p class="field-error">${errorOf('sampler.name')}</p>`}
    ${reads.includes('interval') && html`<${Interval} value=${samplerValue(form, model, 'interval')} steps=${steps} error=${errorOf('sampler.interval')} onChange=${(interval) => set({ interval })} />`}
    <div class="fields">
      ${shown.map(
        (setting) => html`<${Setting}
          key=${setting}
          name=${setting}
          value=${samplerValue(form, model, setting)}
          model=${model}
          error=${errorOf(`sampler.${setting}`)}
          set=${set}
        />`,
      )}
    </div>
  </div>`
}

function SamplerCard({ name, model, checked, onChoose }) {
  const [title, words] = SAMPLERS[name] ?? [name, '']
  const text = model.experimental.includes(name) && !words.includes('experimental') ? `${words}; experimental with this model` : words
  return html`<label class="sampler ${checked ? 'chosen' : ''}">
    <input type="radio" name="sampler" class="visually-hidden" value=${name} checked=${checked} onChange=${onChoose} />
    <strong>${title}</strong><span>${text}</span>
  </label>`
}

function Setting({ name, value, model, error, set }) {
  const { label, hint, kind, ...setting } = SETTINGS[name] ?? { label: name.replaceAll('_', ' '), kind: 'other' }
  const Control = { combination: Combination, choice: Choice, pair: Pair, number: NumberInput, other: Other }[kind]
  const shownHint = kind === 'combination' ? combinationWords(value) : hint
  return html`<${Field} id="sampler-${name}" label=${label} hint=${shownHint} error=${error}>
    ${(attributes) => html`<${Control} attributes=${attributes} name=${name} value=${value} model=${model} set=${set} label=${label} ...${setting} />`}
  <//>`
}

function Combination({ attributes, value, model, set }) {
  // Random noise works in one order only, which the server checks; the person need not know.
  const choose = (combination) => set({ combination, ...(combination.includes('R') ? { order: 'goback_first' } : {}) })
  const group = (length, label) => html`<optgroup label=${label}>
    ${model.combinations.filter((each) => each.length === length).map((each) => html`<option value=${each} selected=${each === value}>${each}</option>`)}
  </optgroup>`
  return html`<select class="input" ...${attributes} onChange=${(event) => choose(event.target.value)}>
    ${group(5, 'Two moves each way')}${group(3, 'One move each way')}
  </select>`
}

function Choice({ attributes, name, value, choices, set }) {
  return html`<select class="input" ...${attributes} onChange=${(event) => set({ [name]: event.target.value })}>
    ${Object.entries(choices).map(([each, words]) => html`<option value=${each} selected=${each === value}>${words}</option>`)}
  </select>`
}

function NumberInput({ attributes, name, value, step, set }) {
  return html`<input class="input" type="number" step=${step} ...${attributes} value=${value ?? ''} onInput=${(event) => set({ [name]: event.target.value === '' ? undefined : asNumber(event.target.value) })} />`
}

/** A setting that is newer than this page. */
function Other({ attributes, name, value, set }) {
  return html`<input class="input" ...${attributes} value=${value ?? ''} onInput=${(event) => set({ [name]: asNumber(event.target.value) })} />`
}

function Pair({ attributes, name, value, label, set }) {
  const given = value ?? ['', '']
  const change = (index, text) => set({ [name]: given.map((each, i) => (i === index ? asNumber(text) : each)) })
  return html`<div class="pair">
    <input class="input" type="number" step="any" ...${attributes} aria-label="${label}: first" value=${given[0]} onInput=${(event) => change(0, event.target.value)} />
    <span aria-hidden="true">→</span>
    <input class="input" type="number" step="any" aria-label="${label}: last" aria-describedby=${attributes['aria-describedby']} value=${given[1]} onInput=${(event) => change(1, event.target.value)} />
  </div>`
}
