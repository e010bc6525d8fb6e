/** The page: session, navigation, and the screen that the hash of the URL names. */

import { html, render, useEffect, useState } from './vendor/preact-htm.js'
import { api, onSignedOut } from './api.js'
import { start, stop, useConnection, useQueue } from './live.js'
import { Button, ErrorBox, Icon, can } from './parts.js'
import SignIn from './screens/sign_in.js'
import Create from './screens/create.js'
import Queue from './screens/queue.js'
import Gallery from './screens/gallery.js'
import Compare from './screens/compare.js'
import Job from './screens/job.js'
import Webhooks from './screens/webhooks.js'

/** Screens by the first part of the hash. `label` puts one into the navigation; `scope` is what it needs. */
const SCREENS = {
  create: { screen: Create, label: 'Create', scope: 'videos.write' },
  queue: { screen: Queue, label: 'Queue' },
  gallery: { screen: Gallery, label: 'Gallery' },
  compare: { screen: Compare, label: 'Compare' },
  webhooks: { screen: Webhooks, label: 'Webhooks', scope: 'webhooks' },
  videos: { screen: Job },
}

/** @returns {{name: string, id: string | null, query: URLSearchParams}} */
function readRoute(screens) {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?')
  const [name, id = null] = path.split('/')
  const known = Object.hasOwn(screens, name) && !(name === 'videos' && !id)
  return { name: known ? name : Object.keys(screens)[0], id, query: new URLSearchParams(query) }
}

const go = (hash) => {
  location.hash = hash
}

function useRoute(screens) {
  const [route, setRoute] = useState(() => readRoute(screens))
  useEffect(() => {
    const update = () => setRoute(readRoute(screens))
    update()
    addEventListener('hashchange', update)
    return () => removeEventListener('hashchange', update)
  }, [screens])
  return route
}

/** Who the caller is and which models there are; `me` is null when a sign-in is needed. */
function useSession() {
  const [state, setState] = useState({ isReady: false })
  const load = async () => {
    try {
      const models = api.get('/v1/models', { quiet: true }).catch((error) => error)
      const me = await api.get('/v1/session', { quiet: true })
      setState({ isReady: true, me, models: (await models).data ?? [] }) // a key may lack the scope to see them
      start()
    } catch (error) {
      setState({ isReady: true, me: null, error: error.status === 401 ? null : error })
    }
  }
  const end = () => {
    stop()
    setState({ isReady: true, me: null })
  }
  useEffect(() => {
    // The server knows from the cookie, which no script can read, that there is no session.
    if ('signedOut' in document.documentElement.dataset) end()
    else load()
    return onSignedOut(end)
  }, [])
  return { ...state, load, end }
}

function App() {
  const session = useSession()
  if (!session.isReady) return First
  if (session.error) return html`<main class="main stack"><${ErrorBox} error=${session.error} /><${Retry} on=${session.load} /></main>`
  if (!session.me) return html`<${SignIn} onSignedIn=${session.load} />`
  return html`<${Shell} ...${session} />`
}

// The same as in index.html.
const First = html`<div class="shell first"><div class="side"><span class="brand"><img src="page/icon.svg" alt="" />ivmix</span></div></div>`

const Retry = ({ on }) => html`<div><${Button} onClick=${on}>Try again<//></div>`

function Shell({ me, models, end }) {
  const [screens] = useState(() =>
    Object.fromEntries(Object.entries(SCREENS).filter(([, { scope }]) => !scope || can(me, scope))),
  )
  const route = useRoute(screens)
  const { screen, label } = screens[route.name]
  useScreenFocus(route, label)
  return html`
    <a class="skip" href="#main" onClick=${focusMain}>Skip to content</a>
    <div class="shell">
      <div class="side">
        <a class="brand" href="#/${Object.keys(screens)[0]}"><img src="page/icon.svg" alt="" />ivmix</a>
        <${Nav} screens=${screens} current=${route.name} />
        <${SideEnd} me=${me} onEnd=${end} />
      </div>
      <main class="main" id="main" tabindex="-1">
        <${screen} key=${route.name + (route.id ?? '')} route=${route} go=${go} me=${me} models=${models} />
      </main>
    </div>
  `
}

function focusMain(event) {
  event.preventDefault() // the hash names the screen
  document.querySelector('#main').focus()
}

/** A screen reader says which screen has opened; not the first one, which the browser announces itself. */
function useScreenFocus(route, label) {
  const [first] = useState({ is: true })
  useEffect(() => {
    document.title = label ? `${label} · ivmix` : 'ivmix'
    if (!first.is) document.querySelector('h1')?.focus({ preventScroll: true })
    if (!first.is) scrollTo(0, 0)
    first.is = false
  }, [route.name, route.id])
}

function Nav({ screens, current }) {
  const queue = useQueue()
  const waiting = queue?.data.reduce((sum, model) => sum + model.queued + model.running, 0)
  const links = Object.entries(screens).filter(([, { label }]) => label)
  return html`<nav class="nav" aria-label="Screens">
    ${links.map(
      ([name, { label }]) => html`<a href="#/${name}" aria-current=${name === current ? 'page' : undefined}>
        <${Icon} name=${name} />${label}
        ${name === 'queue' && waiting > 0 && html`<span class="count">${waiting}<span class="visually-hidden"> unfinished</span></span>`}
      </a>`,
    )}
  </nav>`
}

function SideEnd({ me, onEnd }) {
  const connection = useConnection()
  const [error, setError] = useState(null)
  const signOut = () => api.delete('/v1/session').then(onEnd, setError)
  return html`<div class="side-end">
    <span class="connection ${connection}" role="status">${connection === 'live' ? 'Live' : 'Connecting'}</span>
    <a href="docs">API</a>
    ${me.auth === 'keys' && html`<span class="who">${me.name ?? 'Signed in'}<br /><span class="scopes">${me.scopes.join(', ')}</span></span>`}
    ${me.auth === 'keys' && html`<${Button} icon="out" onClick=${signOut}>Sign out<//>`}
    <${ErrorBox} error=${error} />
  </div>`
}

render(html`<${App} />`, document.querySelector('#app'))
