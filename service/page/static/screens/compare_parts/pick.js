/** Choosing videos for a comparison among the newest completed ones. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { Button, Empty, ErrorBox, ratio } from '../../parts.js'
import { samplerTitle } from './words.js'

const SHOWN = 24

/** Those of the same prompt and seed first: they can be compared best. */
const byLikeness = (like) => (a, b) => likeness(b, like) - likeness(a, like)
const likeness = (video, like) => (like && video.prompt === like.prompt ? (video.seed === like.seed ? 2 : 1) : 0)

/** @param {{ids: string[], most: number, like?: object, onPick: (ids: string[]) => void}} props */
export function Pick({ ids, most, like, onPick }) {
  const [state, setState] = useState({ videos: null, error: null })
  const [picked, setPicked] = useState(ids)
  useEffect(() => {
    api.get('/v1/videos', { query: { status: 'completed', limit: 100 } }).then(
      ({ data }) => setState({ videos: data.sort(byLikeness(like)).slice(0, SHOWN), error: null }),
      (error) => setState({ videos: null, error }),
    )
  }, [])
  const toggle = (id) => setPicked(picked.includes(id) ? picked.filter((other) => other !== id) : [...picked, id])
  if (state.error) return html`<${ErrorBox} error=${state.error} />`
  if (!state.videos) return null
  if (!state.videos.length) return html`<${Empty} title="No completed videos yet" />`
  const isReady = picked.length >= 2 && picked.length <= most
  return html`<div class="stack">
    <ul class="picks" aria-label="Completed videos">
      ${state.videos.map((video) => html`<${Choice} key=${video.id} video=${video} isPicked=${picked.includes(video.id)} isFull=${picked.length >= most} onToggle=${toggle} />`)}
    </ul>
    <div class="row">
      <${Button} kind="primary" icon="compare" busy=${!isReady} onClick=${() => onPick(picked)}>Compare ${picked.length || ''}<//>
      <span class="muted small">Two to ${most} videos. The <a href="#/gallery">gallery</a> has all of them.</span>
    </div>
  </div>`
}

function Choice({ video, isPicked, isFull, onToggle }) {
  return html`<li>
    <button type="button" class="pick" aria-pressed=${isPicked} disabled=${isFull && !isPicked} onClick=${() => onToggle(video.id)}>
      <span class="frame" style=${ratio(video)}>${video.thumbnail_url && html`<img src=${video.thumbnail_url} alt="" loading="lazy" />`}</span>
      <span class="tile-prompt small">${video.prompt}</span>
      <span class="muted small">${samplerTitle(video.sampler)} · seed ${video.seed}</span>
    </button>
  </li>`
}
