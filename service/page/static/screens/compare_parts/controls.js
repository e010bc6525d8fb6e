/** One set of controls for all videos of a comparison. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { Button, Icon } from '../../parts.js'

/** @param {{playback: import('./playback.js').Playback}} props */
export function Controls({ playback }) {
  const [, count] = useState(0)
  useEffect(() => playback.onChange(() => count((n) => n + 1)), [playback])
  const { frame, frames, isPlaying } = playback
  const toggle = () => (isPlaying ? playback.pause() : playback.play())
  return html`<div class="controls card" role="group" aria-label="Controls of all videos">
    <${Button} kind="primary" icon=${isPlaying ? 'pause' : 'play'} onClick=${toggle}>${isPlaying ? 'Pause' : 'Play'}<//>
    <div class="row steps">
      <${Step} icon="back" label="One frame back" onClick=${() => playback.show(frame - 1)} disabled=${frame === 0} />
      <${Step} icon="forward" label="One frame forward" onClick=${() => playback.show(frame + 1)} disabled=${frame === frames - 1} />
    </div>
    <input
      type="range"
      class="scrubber"
      min="0"
      max=${frames - 1}
      step="1"
      value=${frame}
      aria-label="Frame"
      aria-valuetext="Frame ${frame + 1} of ${frames}"
      onInput=${(event) => playback.show(Number(event.target.value))}
    />
    <span class="number muted" aria-hidden="true">${frame + 1} / ${frames}</span>
  </div>`
}

const Step = ({ icon, label, ...rest }) => html`<button type="button" class="button icon-only" aria-label=${label} title=${label} ...${rest}><${Icon} name=${icon} /></button>`
