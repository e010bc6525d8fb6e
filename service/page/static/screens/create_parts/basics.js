/** Prompt, size, length, steps, guidance, seed; and what few people change. */

import { html } from '../../vendor/preact-htm.js'
import { Button, Field } from '../../parts.js'
import { EXAMPLES } from './form.js'

/** @param {{form: object, model: object, error?: string, onChange: (changes: object) => void}} props */
export function Prompt({ form, model, error, onChange }) {
  const examples = model.examples.length ? model.examples : EXAMPLES
  return html`<section class="card stack">
    <${Field} id="prompt" label="Prompt" error=${error} hint=${model.can_draw}>
      ${(attributes) => html`<textarea class="input prompt" rows="3" required placeholder="What should the video show?" ...${attributes} value=${form.prompt} onInput=${(event) => onChange({ prompt: event.target.value })}></textarea>`}
    <//>
    <div class="examples" role="group" aria-label="Examples">
      ${examples.map((text) => html`<button type="button" class="chip" aria-pressed=${form.prompt === text} onClick=${() => onChange({ prompt: text })}>${text}</button>`)}
    </div>
  </section>`
}

/** @param {{form: object, model: object, models: object[], errorOf: Function, onChange: Function, onModel: Function}} props */
export function Basics({ form, model, models, errorOf, onChange, onModel }) {
  const range = (name, label, step, hint) => {
    const { min, max, default: standard } = model[name]
    if (min === max) return null // nothing to choose
    return html`<${NumberField} name=${name} label=${label} step=${step} hint=${hint ?? `${min} to ${max}`} placeholder=${standard} value=${form[name]} error=${errorOf(name)} onChange=${onChange} />`
  }
  return html`<div class="fields">
    ${models.length > 1 && html`<${Select} id="model" label="Model" value=${model.id} options=${models.map(({ id }) => id)} hint=${model.description} onChange=${onModel} />`}
    ${model.sizes.length > 1 && html`<${Select} id="size" label="Size" value=${form.size ?? model.sizes[0]} options=${model.sizes} error=${errorOf('size')} onChange=${(size) => onChange({ size })} />`}
    ${range('num_frames', 'Frames', 1)}
    ${range('fps', 'Frames per second', 1)}
    ${range('num_inference_steps', 'Steps', 1)}
    ${range('guidance_scale', 'Guidance', 'any')}
    <${NumberField} name="seed" label="Seed" step="1" placeholder="random" hint="The same seed gives the same video" value=${form.seed} error=${errorOf('seed')} onChange=${onChange} />
    <${NumberField} name="num_videos" label="Videos" step="1" min="1" placeholder="1" hint="Seeds one apart" value=${form.num_videos} error=${errorOf('num_videos')} onChange=${onChange} />
  </div>`
}

function NumberField({ name, label, hint, value, error, onChange, ...rest }) {
  return html`<${Field} id=${name} label=${label} hint=${hint} error=${error}>
    ${(attributes) => html`<input class="input" type="number" inputmode="decimal" ...${attributes} ...${rest} value=${value ?? ''} onInput=${(event) => onChange({ [name]: event.target.value })} />`}
  <//>`
}

function Select({ id, label, hint, value, options, error, onChange }) {
  return html`<${Field} id=${id} label=${label} hint=${hint} error=${error}>
    ${(attributes) => html`<select class="input" ...${attributes} onChange=${(event) => onChange(event.target.value)}>
      ${options.map((option) => html`<option value=${option.value ?? option} selected=${(option.value ?? option) === value}>${option.label ?? option}</option>`)}
    </select>`}
  <//>`
}

const PRIORITIES = [
  { value: 'normal', label: 'Normal' },
  { value: 'low', label: 'Low: after all others' },
]

const CACHES = {
  'deep-cache': 'DeepCache: outer levels only, in some calls',
  'first-block': 'First block: others only where it changes',
  taylorseer: 'TaylorSeer: some steps extrapolated',
}

/** Ways to save calls that also change the video. */
function Cache({ form, model, error, onChange }) {
  if (!model.caches.length) return null
  const options = [{ value: '', label: 'None: every call is computed' }, ...model.caches.map((name) => ({ value: name, label: CACHES[name] ?? name }))]
  return html`<${Select} id="cache" label="Cache (approximate)" hint="Faster; the video changes" value=${form.cache?.name ?? form.cache ?? ''} options=${options} error=${error} onChange=${(cache) => onChange({ cache: cache || undefined })} />`
}

/** @param {{form: object, model: object, errorOf: Function, cacheError?: string, onChange: Function}} props */
export function More({ form, model, errorOf, cacheError, onChange }) {
  return html`<div class="stack">
    <${Field} id="negative_prompt" label="Negative prompt" hint="What the video should not show" error=${errorOf('negative_prompt')}>
      ${(attributes) => html`<textarea class="input" rows="2" ...${attributes} value=${form.negative_prompt ?? model.negative_prompt} onInput=${(event) => onChange({ negative_prompt: event.target.value })}></textarea>`}
    <//>
    <div class="fields">
      <${NumberField} name="clip_skip" label="CLIP layers skipped" step="1" min="0" placeholder=${model.clip_skip} hint="1 is Clip skip 2 elsewhere" value=${form.clip_skip} error=${errorOf('clip_skip')} onChange=${onChange} />
      <${Cache} form=${form} model=${model} error=${cacheError} onChange=${onChange} />
      <${Select} id="priority" label="Priority" value=${form.priority ?? 'normal'} options=${PRIORITIES} onChange=${(priority) => onChange({ priority })} />
      <${Field} id="callback_url" label="Webhook" hint="Called when the video has ended" error=${errorOf('callback_url')}>
        ${(attributes) => html`<input class="input" type="url" placeholder="https://…" ...${attributes} value=${form.callback_url ?? ''} onInput=${(event) => onChange({ callback_url: event.target.value })} />`}
      <//>
    </div>
    <${Metadata} pairs=${form.metadata} error=${errorOf('metadata')} onChange=${(metadata) => onChange({ metadata })} />
  </div>`
}

function Metadata({ pairs, error, onChange }) {
  const change = (row, column, text) =>
    onChange(pairs.map((pair, i) => (i === row ? pair.map((value, j) => (j === column ? text : value)) : pair)))
  const input = (row, column, label) => html`<input class="input" aria-label="${label} ${row + 1}" placeholder=${label} value=${pairs[row][column]} onInput=${(event) => change(row, column, event.target.value)} />`
  return html`<fieldset class="field">
    <legend class="label">Metadata</legend>
    ${pairs.map(
      (_, row) => html`<div class="pair metadata" key=${row}>
        ${input(row, 0, 'Name')}${input(row, 1, 'Value')}
        <${Button} kind="quiet" icon="trash" aria-label="Remove pair ${row + 1}" onClick=${() => onChange(pairs.filter((_pair, i) => i !== row))} />
      </div>`,
    )}
    ${error && html`<p class="field-error">${error}</p>`}
    <div><${Button} icon="create" onClick=${() => onChange([...pairs, ['', '']])}>Add a pair<//></div>
  </fieldset>`
}
