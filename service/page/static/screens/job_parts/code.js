/** Copy as curl, Python or JavaScript. */

import { html, useState } from '../../vendor/preact-htm.js'
import { apiUrl } from '../../api.js'
import { Button } from '../../parts.js'
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
      <${Copy} text=${text} />
    </div>
    <div class="row" role="group" aria-label="Language">
      ${Object.keys(LANGUAGES).map((name) => html`<button type="button" class="chip" aria-pressed=${name === language} onClick=${() => setLanguage(name)}>${name}</button>`)}
    </div>
    <pre class="code" tabindex="0" aria-label="${language} code">${text}</pre>
  </section>`
}

function Copy({ text }) {
  const [isDone, setDone] = useState(false)
  if (!navigator.clipboard) return null // browsers have it on https and loopback only
  const copy = async () => {
    await navigator.clipboard.writeText(text)
    setDone(true)
    setTimeout(() => setDone(false), 1500)
  }
  return html`<${Button} icon=${isDone ? 'check' : 'copy'} onClick=${copy}><span aria-live="polite">${isDone ? 'Copied' : 'Copy'}</span><//>`
}
