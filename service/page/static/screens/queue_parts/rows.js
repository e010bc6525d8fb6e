/** Videos of the queue: running ones with preview and progress, waiting ones with their place, ended ones. */

import { html } from '../../vendor/preact-htm.js'
import { Button, Icon, Progress, StatusBadge, ago } from '../../parts.js'
import { activity } from '../job_parts/stage.js'

const link = (video) => html`<a class="title" href="#/videos/${video.id}">${video.prompt ?? video.id}</a>`

/** @param {{src: string | null}} props */
const Picture = ({ src }) => html`<span class="picture">${src && html`<img src=${src} alt="" loading="lazy" />`}</span>`

/** @param {{video: object, onCancel: Function | null}} props */
export function RunningRow({ video, onCancel }) {
  return html`<li class="item running">
    <${Picture} src=${video.preview_url} />
    <div class="what">
      ${link(video)}
      <p class="hint number">${activity(video)} · step ${video.step} of ${video.total_steps} · ${video.model}</p>
      <${Progress} value=${video.progress} label="Progress of ${video.prompt}" />
    </div>
    ${onCancel && html`<${Button} icon="stop" aria-label="Cancel: ${video.prompt}" onClick=${() => onCancel([video.id])}><span class="wide-only">Cancel</span><//>`}
  </li>`
}

/** @param {{video: object, isChosen: boolean, onChoose: Function | null, onCancel: Function | null}} props */
export function WaitingRow({ video, isChosen, onChoose, onCancel }) {
  const low = video.priority === 'low' && html` · low priority`
  return html`<li class="item">
    ${onChoose && html`<input type="checkbox" aria-label="Choose: ${video.prompt}" checked=${isChosen} onChange=${() => onChoose(video.id)} />`}
    <span class="place number" title="Place in the queue">${(video.queue_position ?? 0) + 1}</span>
    <div class="what">
      ${link(video)}
      <p class="hint">${video.model} · ${video.size.replace('x', ' × ')} · ${ago(video.created_at)}${low}</p>
    </div>
    ${onCancel && html`<${Button} kind="quiet" icon="stop" aria-label="Cancel: ${video.prompt}" onClick=${() => onCancel([video.id])}><span class="wide-only">Cancel</span><//>`}
  </li>`
}

/** @param {{video: object}} props */
export function EndedRow({ video }) {
  return html`<li class="item">
    ${video.thumbnail_url ? html`<${Picture} src=${video.thumbnail_url} />` : html`<span class="picture"><${Icon} name="alert" /></span>`}
    <div class="what">
      ${link(video)}
      <p class="hint">${video.error ? video.error.message : `${video.model} · ${ago(video.completed_at)}`}</p>
    </div>
    <${StatusBadge} video=${video} />
  </li>`
}
