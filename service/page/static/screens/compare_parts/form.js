/** The form of a new comparison: what all videos share, and two to four samplers. */

import { html, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { remember } from '../../live.js'
import { Button, ErrorBox, Field } from '../../parts.js'
import { EXAMPLES, loraFields } from '../create_parts/form.js'
import { Loras } from '../create_parts/loras.js'
import { Arm, newArm } from './arm.js'

const LEAST = 2
const MOST = 4

const randomSeed = () => Math.floor(Math.random() * 2 ** 31)
const examplesOf = (model) => (model.examples.length ? model.examples : EXAMPLES)

/** Shows what mixing adds: each network alone, then both. */
const firstArms = () => [newArm('ddim image'), newArm('ddim'), newArm('iv-mixed')]

/** The body of POST /v1/videos for one of the samplers. */
function requestOf(form, arm) {
  const { steps, sampler } = arm
  const shared = { model: form.model.id, prompt: form.prompt.trim() || examplesOf(form.model)[0], seed: Number(form.seed), ...loraFields(form) }
  const body = { ...shared, sampler }
  return steps ? { ...body, num_inference_steps: Number(steps) } : body
}

/** Creates all of them, or none: after a refusal those that were created are cancelled. */
async function createAll(bodies) {
  const videos = []
  try {
    for (const body of bodies) videos.push(await api.post('/v1/videos', body))
  } catch (error) {
    const ids = videos.map(({ id }) => id)
    if (ids.length) await api.post('/v1/videos/cancel', { ids }).catch(() => {})
    throw error
  }
  videos.forEach(remember)
  return videos.map(({ id }) => id)
}

/** @param {{models: object[], onCreated: (ids: string[]) => void}} props */
export function NewComparison({ models, onCreated }) {
  const [form, setForm] = useState(() => ({ model: models[0], prompt: '', seed: String(randomSeed()), loras: [], arms: firstArms() }))
  const [state, setState] = useState({ isBusy: false, error: null })
  const change = (changes) => setForm({ ...form, ...changes })
  const bodies = form.arms.map((arm) => requestOf(form, arm))
  const submit = async (event) => {
    event.preventDefault()
    setState({ isBusy: true, error: null })
    try {
      onCreated(await createAll(bodies))
    } catch (error) {
      setState({ isBusy: false, error })
    }
  }
  return html`<form class="stack" aria-labelledby="new-comparison" onSubmit=${submit}>
    <section class="card stack">
      <h2 id="new-comparison">New comparison</h2>
      <${Shared} form=${form} models=${models} onChange=${change} />
    </section>
    <${Arms} form=${form} bodies=${bodies} onChange=${(arms) => change({ arms })} />
    <${ErrorBox} error=${state.error} />
    <div><${Button} kind="primary" class="big" type="submit" busy=${state.isBusy}>Create ${form.arms.length} videos<//></div>
  </form>`
}

function Shared({ form, models, onChange }) {
  const model = (id) => models.find((each) => each.id === id)
  return html`
    <${Field} id="compare-prompt" label="Prompt" hint=${form.model.can_draw}>
      ${(attributes) => html`<textarea class="input" required ...${attributes} placeholder=${examplesOf(form.model)[0]} value=${form.prompt} onInput=${(event) => onChange({ prompt: event.target.value })}></textarea>`}
    <//>
    <div class="examples" role="group" aria-label="Examples">
      ${examplesOf(form.model).slice(0, 4).map((prompt) => html`<button type="button" class="chip" onClick=${() => onChange({ prompt })}>${prompt}</button>`)}
    </div>
    <div class="fields">
      <${Field} id="compare-model" label="Model">
        ${(attributes) => html`<select class="input" ...${attributes} onChange=${(event) => onChange({ model: model(event.target.value), loras: [], arms: firstArms() })}>
          ${models.map(({ id }) => html`<option value=${id} selected=${id === form.model.id}>${id}</option>`)}
        </select>`}
      <//>
      <${Field} id="compare-seed" label="Seed" hint="All videos begin with the same noise">
        ${(attributes) => html`<input class="input" type="number" min="0" required ...${attributes} value=${form.seed} onInput=${(event) => onChange({ seed: event.target.value })} />`}
      <//>
    </div>
    <${Loras} form=${form} model=${form.model} onChange=${onChange} />
  `
}

function Arms({ form, bodies, onChange }) {
  const { arms, model } = form
  const put = (key, arm) => onChange(arms.map((other) => (other.key === key ? arm : other)))
  return html`<div class="arms">
    ${arms.map(
      (arm, i) => html`<${Arm}
        key=${arm.key}
        number=${i + 1}
        arm=${arm}
        body=${bodies[i]}
        model=${model}
        onChange=${(changed) => put(arm.key, changed)}
        onRemove=${arms.length > LEAST ? () => onChange(arms.filter(({ key }) => key !== arm.key)) : null}
      />`,
    )}
    ${arms.length < MOST && html`<button type="button" class="add-arm" onClick=${() => onChange([...arms, newArm('iv-mixed')])}>Add a sampler</button>`}
  </div>`
}
