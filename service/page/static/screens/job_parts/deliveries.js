/** The webhook deliveries of one video. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { Button, ErrorBox, ago } from '../../parts.js'

const AWAITED_S = 30 // they are made a moment after the video's end
const BADGES = { delivered: 'completed', failed: 'failed', pending: 'queued' }

/** @param {{video: object}} props */
export function Deliveries({ video }) {
  const [deliveries, setDeliveries] = useState([])
  const [error, setError] = useState(null)
  const load = () =>
    api.get('/v1/webhook_deliveries', { query: { video_id: video.id, limit: 20 } }).then(({ data }) => setDeliveries(data), setError)
  const isAwaited = deliveries.length === 0 && Math.abs(Date.now() / 1000 - video.completed_at) < AWAITED_S
  const isOpen = isAwaited || deliveries.some(({ status }) => status === 'pending')
  useEffect(() => {
    load()
  }, [video.id, video.status])
  useEffect(() => {
    if (!isOpen) return undefined
    const timer = setInterval(load, 3000)
    return () => clearInterval(timer)
  }, [isOpen])
  const redeliver = async (id) => {
    setError(null)
    await api.post(`/v1/webhook_deliveries/${id}/redeliver`).then(load, setError)
  }
  if (deliveries.length === 0 && !error) return null
  return html`<section class="card stack" aria-labelledby="deliveries">
    <h2 id="deliveries">Webhook deliveries</h2>
    <${ErrorBox} error=${error} />
    <ul class="deliveries">${deliveries.map((delivery) => html`<${Delivery} key=${delivery.id} delivery=${delivery} onAgain=${() => redeliver(delivery.id)} />`)}</ul>
  </section>`
}

function Delivery({ delivery, onAgain }) {
  const { status, event_type: event, attempt_count: count, attempts, error, url } = delivery
  const code = attempts.at(-1)?.status_code
  const detail = [code && `status ${code}`, error?.replaceAll('_', ' '), count === 1 ? '1 attempt' : `${count} attempts`]
  return html`<li>
    <div>
      <div class="row"><span class="badge ${BADGES[status] ?? ''}">${status}</span><span>${event}</span></div>
      <p class="hint clip">${url ?? 'an endpoint'} · ${detail.filter(Boolean).join(' · ')} · ${ago(delivery.created_at)}</p>
    </div>
    <${Button} icon="again" onClick=${onAgain}>Redeliver<//>
  </li>`
}
