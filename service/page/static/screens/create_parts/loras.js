/** The LoRAs of the model: which of them the video uses, and how strongly. */

import { html } from '../../vendor/preact-htm.js'
import { isGiven } from './form.js'

/** @param {{form: object, model: object, error?: string, onChange: (changes: object) => void}} props */
export function Loras({ form, model, error, onChange }) {
  if (model.loras.length === 0) return null
  const chosen = form.loras ?? []
  const put = (name, lora) => {
    const others = chosen.filter((each) => each.name !== name)
    onChange({ loras: lora ? [...others, lora] : others })
  }
  return html`<fieldset class="field" aria-describedby=${error ? 'loras-error' : undefined}>
    <legend class="label">LoRAs</legend>
    ${model.loras.map((lora) => html`<${Lora} key=${lora.name} lora=${lora} chosen=${chosen.find(({ name }) => name === lora.name)} onPut=${(use) => put(lora.name, use)} />`)}
    ${error && html`<p class="field-error" id="loras-error">${error}</p>`}
  </fieldset>`
}

function Lora({ lora, chosen, onPut }) {
  const { name, description, trigger_words: words, scale } = lora
  const id = `lora-${name}`
  const hint = [description, words.length > 0 && `Prompt words: ${words.join(', ')}.`].filter(Boolean).join(' ')
  return html`<div class="lora">
    <input type="checkbox" id=${id} checked=${Boolean(chosen)} aria-describedby=${hint ? `${id}-hint` : undefined} onChange=${(event) => onPut(event.target.checked ? { name } : null)} />
    <label for=${id}>${name}</label>
    <input class="input" type="number" step="any" aria-label="Scale of ${name}" placeholder=${scale} disabled=${!chosen} value=${isGiven(chosen?.scale) ? chosen.scale : ''} onInput=${(event) => onPut({ ...chosen, scale: event.target.value })} />
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
  </div>`
}
