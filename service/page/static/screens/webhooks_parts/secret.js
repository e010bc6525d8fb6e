/** A new signing secret: the server shows it this once. */

import { html } from '../../vendor/preact-htm.js'
import { CopyButton } from '../../copy.js'
import { Dialog } from '../../dialog.js'
import { Button } from '../../parts.js'

/** @param {{endpoint: object, onClose: () => void}} props the endpoint as created or rotated, with its secret */
export function Secret({ endpoint, onClose }) {
  return html`<${Dialog} title="Signing secret of ${endpoint.name}" onClose=${onClose}>
    <p>Store it at the receiver now: it is shown only once.</p>
    <${SecretText} secret=${endpoint.signing_secret} />
    <div class="row end">
      <${CopyButton} text=${endpoint.signing_secret}>Copy<//>
      <${Button} kind="primary" onClick=${onClose}>Done<//>
    </div>
  <//>`
}

/** A click selects all of it. */
export const SecretText = ({ secret }) => html`<input class="input secret" readonly aria-label="Signing secret" value=${secret} onFocus=${(event) => event.target.select()} />`
