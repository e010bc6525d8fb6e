/** One video of the gallery. */

import { html, useMemo, useRef, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { remember } from '../../live.js'
import { Icon, Progress, StatusBadge, ago, ratio, seconds } from '../../parts.js'

/** Drawn anew only when its video or its selection changes: there may be hundreds. */
export function Tile({ video, isSelected, canDelete, onToggle, onDelete }) {
  return useMemo(
    () => html`<li class="tile ${isSelected ? 'selected' : ''}" id="tile-${video.id}">
      <${Picture} video=${video} />
      <div class="tile-text">
        <p class="tile-prompt">${video.prompt}</p>
        <p class="muted small number">${facts(video)}</p>
      </div>
      <${Actions} video=${video} isSelected=${isSelected} canDelete=${canDelete} onToggle=${onToggle} onDelete=${onDelete} />
    </li>`,
    [video, isSelected, canDelete],
  )
}

const facts = (video) =>
  [video.model, video.sampler.name, video.inference_time_s && seconds(video.inference_time_s), ago(video.created_at)]
    .filter(Boolean)
    .join(' · ')

/** The thumbnail, and while the pointer or the focus is on it the video itself. */
function Picture({ video }) {
  const [plays, setPlays] = useState(false)
  const on = () => setPlays(video.status === 'completed')
  const off = () => setPlays(false)
  const image = video.thumbnail_url ?? video.preview_url
  return html`<a
    class="frame"
    href="#/videos/${video.id}"
    style=${ratio(video)}
    aria-label="Details: ${video.prompt}"
    onPointerEnter=${on}
    onPointerLeave=${off}
    onFocus=${on}
    onBlur=${off}
  >
    ${image && html`<img src=${image} alt="" loading="lazy" decoding="async" />`}
    ${plays && html`<${Clip} video=${video} />`}
    ${video.status === 'completed' ? null : html`<${Unfinished} video=${video} hasImage=${Boolean(image)} />`}
  </a>`
}

/** Muted, so that browsers let it play. A page that was open for hours has expired URLs: they are read again, once. */
function Clip({ video }) {
  const [url, setUrl] = useState(video.download_url)
  const isFresh = useRef(false)
  const onError = async () => {
    if (isFresh.current) return
    isFresh.current = true
    const newest = await api.get(`/v1/videos/${video.id}`).catch(() => null)
    if (!newest) return
    remember(newest)
    setUrl(newest.download_url)
  }
  return html`<video src=${url} autoplay muted loop playsinline tabindex="-1" aria-hidden="true" onError=${onError}></video>`
}

function Unfinished({ video, hasImage }) {
  const isRunning = video.status === 'in_progress'
  return html`<div class="in-frame ${hasImage ? 'over-image' : ''}">
    <${StatusBadge} video=${video} />
    ${isRunning && html`<${Progress} value=${video.progress} label="Progress of ${video.prompt}" />`}
    ${video.error && html`<p class="small">${video.error.message}</p>`}
  </div>`
}

function Actions({ video, isSelected, canDelete, onToggle, onDelete }) {
  const { id, prompt } = video
  return html`<div class="row tile-actions">
    <label class="tile-select"><input type="checkbox" aria-label="Select: ${prompt}" checked=${isSelected} onChange=${() => onToggle(id)} />Select</label>
    ${video.download_url && html`<a class="button quiet icon-only" href=${video.download_url} download="${id}.mp4" aria-label="Download: ${prompt}" title="Download"><${Icon} name="download" /></a>`}
    ${canDelete && html`<button type="button" class="button quiet icon-only" aria-label="Delete: ${prompt}" title="Delete" onClick=${() => onDelete(id)}><${Icon} name="trash" /></button>`}
  </div>`
}
