/** The secret that signs requests to the callback_url of a single video. */

import { html, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { CopyButton } from '../../copy.js'
import { Confirm } from '../../dialog.js'
import { Button, ErrorBox } from '../../parts.js'
import { SecretText } from './secret.js'

export function CallbackSecret() {
  const [state, setState] = useState({ secret: null, error: null })
  const [isAsking, setAsking] = useState(false)
  const show = ({ signing_secret: secret }) => setState({ secret, error: null })
  const read = () => api.get('/v1/webhook_callback_secret').then(show, (error) => setState({ secret: null, error }))
  const rotate = () => api.post('/v1/webhook_callback_secret/rotate_secret', { keep_old_secret_active_for_24_hours: true })
  return html`<section class="card stack" aria-labelledby="callback">
    <div class="row between">
      <div><h2 id="callback">Secret for callback_url</h2><p class="muted small">Signs requests to a URL that one video names itself</p></div>
      <div class="row">
        ${state.secret ? html`<${CopyButton} text=${state.secret}>Copy<//><${Button} onClick=${() => setAsking(true)}>New secret<//>` : html`<${Button} onClick=${read}>Show<//>`}
      </div>
    </div>
    <${ErrorBox} error=${state.error} />
    ${state.secret && html`<${SecretText} secret=${state.secret} />`}
    ${isAsking &&
    html`<${Confirm} title="New secret for callback_url?" verb="Make a new secret" action=${rotate} onDone=${(made) => (show(made), setAsking(false))} onClose=${() => setAsking(false)}>
      <p>Requests are signed with both secrets for 24 hours.</p>
    <//>`}
  </section>`
}
