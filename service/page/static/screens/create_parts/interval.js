/** The part of the run in which the sampler is active: a timeline of the steps with two handles. */

import { html } from '../../vendor/preact-htm.js'

const MOST_CELLS = 80 // more would be thinner than the lines between them

/**
 * @param {{value: [number, number], steps: number, error?: string, onChange: (value: [number, number]) => void}} props
 * value in fractions of the run
 */
export function Interval({ value, steps, error, onChange }) {
  const [begin, end] = value.map((share) => Math.round(share * steps))
  const share = (step) => Math.round((1000 * step) / steps) / 1000
  const move = (index, step) => {
    const moved = index === 0 ? [Math.min(step, end), end] : [begin, Math.max(step, begin)]
    onChange(moved.map(share))
  }
  // Where both handles meet, the one that can still move is above.
  const handle = (index, label) => html`<input
    type="range"
    min="0"
    max=${steps}
    step="1"
    value=${index === 0 ? begin : end}
    style=${{ zIndex: index === 0 && begin > steps / 2 ? 1 : 0 }}
    aria-label=${label}
    aria-valuetext="step ${index === 0 ? begin : end} of ${steps}"
    onInput=${(event) => move(index, Number(event.target.value))}
  />`
  return html`<fieldset class="field interval">
    <legend class="label">Mixing interval</legend>
    <div class="timeline" style=${{ '--cells': steps <= MOST_CELLS ? steps : 1, '--begin': begin / steps, '--end': end / steps }}>
      <span class="lane"></span>
      ${handle(0, 'Interval: begin')}${handle(1, 'Interval: end')}
    </div>
    <p class="hint row between"><span>noise</span><span class="number">${words(begin, end, steps)}</span><span>clip</span></p>
    ${error && html`<p class="field-error">${error}</p>`}
  </fieldset>`
}

function words(begin, end, steps) {
  if (begin === end) return 'in no step'
  if (begin === 0 && end === steps) return `in all ${steps} steps`
  return `in steps ${begin + 1} to ${end} of ${steps}`
}
