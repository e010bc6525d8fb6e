/** Copy as curl, Python or JavaScript. */

import { html, useState } from '../../vendor/preact-htm.js'
import { apiUrl } from '../../api.js'
import { CopyButton } from '../../copy.js'
import { recipeOf } from '../create_parts/form.js'
import { curl, javascript, python } from './snippets.js'

const LANGUAGES = { curl, Python: python, JavaScript: javascript }

/** @param {{video: object, model: object | undefined, me: object}} props */
export function Code({ video, model, me }) {
  const [language, setLanguage] = useState('curl')
  const request = { base: apiUrl('/v1'), body: recipeOf(video, model), needsKey: me.auth === 'keys' }
  const text = LANGUAGES[language](request)
  return html`<section class="card stack" aria-labelledby="code">
    <div class="row between">
      <h2 id="code">The same by API</h2>
      <${CopyButton} text=${text} />
    </div>
    <div class="row" role="group" aria-label="Language">
      ${Object.keys(LANGUAGES).map((name) => html`<button type="button" class="chip" aria-pressed=${name === language} onClick=${() => setLanguage(name)}>${name}</button>`)}
    </div>
    ${video.input_reference && html`<p class="hint">Add the ${video.input_reference.type === 'image' ? 'picture' : 'clip'} as input_reference; POST /v1/videos/${video.id}/run_again has it already.</p>`}
    <pre class="code" tabindex="0" aria-label="${language} code">${text}</pre>
  </section>`
}
