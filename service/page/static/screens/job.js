/** One video: player or progress, recipe, timings, code, webhooks, and what can be done with it. */

import { html, useEffect, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { Confirm } from '../dialog.js'
import { onReset, onVideo, remember, useConnection, useQueue, useVideo } from '../live.js'
import { Button, ErrorBox, Head, StatusBadge, can } from '../parts.js'
import { Code } from './job_parts/code.js'
import { Deliveries } from './job_parts/deliveries.js'
import { Recipe, Timings } from './job_parts/recipe.js'
import { Activity, Announcer, Stage } from './job_parts/stage.js'

const POLL_MS = 2000 // while there is no event connection

export default function Job({ route, go, me, models }) {
  const { video, error, isDeleted, setDeleted } = useJob(route.id)
  useEffect(() => {
    if (video?.prompt) document.title = `${video.prompt} · ivmix`
  }, [video?.prompt])
  if (isDeleted) return html`<${Head} title="Deleted" ><p>This video is gone. <a href="#/create">Create another one</a>.</p><//>`
  if (!video) return html`<${Head} title=${error ? 'No such video' : 'Video'} /><${ErrorBox} error=${error} />`
  const model = models.find(({ id }) => id === video.model)
  return html`
    <${Head} title=${video.prompt ?? 'Video'} actions=${html`<${StatusBadge} video=${video} />`} />
    <${Announcer} video=${video} />
    <div class="job">
      <div class="stack">
        <${Stage} video=${video} />
        <${Activity} video=${video} />
        ${video.error && html`<${ErrorBox} error=${video.error} />`}
        <${Actions} video=${video} me=${me} go=${go} onDeleted=${() => setDeleted(true)} />
        <${Timings} video=${video} />
        <${Code} video=${video} model=${model} me=${me} />
        ${can(me, 'webhooks') && html`<${Deliveries} video=${video} />`}
      </div>
      <section class="card stack" aria-labelledby="recipe"><h2 id="recipe">Recipe</h2><${Recipe} video=${video} model=${model} /></section>
    </div>
  `
}

/** The newest state of a video, also where the event connection is down or does not say the place in the queue. */
function useJob(id) {
  const [read, setRead] = useState({ video: null, error: null })
  const [isDeleted, setDeleted] = useState(false)
  const video = useVideo(id, read.video)
  const queue = useQueue()
  const isLive = useConnection() === 'live'
  const load = () =>
    api.get(`/v1/videos/${id}`).then(
      (found) => {
        remember(found)
        setRead({ video: found, error: null })
      },
      (error) => (error.status === 404 && video ? setDeleted(true) : setRead((last) => ({ ...last, error }))),
    )
  useEffect(() => {
    load()
    return onReset(load)
  }, [id])
  useEffect(() => onVideo((kind, changed) => kind === 'deleted' && changed.id === id && setDeleted(true)), [id])
  useEffect(() => {
    if (video?.status === 'queued') load()
  }, [queue])
  const isUnfinished = video?.status === 'queued' || video?.status === 'in_progress'
  useEffect(() => {
    if (isLive || !isUnfinished) return undefined
    const timer = setInterval(load, POLL_MS)
    return () => clearInterval(timer)
  }, [isLive, isUnfinished, id])
  return { video, error: read.error, isDeleted, setDeleted }
}

function Actions({ video, me, go, onDeleted }) {
  const [isAsking, setAsking] = useState(false)
  const [error, setError] = useState(null)
  const [isBusy, setBusy] = useState(false)
  const act = async (action) => {
    setError(null)
    setBusy(true)
    await action().catch(setError)
    setBusy(false)
  }
  const again = (changes) => act(async () => go(`#/videos/${(await api.post(`/v1/videos/${video.id}/run_again`, changes)).id}`))
  const cancel = () => act(async () => remember(await api.post(`/v1/videos/${video.id}/cancel`)))
  const remove = () => api.delete(`/v1/videos/${video.id}`)
  const isUnfinished = video.status === 'queued' || video.status === 'in_progress'
  const mayWrite = can(me, 'videos.write')
  return html`<div class="stack">
    <div class="row actions">
      ${video.download_url && html`<${Button} icon="download" kind="primary" href=${video.download_url} download="${video.id}.mp4">Download<//>`}
      ${mayWrite && isUnfinished && html`<${Button} icon="stop" busy=${isBusy} onClick=${cancel}>Cancel<//>`}
      ${mayWrite && html`<${Button} icon="again" busy=${isBusy} onClick=${() => again()}>Same again<//>
        <${Button} busy=${isBusy} onClick=${() => again({ seed: -1 })}>Another seed<//>
        <${Button} icon="edit" href="#/create?from=${video.id}">Edit<//>
        <${Button} icon="trash" kind="quiet danger" onClick=${() => setAsking(true)}>Delete<//>`}
    </div>
    <${ErrorBox} error=${error} />
    ${isAsking && html`<${Confirm} title="Delete this video?" verb="Delete" action=${remove} onDone=${onDeleted} onClose=${() => setAsking(false)}><p>Its record and its files are deleted for good.</p><//>`}
  </div>`
}
