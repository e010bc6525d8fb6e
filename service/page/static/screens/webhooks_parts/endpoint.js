/** One endpoint: what it receives, and what can be done with it. */

import { html, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { Button, ErrorBox, ago } from '../../parts.js'

/** @param {{endpoint: object, onDialog: (dialog: object) => void, onChanged: () => void, onTested: () => void}} props */
export function Endpoint({ endpoint, onDialog, onChanged, onTested }) {
  const { name, url, enabled, event_types: types, signing_secret_hint: hint, created_at: created } = endpoint
  return html`<li class="card stack endpoint">
    <div class="row between">
      <div class="endpoint-name"><h3>${name}</h3><code>${url}</code></div>
      <span class="badge ${enabled ? 'completed' : 'failed'}">${enabled ? 'Enabled' : 'Disabled'}</span>
    </div>
    <p class="muted small">${types.join(', ')} · secret ${hint} · created ${ago(created)}</p>
    ${!enabled && html`<${Disabled} endpoint=${endpoint} onChanged=${onChanged} />`}
    <div class="row">
      <${Test} endpoint=${endpoint} onTested=${onTested} />
      <${Button} icon="again" onClick=${() => onDialog({ kind: 'rotate', endpoint })}>New secret<//>
      <${Button} kind="danger" icon="trash" onClick=${() => onDialog({ kind: 'delete', endpoint })}>Delete<//>
    </div>
  </li>`
}

function Disabled({ endpoint, onChanged }) {
  const [error, setError] = useState(null)
  const enable = () => api.post(`/v1/webhook_endpoints/${endpoint.id}`, {}).then(onChanged, setError)
  return html`<div class="row">
    <p>The receiver answered 410 Gone ${ago(endpoint.disabled_at)}: it wants no further events.</p>
    <${Button} onClick=${enable}>Enable again<//>
    <${ErrorBox} error=${error} />
  </div>`
}

/** Sends a sample event and waits for the answer of the receiver. */
function Test({ endpoint, onTested }) {
  const [state, setState] = useState({ isBusy: false, result: null, error: null })
  const test = async () => {
    setState({ isBusy: true, result: null, error: null })
    try {
      const result = await api.post(`/v1/webhook_endpoints/${endpoint.id}/test`, { event_type: endpoint.event_types[0] })
      setState({ isBusy: false, result, error: null })
    } catch (error) {
      setState({ isBusy: false, result: null, error })
    }
    onTested()
  }
  const { result } = state
  return html`
    <${Button} busy=${state.isBusy} icon="play" onClick=${test}>Send a test event<//>
    <span role="status">${result && html`<span class="badge ${result.status_code < 300 ? 'completed' : 'failed'}">Receiver answered ${result.status_code}</span>`}</span>
    ${state.error && html`<div class="whole-row"><${ErrorBox} error=${state.error} /></div>`}
  `
}
