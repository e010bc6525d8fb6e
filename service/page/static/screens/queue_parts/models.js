/** One card per model: what waits, who works on it, and how long a new video would wait. */

import { html } from '../../vendor/preact-htm.js'
import { ErrorBox, seconds } from '../../parts.js'

/** @param {{queue: object | null}} props */
export function Models({ queue }) {
  if (!queue) return null
  return html`<div class="models">${queue.data.map((model) => html`<${Model} key=${model.model} model=${model} />`)}</div>`
}

function Model({ model }) {
  const { queued, running, workers, videos_per_hour: rate, seconds_per_video: each, estimated_wait_s: wait, unavailable } = model
  return html`<section class="card stack" aria-label="Model ${model.model}">
    <div class="row between"><h2>${model.model}</h2><span class="muted small">${workerWords(workers.length)}</span></div>
    <dl class="figures number">
      <${Figure} name="Waiting" value=${queued} />
      <${Figure} name="Running" value=${running} />
      <${Figure} name="New video starts" value=${startWords(wait, workers)} />
      <${Figure} name="Per video" value=${seconds(each)} />
      <${Figure} name="Last hour" value=${Math.round(rate)} />
    </dl>
    ${unavailable && html`<${ErrorBox} error=${{ message: `No worker can load this model: ${unavailable}` }} />`}
    ${!unavailable && workers.length === 0 && html`<p class="hint">No worker serves this model at the moment. Videos wait until one starts.</p>`}
    ${workers.length > 0 && html`<ul class="workers">${workers.map((worker) => html`<${Worker} key=${worker.name} worker=${worker} />`)}</ul>`}
  </section>`
}

const Figure = ({ name, value }) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`

const workerWords = (count) => (count === 1 ? '1 worker' : `${count} workers`)

function startWords(wait, workers) {
  if (workers.length === 0) return 'later'
  if (wait === null) return '–'
  return wait === 0 ? 'at once' : `in ${seconds(wait)}`
}

function Worker({ worker }) {
  const { name, state, video_id: video, phase, step, total_steps: total } = worker
  const work = phase === 'sampling' ? `sampling, step ${step} of ${total}` : (phase ?? state)
  return html`<li>
    <span class="dot ${state}" aria-hidden="true"></span>
    <span class="clip" title=${name}>worker ${name.slice(0, 8)}</span>
    <span class="muted number">${video ? html`<a href="#/videos/${video}">${work}</a>` : work}</span>
  </li>`
}
