/** What was sent, newest first, with every attempt. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { onVideo } from '../../live.js'
import { Button, Empty, ErrorBox, ago, seconds } from '../../parts.js'

const PAGE = 20
const PENDING_MS = 3000 // deliveries have no events: while one is pending, the list is read again
const SETTLE_MS = 1500 // after the end of a video its deliveries are made

/** @param {{endpoints: object[], round: number}} props a new `round` reads the list again */
export function Deliveries({ endpoints, round }) {
  const { deliveries, hasMore, error, read, more } = useDeliveries(round)
  return html`<section class="stack" aria-labelledby="deliveries">
    <div class="row between"><h2 id="deliveries">Deliveries</h2><${Button} icon="again" onClick=${read}>Read again<//></div>
    <${ErrorBox} error=${error} />
    ${deliveries && !deliveries.length && html`<${Empty} title="Nothing was sent yet"><p>A video that ends sends an event to every endpoint.</p><//>`}
    ${deliveries?.length > 0 && html`<ul class="sent card">${deliveries.map((delivery) => html`<${Delivery} key=${delivery.id} delivery=${delivery} endpoints=${endpoints} onChanged=${read} />`)}</ul>`}
    ${hasMore && html`<div class="row list-end"><${Button} onClick=${more}>Older deliveries<//></div>`}
  </section>`
}

function useDeliveries(round) {
  const [state, setState] = useState({ deliveries: null, hasMore: false, error: null })
  const count = Math.max(PAGE, state.deliveries?.length ?? 0)
  const get = (query) => api.get('/v1/webhook_deliveries', { query })
  const fail = (error) => setState((last) => ({ ...last, error }))
  const read = () =>
    get({ limit: Math.min(count, 100) }).then(({ data, has_more }) => setState({ deliveries: data, hasMore: has_more, error: null }), fail)
  const more = () =>
    get({ limit: PAGE, after: state.deliveries.at(-1).id }).then(
      ({ data, has_more }) => setState(({ deliveries }) => ({ deliveries: [...deliveries, ...data], hasMore: has_more, error: null })),
      fail,
    )
  useEffect(() => void read(), [round])
  const isPending = state.deliveries?.some(({ status }) => status === 'pending')
  useEffect(() => {
    let timer = isPending ? setInterval(read, PENDING_MS) : 0
    const end = onVideo((kind) => {
      if (kind === 'completed' || kind === 'failed') timer ||= setTimeout(read, SETTLE_MS)
    })
    return () => (clearTimeout(timer), end())
  }, [isPending, state.deliveries])
  return { ...state, read, more }
}

const STATES = { pending: ['queued', 'Pending'], delivered: ['completed', 'Delivered'], failed: ['failed', 'Failed'] }

function Delivery({ delivery, endpoints, onChanged }) {
  const { event_type: type, url, webhook_endpoint_id: id, created_at: created, status, attempts, video_id: video } = delivery
  const [kind, word] = STATES[status]
  const receiver = url ?? endpoints.find((endpoint) => endpoint.id === id)?.name ?? 'a deleted endpoint'
  return html`<li class="delivery">
    <details>
      <summary>
        <span class="badge ${kind}">${word}</span>
        <span class="delivery-what"><code>${type}</code> to ${receiver}</span>
        <span class="muted small number">${next(delivery)} · ${ago(created)}</span>
      </summary>
      <div class="stack delivery-more">
        <p class="small">Video <a href="#/videos/${video}"><code>${video}</code></a> · event <code>${delivery.event_id}</code></p>
        <${Attempts} attempts=${attempts} />
        <${Redeliver} delivery=${delivery} onChanged=${onChanged} />
      </div>
    </details>
  </li>`
}

function next({ status, attempt_count: count, next_attempt_at: at, error }) {
  const tries = `${count} ${count === 1 ? 'attempt' : 'attempts'}`
  if (status === 'pending' && at) return `${tries}, next in ${seconds(Math.max(0, at - Date.now() / 1000))}`
  return status === 'failed' && error ? `${tries}, ${words(error)}` : tries
}

const words = (error) => error.replaceAll('_', ' ')

function Attempts({ attempts }) {
  if (!attempts.length) return html`<p class="muted small">No attempt yet</p>`
  return html`<ol class="attempts small number">
    ${attempts.map(
      ({ at, status_code: code, error, duration_s: duration }) => html`<li>
        ${new Date(1000 * at).toLocaleString()}: ${code ? `status ${code}` : 'no answer'}${error && `, ${words(error)}`}, after ${duration < 1 ? `${Math.round(1000 * duration)} ms` : seconds(duration)}
      </li>`,
    )}
  </ol>`
}

function Redeliver({ delivery, onChanged }) {
  const [state, setState] = useState({ isBusy: false, error: null })
  const send = async () => {
    setState({ isBusy: true, error: null })
    const error = await api.post(`/v1/webhook_deliveries/${delivery.id}/redeliver`).then(() => null, (refusal) => refusal)
    setState({ isBusy: false, error })
    onChanged()
  }
  return html`<${ErrorBox} error=${state.error} /><div><${Button} icon="again" busy=${state.isBusy} onClick=${send}>Deliver again<//></div>`
}
