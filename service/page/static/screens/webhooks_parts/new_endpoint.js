/** The form of a new endpoint. */

import { html, useEffect, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { Dialog } from '../../dialog.js'
import { Button, ErrorBox, Field } from '../../parts.js'

/** @param {{onCreated: (endpoint: object) => void, onClose: () => void}} props */
export function NewEndpoint({ onCreated, onClose }) {
  const [form, setForm] = useState({ name: '', url: '', event_types: [] })
  const [offered, setOffered] = useState([])
  const [state, setState] = useState({ isBusy: false, error: null })
  const change = (changes) => setForm((last) => ({ ...last, ...changes }))
  useEffect(() => {
    const all = ({ data }) => (setOffered(data), change({ event_types: data }))
    api.get('/v1/webhook_event_types').then(all, (error) => setState({ isBusy: false, error }))
  }, [])
  const submit = async (event) => {
    event.preventDefault()
    setState({ isBusy: true, error: null })
    try {
      onCreated(await api.post('/v1/webhook_endpoints', form))
    } catch (error) {
      setState({ isBusy: false, error })
    }
  }
  const errorOf = (param) => (state.error?.param === param ? state.error.message : undefined)
  const isElsewhere = state.error && !['name', 'url'].includes(state.error.param)
  return html`<${Dialog} title="New endpoint" onClose=${onClose}>
    <form class="stack" onSubmit=${submit}>
      <${Field} id="endpoint-name" label="Name" error=${errorOf('name')}>
        ${(attributes) => html`<input class="input" required maxlength="256" autocomplete="off" ...${attributes} value=${form.name} onInput=${(event) => change({ name: event.target.value })} />`}
      <//>
      <${Field} id="endpoint-url" label="URL" hint="https, at a public address, unless the operator of this server allows others" error=${errorOf('url')}>
        ${(attributes) => html`<input class="input" type="url" required placeholder="https://app.example.com/hooks/video" ...${attributes} value=${form.url} onInput=${(event) => change({ url: event.target.value })} />`}
      <//>
      <${Events} offered=${offered} chosen=${form.event_types} onChange=${(types) => change({ event_types: types })} />
      <${ErrorBox} error=${isElsewhere ? state.error : null} />
      <div class="row end">
        <${Button} onClick=${onClose}>Close<//>
        <${Button} kind="primary" type="submit" busy=${state.isBusy || !form.event_types.length}>Create<//>
      </div>
    </form>
  <//>`
}

function Events({ offered, chosen, onChange }) {
  const toggle = (type) => onChange(offered.filter((each) => (each === type) !== chosen.includes(each)))
  return html`<fieldset class="field">
    <legend class="label">Events</legend>
    ${offered.map((type) => html`<label class="check"><input type="checkbox" checked=${chosen.includes(type)} onChange=${() => toggle(type)} /><code>${type}</code></label>`)}
    <p class="hint">A cancelled video sends video.failed</p>
  </fieldset>`
}
