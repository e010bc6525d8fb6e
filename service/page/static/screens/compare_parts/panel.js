/** One video of a comparison, with what it cost. */

import { html, useEffect, useRef } from '../../vendor/preact-htm.js'
import { ErrorBox, Icon, Progress, StatusBadge, ratio, seconds } from '../../parts.js'

/** @param {{id: string, title: string, video: object | null, error: Error | null, playback: object, onRemove: () => void, onExpired: () => void}} props */
export function Panel({ id, title, video, error, playback, onRemove, onExpired }) {
  return html`<figure class="panel card">
    ${error && html`<${ErrorBox} error=${error} />`}
    ${video && html`<${Frame} video=${video} title=${title} playback=${playback} onExpired=${onExpired} />`}
    <figcaption class="panel-text">
      <div class="row between">
        <h3><a href="#/videos/${id}">${title}</a></h3>
        <button type="button" class="button quiet icon-only" aria-label="Take out ${title}" title="Take out" onClick=${onRemove}><${Icon} name="close" /></button>
      </div>
      ${video && html`<${Costs} video=${video} />`}
    </figcaption>
  </figure>`
}

function Frame({ video, title, playback, onExpired }) {
  if (video.status !== 'completed') return html`<${Unfinished} video=${video} title=${title} />`
  return html`<${Clip} key=${video.download_url} video=${video} title=${title} playback=${playback} onExpired=${onExpired} />`
}

function Clip({ video, title, playback, onExpired }) {
  const element = useRef(null)
  useEffect(() => playback.add(element.current, video), [playback])
  return html`<div class="frame" style=${ratio(video)}>
    <video ref=${element} src=${video.download_url} muted playsinline preload="auto" aria-label="${title}: ${video.prompt}" onError=${onExpired}></video>
  </div>`
}

function Unfinished({ video, title }) {
  return html`<div class="frame" style=${ratio(video)}>
    ${video.preview_url && html`<img src=${video.preview_url} alt="" />`}
    <div class="in-frame">
      <${StatusBadge} video=${video} />
      ${video.status === 'in_progress' && html`<${Progress} value=${video.progress} label="Progress: ${title}" />`}
      ${video.error && html`<p class="small">${video.error.message}</p>`}
    </div>
  </div>`
}

function Costs({ video }) {
  const calls = video.network_calls
  const total = calls ? calls.image + calls.video : null
  const shares = calls && (calls.image && calls.video ? `${calls.image} image, ${calls.video} video` : `all ${calls.image ? 'image' : 'video'}`)
  return html`<dl class="costs">
    <div><dt>Network calls</dt><dd class="number">${total ?? '–'}${calls && html`<span class="muted small"> ${shares}</span>`}</dd></div>
    <div><dt>Time</dt><dd class="number">${seconds(video.inference_time_s)}</dd></div>
  </dl>`
}
