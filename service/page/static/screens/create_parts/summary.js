/** What the video will cost, and the button that creates it. */

import { html } from '../../vendor/preact-htm.js'
import { useQueue } from '../../live.js'
import { Button, ErrorBox, seconds } from '../../parts.js'

const NETWORKS = { image: 'Image network', video: 'Video network' }

/** @param {{estimate: object | null, model: object, error: Error | null, isCurrent: boolean, isBusy: boolean, count: number}} props */
export function Summary({ estimate, model, error, isCurrent, isBusy, count }) {
  const queue = useQueue()?.data.find((each) => each.model === model.id)
  const calls = estimate?.network_calls ?? { image: 0, video: 0 }
  const most = Math.max(...Object.values(calls), 1)
  return html`<aside class="card stack summary" aria-label="Summary" aria-busy=${isCurrent ? 'false' : 'true'}>
    <h2>${count > 1 ? 'Each video' : 'This video'}</h2>
    <div class="stack calls">
      ${Object.entries(calls).map(
        ([network, count]) => html`<div class="call" key=${network}>
          <span class="row between small"><span class="muted">${NETWORKS[network] ?? network}</span><span class="number" data-calls=${network}>${estimate ? `${count} calls` : '–'}</span></span>
          <span class="bar"><span style=${{ width: `${(100 * count) / most}%` }}></span></span>
        </div>`,
      )}
    </div>
    <dl class="facts number">
      <dt>Clip</dt>
      <dd>${estimate ? `${estimate.size.replace('x', ' × ')}, ${estimate.num_frames} frames, ${seconds(Number(estimate.seconds))}` : '–'}</dd>
      <dt>Processing</dt>
      <dd data-expected>${estimate?.inference_time_s == null ? 'known after the first video' : `about ${seconds(estimate.inference_time_s)}`}</dd>
      <dt>Queue</dt>
      <dd>${waiting(queue)}</dd>
    </dl>
    <${ErrorBox} error=${error} />
    <${Button} type="submit" kind="primary" class="big" busy=${isBusy}>${count > 1 ? `Create ${count} videos` : 'Create video'}<//>
  </aside>`
}

function waiting(queue) {
  if (!queue) return '–'
  if (queue.workers.length === 0) return 'no worker is running'
  if (queue.estimated_wait_s === 0) return 'starts at once'
  if (queue.estimated_wait_s === null) return queue.queued ? `${queue.queued} waiting` : 'empty'
  return `starts in about ${seconds(queue.estimated_wait_s)}`
}
