/** The place of the video: a preview and the progress while it is made, then the player. */

import { html, useEffect, useRef } from '../../vendor/preact-htm.js'
import { Icon, Progress, VideoPlayer, ratio } from '../../parts.js'

const PHASES = {
  encoding: 'Reading the prompt',
  sampling: 'Sampling',
  decoding: 'Decoding the frames',
  uploading: 'Storing the video',
}

/** What a video is doing, in words. */
export function activity(video) {
  if (video.status === 'queued') {
    const ahead = video.queue_position
    return ahead === null || ahead === undefined ? 'Waiting' : ahead === 0 ? 'Next in the queue' : `${ahead} ahead in the queue`
  }
  return PHASES[video.phase] ?? 'Starting'
}

/** @param {{video: object}} props */
export function Stage({ video }) {
  const wasActive = useRef(false)
  if (video.status === 'queued' || video.status === 'in_progress') wasActive.current = true
  if (video.status === 'completed') return html`<${Player} video=${video} isNew=${wasActive.current} />`
  return html`<div class="frame" style=${ratio(video)}>
    ${video.preview_url && html`<img src=${video.preview_url} alt="Preview of the unfinished video" />`}
    ${video.status === 'failed'
      ? html`<div class="in-frame"><${Icon} name=${video.error?.code === 'cancelled' ? 'stop' : 'alert'} /><p>No video</p></div>`
      : !video.preview_url && html`<div class="in-frame"><span class="pulse" aria-hidden="true"></span><p>${activity(video)}</p></div>`}
  </div>`
}

/** A video that was just made plays by itself, where people have not asked for less motion. */
function Player({ video, isNew }) {
  const isCalm = matchMedia('(prefers-reduced-motion: reduce)').matches
  return html`<${VideoPlayer} video=${video} autoplay=${isNew && !isCalm} muted />`
}

/** @param {{video: object}} props */
export function Activity({ video }) {
  if (video.status !== 'queued' && video.status !== 'in_progress') return null
  const steps = video.status === 'in_progress' && html`<span class="number muted">step ${video.step} of ${video.total_steps}</span>`
  return html`<div class="activity">
    <div class="row between"><span>${activity(video)}</span>${steps}</div>
    <${Progress} value=${video.progress} label="Progress" />
  </div>`
}

/** Says to a screen reader what matters: start, quarters, end. */
export function Announcer({ video }) {
  const quarter = 25 * Math.floor(video.progress / 25)
  const text = {
    queued: 'Queued',
    in_progress: `${activity(video)}, ${quarter} percent`,
    completed: 'The video is ready',
    failed: video.error?.message,
  }[video.status]
  const first = useRef(text)
  const isNews = text !== first.current
  useEffect(() => {
    if (isNews) first.current = null
  }, [isNews])
  return html`<p class="visually-hidden" role="status">${isNews ? text : ''}</p>`
}
