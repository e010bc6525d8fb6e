/** One sampler of a new comparison, and what the server expects it to cost. */

import { html } from '../../vendor/preact-htm.js'
import { Field, Icon, seconds } from '../../parts.js'
import { Interval } from '../create_parts/interval.js'
import { useEstimate } from '../create_parts/use_estimate.js'
import { samplerTitle } from './words.js'

/** Choices of the select: samplers, and `ddim image`, the image network alone. */
const samplerOf = (choice) => (choice === 'ddim image' ? { name: 'ddim', network: 'image' } : { name: choice })
const choiceOf = ({ name, network }) => (network === 'image' ? 'ddim image' : name)

let keys = 0

/** @param {string} choice */
export const newArm = (choice) => ({ key: ++keys, steps: '', sampler: samplerOf(choice) })

/** @param {{number: number, arm: object, body: object, model: object, onChange: (arm: object) => void, onRemove: (() => void) | null}} props */
export function Arm({ number, arm, body, model, onChange, onRemove }) {
  const { estimate, error, isCurrent } = useEstimate(body)
  const id = `arm-${arm.key}`
  const title = samplerTitle(arm.sampler)
  return html`<fieldset class="card stack arm">
    <legend class="visually-hidden">Sampler ${number}: ${title}</legend>
    <div class="row between">
      <span class="label">Sampler ${number}</span>
      ${onRemove && html`<button type="button" class="button quiet icon-only" aria-label="Take out sampler ${number}" onClick=${onRemove}><${Icon} name="close" /></button>`}
    </div>
    <${Choices} id=${id} arm=${arm} model=${model} onChange=${onChange} />
    <${Settings} id=${id} arm=${arm} model=${model} estimate=${estimate} onChange=${onChange} />
    ${error && isCurrent ? html`<p class="field-error" role="alert">${error.message}</p>` : html`<${Cost} estimate=${estimate} />`}
  </fieldset>`
}

function Choices({ id, arm, model, onChange }) {
  const choices = model.samplers.flatMap((name) => (name === 'ddim' ? ['ddim', 'ddim image'] : [name]))
  const choose = (event) => onChange({ ...arm, sampler: samplerOf(event.target.value) })
  return html`<select class="input" id="${id}-sampler" aria-label="Sampler" onChange=${choose}>
    ${choices.map((choice) => html`<option value=${choice} selected=${choice === choiceOf(arm.sampler)}>${samplerTitle(samplerOf(choice))}</option>`)}
  </select>`
}

function Settings({ id, arm, model, estimate, onChange }) {
  const reads = model.sampler_settings[arm.sampler.name] ?? []
  const value = (name) => arm.sampler[name] ?? model.sampler[name]
  const set = (changes) => onChange({ ...arm, sampler: { ...arm.sampler, ...changes } })
  const steps = estimate?.num_inference_steps ?? model.num_inference_steps.default
  return html`
    <${Field} id="${id}-steps" label="Steps">
      ${(attributes) => html`<input class="input" type="number" min="1" ...${attributes} placeholder=${model.num_inference_steps.default} value=${arm.steps} onInput=${(event) => onChange({ ...arm, steps: event.target.value })} />`}
    <//>
    ${reads.includes('combination') &&
    html`<${Field} id="${id}-combination" label="Combination">
      ${(attributes) => html`<select class="input" ...${attributes} onChange=${(event) => set(combined(event.target.value))}>
        ${model.combinations.map((each) => html`<option value=${each} selected=${each === value('combination')}>${each}</option>`)}
      </select>`}
    <//>`}
    ${reads.includes('interval') && html`<${Interval} value=${value('interval')} steps=${steps} onChange=${(interval) => set({ interval })} />`}
  `
}

/** Random noise, R, works in one order only. */
const combined = (combination) => ({ combination, ...(combination.includes('R') ? { order: 'goback_first' } : {}) })

function Cost({ estimate }) {
  if (!estimate) return html`<p class="hint">–</p>`
  const { image, video } = estimate.network_calls
  const time = estimate.inference_time_s === null ? '' : `, about ${seconds(estimate.inference_time_s)}`
  return html`<p class="hint number">${image + video} network calls${time}</p>`
}
