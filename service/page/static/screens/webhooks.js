/** Webhooks: endpoints with their secrets, and what was delivered to them. */

import { html, useEffect, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { Confirm } from '../dialog.js'
import { Button, Empty, ErrorBox, Head } from '../parts.js'
import { CallbackSecret } from './webhooks_parts/callback_secret.js'
import { Deliveries } from './webhooks_parts/deliveries.js'
import { Endpoint } from './webhooks_parts/endpoint.js'
import { NewEndpoint } from './webhooks_parts/new_endpoint.js'
import { Secret } from './webhooks_parts/secret.js'

export default function Webhooks() {
  const { endpoints, error, read } = useEndpoints()
  const [dialog, setDialog] = useState(null) // {kind: 'create' | 'rotate' | 'delete' | 'secret', endpoint}
  const [round, setRound] = useState(0)
  const close = () => setDialog(null)
  const showSecret = (endpoint) => {
    read()
    setDialog({ kind: 'secret', endpoint })
  }
  const actions = html`<${Button} kind="primary" icon="create" onClick=${() => setDialog({ kind: 'create' })}>New endpoint<//>`
  return html`
    <${Head} title="Webhooks" actions=${actions}><p>Signed requests to your servers when a video has ended</p><//>
    <div class="stack wide">
      <section class="stack" aria-labelledby="endpoints">
        <h2 id="endpoints">Endpoints</h2>
        <${ErrorBox} error=${error} />
        <${Endpoints} endpoints=${endpoints} onDialog=${setDialog} onChanged=${read} onTested=${() => setRound(round + 1)} />
      </section>
      <${CallbackSecret} />
      <${Deliveries} endpoints=${endpoints ?? []} round=${round} />
    </div>
    ${dialog && html`<${Dialogs} ...${dialog} onClose=${close} onSecret=${showSecret} onDeleted=${() => (close(), read())} />`}
  `
}

/** All endpoints; a key has few. */
function useEndpoints() {
  const [state, setState] = useState({ endpoints: null, error: null })
  const read = async () => {
    try {
      const endpoints = []
      for (let after, page; !page || page.has_more; after = page.last_id) {
        page = await api.get('/v1/webhook_endpoints', { query: { limit: 100, after } })
        endpoints.push(...page.data)
      }
      setState({ endpoints, error: null })
    } catch (error) {
      setState((last) => ({ ...last, error }))
    }
  }
  useEffect(() => void read(), [])
  return { ...state, read }
}

function Endpoints({ endpoints, onDialog, onChanged, onTested }) {
  if (!endpoints) return null
  if (!endpoints.length) return html`<${Empty} title="No endpoints yet"><p>An endpoint receives the events of all videos of this API key.</p><//>`
  return html`<ul class="stack">
    ${endpoints.map((endpoint) => html`<${Endpoint} key=${endpoint.id} endpoint=${endpoint} onDialog=${onDialog} onChanged=${onChanged} onTested=${onTested} />`)}
  </ul>`
}

function Dialogs({ kind, endpoint, onClose, onSecret, onDeleted }) {
  if (kind === 'create') return html`<${NewEndpoint} onCreated=${onSecret} onClose=${onClose} />`
  if (kind === 'secret') return html`<${Secret} endpoint=${endpoint} onClose=${onClose} />`
  if (kind === 'rotate') return html`<${Rotate} endpoint=${endpoint} onRotated=${onSecret} onClose=${onClose} />`
  const remove = () => api.delete(`/v1/webhook_endpoints/${endpoint.id}`)
  return html`<${Confirm} title="Delete the endpoint ${endpoint.name}?" verb="Delete" action=${remove} onDone=${onDeleted} onClose=${onClose}>
    <p>It receives no more events; deliveries that wait for another attempt fail.</p>
  <//>`
}

function Rotate({ endpoint, onRotated, onClose }) {
  const [keeps, setKeeps] = useState(true)
  const rotate = () => api.post(`/v1/webhook_endpoints/${endpoint.id}/rotate_secret`, { keep_old_secret_active_for_24_hours: keeps })
  return html`<${Confirm} title="New secret for ${endpoint.name}?" verb="Make a new secret" action=${rotate} onDone=${onRotated} onClose=${onClose}>
    <label class="check"><input type="checkbox" checked=${keeps} onChange=${(event) => setKeeps(event.target.checked)} />Sign with the old secret too for 24 hours</label>
    <p class="muted small">Without it, receivers refuse events until they know the new secret.</p>
  <//>`
}
