/** Components and words that all screens share. */

import { html, useEffect, useState } from './vendor/preact-htm.js'
import { Icon } from './icons.js'

export { Icon }

/** Whether the caller may do what needs a scope. */
export const can = (me, scope) => me.scopes.includes(scope) || me.scopes.includes('admin')

/** Whether the caller sees the videos of all keys. */
export const seesAll = (me) => me.auth === 'keys' && (can(me, 'videos.read_all'))

/**
 * The API's own sentence. After a 429 or 503 it counts the seconds until another try makes sense.
 * @param {{error: Error | null}} props
 */
export function ErrorBox({ error }) {
  const left = useSecondsLeft(error)
  if (!error) return null
  const wait = left > 0 ? html` <span class="number">Possible again in ${left} s.</span>` : null
  return html`<div class="error-box" role="alert"><${Icon} name="alert" /><p>${error.message}${wait}</p></div>`
}

function useSecondsLeft(error) {
  const [left, setLeft] = useState(0)
  useEffect(() => {
    if (!error?.retryAfter) return setLeft(0)
    const end = Date.now() + 1000 * error.retryAfter
    const update = () => setLeft(Math.max(0, Math.ceil((end - Date.now()) / 1000)))
    update()
    const timer = setInterval(update, 1000)
    return () => clearInterval(timer)
  }, [error])
  return left
}

/**
 * A button, or with `href` a link that looks like one.
 * @param {{kind?: 'primary' | 'quiet' | 'danger', icon?: string, href?: string, busy?: boolean}} props
 */
export function Button({ kind = '', icon, href, busy = false, children, class: extra = '', ...rest }) {
  const content = html`${icon && html`<${Icon} name=${icon} />`}${children}`
  const name = `button ${kind} ${extra}`
  if (href) return html`<a class=${name} href=${href} ...${rest}>${content}</a>`
  return html`<button type="button" class=${name} disabled=${busy} aria-busy=${busy} ...${rest}>${content}</button>`
}

/**
 * Label, control and hint. `children` is a function of the attributes that connect the control with both.
 * @param {{label: string, hint?: any, error?: string | null, id: string, children: (attributes: object) => any}} props
 */
export function Field({ label, hint, error, id, children }) {
  const control = typeof children === 'function' ? children : () => children
  const described = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ') || undefined
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${control({ id, 'aria-describedby': described, 'aria-invalid': error ? 'true' : undefined })}
    ${error && html`<p class="field-error" id="${id}-error">${error}</p>`}
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
  </div>`
}

/** What a person calls the state of a video. */
export function statusWord(video) {
  if (video.status === 'failed') return video.error?.code === 'cancelled' ? 'Cancelled' : 'Failed'
  return { queued: 'Queued', in_progress: 'In progress', completed: 'Completed' }[video.status]
}

/** @param {{video: object}} props */
export function StatusBadge({ video }) {
  const isCancelled = video.error?.code === 'cancelled'
  return html`<span class="badge ${isCancelled ? '' : video.status}">${statusWord(video)}</span>`
}

/** @param {{value: number, label: string}} props value in percent */
export function Progress({ value, label }) {
  return html`<div class="progress" role="progressbar" aria-label=${label} aria-valuenow=${value} aria-valuemin="0" aria-valuemax="100">
    <span style=${{ width: `${value}%` }}></span>
  </div>`
}

/**
 * The video with the browser's controls; the space is kept before it loads.
 * @param {{video: object}} props more attributes go to the <video>
 */
export function VideoPlayer({ video, ...rest }) {
  return html`<div class="frame" style=${ratio(video)}>
    <video controls loop playsinline preload="metadata" src=${video.download_url} poster=${video.thumbnail_url} aria-label="Video: ${video.prompt}" ...${rest}></video>
  </div>`
}

/** The style that keeps a frame's place. */
export const ratio = (video) => ({ aspectRatio: `${video.width} / ${video.height}` })

/** @param {{title: string}} props the children say what to do next */
export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`
}

/** The head of a screen. The heading takes the focus when the screen opens. */
export function Head({ title, children, actions }) {
  return html`<header class="head">
    <div><h1 tabindex="-1">${title}</h1>${children}</div>
    ${actions && html`<div class="row">${actions}</div>`}
  </header>`
}

/** How long ago, in words. @param {number | null} unix seconds */
export function ago(unix) {
  if (unix === null || unix === undefined) return ''
  const passed = Math.max(0, Date.now() / 1000 - unix)
  if (passed < 45) return 'just now'
  const [size, unit] = passed < 3600 ? [60, 'min'] : passed < 86_400 ? [3600, 'h'] : [86_400, 'd']
  return `${Math.round(passed / size)} ${unit} ago`
}

/** A duration in words: 4.2 s, 3 min 5 s. @param {number | null} number */
export function seconds(number) {
  if (number === null || number === undefined) return '–'
  if (number < 59.5) return `${Number(number.toFixed(number < 0.1 ? 2 : number < 10 ? 1 : 0))} s`
  const minutes = Math.floor(Math.round(number) / 60)
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`
  return `${minutes} min ${Math.round(number) % 60} s`
}
