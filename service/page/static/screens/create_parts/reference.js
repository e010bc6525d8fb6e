/** The picture or clip that the video starts from: a file, or that of an earlier video. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { Button, Field } from '../../parts.js'

const KINDS = 'image/png,image/jpeg,image/webp,video/mp4,video/webm,video/quicktime'
const STRENGTH = 0.8 // the default of the API

// What a video costs does not depend on the picture, so an estimate is asked with one pixel instead of the file.
const ONE_PIXEL =
  'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=='

/** The part of the request. `reference_use` is sent for a video that is made again; the server chooses it for a file. */
export function referenceFields({ reference, strength, kept }) {
  if (reference) return { input_reference: reference, ...(strength === undefined ? {} : { strength }) }
  return kept && kept.use === 'start' && strength !== undefined ? { strength } : {}
}

/** The body of an estimate, which is JSON. */
export function estimateBody(body, { reference, kept }) {
  if (kept && !reference) return { ...body, input_reference: ONE_PIXEL, reference_use: kept.use }
  return reference ? { ...body, input_reference: ONE_PIXEL, ...(isClip(reference) ? { reference_use: 'start' } : {}) } : body
}

const isClip = (file) => file.type.startsWith('video/')

/** @param {{form: object, errorOf: Function, onChange: (changes: object) => void}} props */
export function Reference({ form, errorOf, onChange }) {
  const { reference, kept } = form
  const remove = () => onChange({ reference: undefined, kept: undefined, strength: undefined })
  const error = errorOf('input_reference') ?? errorOf('reference_use')
  return html`<div class="stack">
    <div class="fields">
      <${Field} id="input_reference" label="Picture or clip to start from" hint="PNG, JPEG, WebP, MP4, WebM or MOV" error=${error}>
        ${(attributes) => html`<input key=${reference || kept ? 'some' : 'none'} class="input" type="file" accept=${KINDS} ...${attributes} onChange=${(event) => onChange({ reference: event.target.files[0], kept: undefined })} />`}
      <//>
      ${(reference || kept?.use === 'start') && html`<${Strength} value=${form.strength ?? STRENGTH} error=${errorOf('strength')} onChange=${onChange} />`}
    </div>
    ${(reference || kept) && html`<div class="row reference">
      ${reference ? html`<${Preview} file=${reference} />` : html`<p class="hint">${kept.type === 'image' ? 'The picture' : 'The clip'} of the earlier video</p>`}
      <${Button} kind="quiet" icon="trash" onClick=${remove}>Remove<//>
    </div>`}
  </div>`
}

function Strength({ value, error, onChange }) {
  return html`<${Field} id="strength" label="Strength" hint="Low: close to the picture. High: close to the prompt" error=${error}>
    ${(attributes) => html`<div class="row strength">
      <input type="range" min="0.05" max="1" step="0.05" ...${attributes} value=${value} onInput=${(event) => onChange({ strength: Number(event.target.value) })} />
      <output class="number" for="strength">${value}</output>
    </div>`}
  <//>`
}

function Preview({ file }) {
  const [url, setUrl] = useState(null)
  useEffect(() => {
    const made = URL.createObjectURL(file)
    setUrl(made)
    return () => URL.revokeObjectURL(made)
  }, [file])
  if (url === null) return null
  if (isClip(file)) return html`<video src=${url} muted loop autoplay playsinline aria-label="Preview of ${file.name}"></video>`
  return html`<img src=${url} alt="Preview of ${file.name}" />`
}
