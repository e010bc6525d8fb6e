/** Copies a text. */

import { html, useState } from './vendor/preact-htm.js'
import { Button } from './parts.js'

/**
 * Nothing where the browser has no clipboard: it has one on https and loopback only.
 * @param {{text: string, icon?: string}} props
 */
export function CopyButton({ text, icon = 'copy', children = 'Copy' }) {
  const [isDone, setDone] = useState(false)
  if (!navigator.clipboard) return null
  const copy = async () => {
    await navigator.clipboard.writeText(text)
    setDone(true)
    setTimeout(() => setDone(false), 1500)
  }
  return html`<${Button} icon=${isDone ? 'check' : icon} onClick=${copy}><span aria-live="polite">${isDone ? 'Copied' : children}</span><//>`
}
