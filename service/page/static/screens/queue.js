/** Queue: what runs, what waits, who works, and what cannot be served. */

import { html, useEffect, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { Confirm } from '../dialog.js'
import { useQueue } from '../live.js'
import { Button, Empty, ErrorBox, Head, can, seesAll } from '../parts.js'
import { Models } from './queue_parts/models.js'
import { EndedRow, RunningRow, WaitingRow } from './queue_parts/rows.js'
import { MOST, useLists } from './queue_parts/use_lists.js'

export default function Queue({ me }) {
  const queue = useFirstQueue()
  const lists = useLists()
  const { cancel, chosen, choose, error } = useCancel(lists)
  const mayCancel = can(me, 'videos.write')
  const head = html`<${Head} title="Queue">${seesAll(me) && html`<p>The videos of all API keys</p>`}<//>`
  if (!lists.isReady || (!queue && !lists.error)) return head // all at once, so that nothing moves
  return html`
    ${head}
    <div class="stack wide">
      <${ErrorBox} error=${error ?? lists.error} />
      <${Models} queue=${queue} />
      ${lists.queued.length + lists.running.length === 0 && html`<${Nothing} mayCreate=${mayCancel} />`}
      ${lists.running.length > 0 && html`<${Section} id="running" title="Running">
        ${lists.running.map((video) => html`<${RunningRow} key=${video.id} video=${video} onCancel=${mayCancel && cancel} />`)}
      <//>`}
      ${lists.queued.length > 0 && html`<${Section} id="waiting" title="Waiting" tools=${mayCancel && html`<${CancelMany} lists=${lists} chosen=${chosen} cancel=${cancel} choose=${choose} />`}>
        ${lists.queued.map((video) => html`<${WaitingRow} key=${video.id} video=${video} isChosen=${chosen.has(video.id)} onChoose=${mayCancel && choose} onCancel=${mayCancel && cancel} />`)}
      <//>`}
      ${lists.hasMore && html`<p class="hint">The oldest ${MOST} are shown.</p>`}
      ${lists.ended.length > 0 && html`<${Section} id="ended" title="Just ended">${lists.ended.map((video) => html`<${EndedRow} key=${video.id} video=${video} />`)}<//>`}
    </div>
  `
}

/** The queue by event, and once by request, so that it is there before the event connection. */
function useFirstQueue() {
  const live = useQueue()
  const [first, setFirst] = useState(null)
  useEffect(() => {
    api.get('/v1/queue').then(setFirst, () => {}) // the lists show the error
  }, [])
  return live ?? first
}

function Section({ id, title, tools, children }) {
  return html`<section class="stack" aria-labelledby=${id}>
    <div class="row between"><h2 id=${id}>${title}</h2>${tools}</div>
    <ul class="card items">${children}</ul>
  </section>`
}

const Nothing = ({ mayCreate }) => html`<${Empty} title="Nothing is waiting">
  <p>Videos appear here as soon as they are created.</p>
  ${mayCreate && html`<${Button} kind="primary" href="#/create">Create a video<//>`}
<//>`

function CancelMany({ lists, chosen, cancel, choose }) {
  const [isAsking, setAsking] = useState(false)
  const all = lists.queued.map(({ id }) => id)
  const isAll = all.every((id) => chosen.has(id))
  return html`<div class="row">
    <${Button} kind="quiet" onClick=${() => choose(...all.filter((id) => isAll === chosen.has(id)))}>${isAll ? 'Choose none' : 'Choose all'}<//>
    <${Button} icon="stop" disabled=${chosen.size === 0} onClick=${() => setAsking(true)}>Cancel chosen (${chosen.size})<//>
    ${isAsking && html`<${Confirm} title="Cancel ${chosen.size === 1 ? 'one video' : `${chosen.size} videos`}?" verb="Cancel" action=${() => cancel([...chosen])} onDone=${() => setAsking(false)} onClose=${() => setAsking(false)} />`}
  </div>`
}

function useCancel(lists) {
  const [chosen, setChosen] = useState(new Set())
  const [error, setError] = useState(null)
  const waiting = new Set(lists.queued.map(({ id }) => id))
  const choose = (...ids) =>
    setChosen((known) => {
      const next = new Set(known)
      for (const id of ids) if (!next.delete(id)) next.add(id)
      return next
    })
  const cancel = async (ids) => {
    setError(null)
    try {
      // Of a single one the API says why it cannot be cancelled.
      if (ids.length === 1) await api.post(`/v1/videos/${ids[0]}/cancel`)
      else setError(refused((await api.post('/v1/videos/cancel', { ids })).data))
    } catch (failure) {
      setError(failure)
    }
    setChosen(new Set())
    await lists.reload()
  }
  return { chosen: chosen.intersection(waiting), choose, cancel, error }
}

function refused(answers) {
  const count = answers.filter(({ status }) => status === 'not_found').length
  return count ? { message: `${count} of ${answers.length} videos belong to other API keys, which alone may cancel them.` } : null
}
