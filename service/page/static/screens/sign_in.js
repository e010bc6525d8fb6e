/** Sign in: the key goes to the server once, which answers with a cookie that scripts cannot read. */

import { html, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { Button, ErrorBox, Field } from '../parts.js'

export default function SignIn({ onSignedIn }) {
  const [key, setKey] = useState('')
  const [error, setError] = useState(null)
  const [isBusy, setBusy] = useState(false)
  const submit = async (event) => {
    event.preventDefault()
    setBusy(true)
    setError(null)
    try {
      await api.post('/v1/session', undefined, { headers: { authorization: `Bearer ${key.trim()}` }, quiet: true })
      await onSignedIn()
    } catch (failure) {
      setError(failure)
      setBusy(false)
    }
  }
  return html`<main class="sign-in">
    <form class="card stack" onSubmit=${submit}>
      <img src="page/icon.svg" alt="" width="44" height="44" />
      <div>
        <h1>Sign in to ivmix</h1>
        <p class="muted">With an API key of this server. The page does not keep it: the browser gets a cookie for a week.</p>
      </div>
      <${Field} id="key" label="API key" hint=${html`An operator makes one with <code>ivmix keys create</code>`}>
        ${(attributes) => html`<input class="input" type="password" autocomplete="current-password" autofocus required ...${attributes} value=${key} onInput=${(event) => setKey(event.target.value)} />`}
      <//>
      <${ErrorBox} error=${error} />
      <${Button} type="submit" kind="primary" class="big" busy=${isBusy}>Sign in<//>
    </form>
  </main>`
}
