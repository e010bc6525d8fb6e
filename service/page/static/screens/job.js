/** To be written. */

import { html } from '../vendor/preact-htm.js'
import { Head } from '../parts.js'

export default function Screen() {
  return html`<${Head} title="job" />`
}
