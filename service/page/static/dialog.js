/** Dialogs: the browser keeps the focus inside, closes them with Escape and returns the focus. */

import { html, useEffect, useRef, useState } from './vendor/preact-htm.js'
import { Button, ErrorBox } from './parts.js'

/**
 * Opens at once, above the page.
 * @param {{title: string, onClose: () => void}} props
 */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null)
  useEffect(() => {
    const element = dialog.current
    const closed = () => onClose() // by Escape
    element.addEventListener('close', closed)
    element.showModal()
    return () => {
      element.removeEventListener('close', closed)
      element.close() // the focus returns to where it was
    }
  }, [])
  const onClick = (event) => event.target === dialog.current && onClose() // the backdrop
  return html`<dialog class="dialog" ref=${dialog} aria-labelledby="dialog-title" onClick=${onClick}>
    <div class="dialog-body stack"><h2 id="dialog-title">${title}</h2>${children}</div>
  </dialog>`
}

/**
 * Asks before something that cannot be undone. Stays open with the API's sentence if `action` fails.
 * @param {{title: string, verb: string, action: () => Promise<unknown>, onDone: (result: any) => void, onClose: () => void}} props
 */
export function Confirm({ title, verb, action, onDone, onClose, children }) {
  const [state, setState] = useState({ isBusy: false, error: null })
  const confirm = async () => {
    setState({ isBusy: true, error: null })
    try {
      onDone(await action())
    } catch (error) {
      setState({ isBusy: false, error })
    }
  }
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${children}
    <${ErrorBox} error=${state.error} />
    <div class="row end">
      <${Button} onClick=${onClose}>Keep<//>
      <${Button} kind="danger" busy=${state.isBusy} onClick=${confirm}>${verb}<//>
    </div>
  <//>`
}
