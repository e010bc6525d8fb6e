/** <ivmix-player>: a video of this server on any page, and its progress until it is made. See docs/embedding.md. */

const HERE = new URL('.', import.meta.url).href // this server, with its path prefix
const LONGEST_WAIT_S = 30
const FINAL = [400, 401, 403, 404] // another try would have the same answer

const hasEnded = (video) => video?.status === 'completed' || video?.status === 'failed'
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds))

/** Throws an Error with the API's own sentence; `isFinal` unless another try may succeed. */
async function request(url, apiKey, options = {}) {
  const headers = { ...options.headers, ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}) }
  const response = await fetch(url, { credentials: 'same-origin', ...options, headers })
  if (response.ok) return response
  const answer = await response.json().catch(() => null)
  const error = new Error(answer?.error?.message ?? `The server answered with status ${response.status}.`)
  const retryAfter = Number(response.headers.get('retry-after')) || 0
  throw Object.assign(error, { isFinal: FINAL.includes(response.status), retryAfter })
}

/** Yields `open`, then the events of one connection, those after the event `last`. */
async function* connect(url, { apiKey, signal, last }) {
  const response = await request(url, apiKey, { signal, headers: last ? { 'last-event-id': last } : {} })
  if (response.status === 204) return
  yield { event: 'open' }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  try {
    for (let text = '', part; !(part = await reader.read()).done; ) {
      const blocks = (text + part.value).replaceAll('\r', '').split('\n\n')
      text = blocks.pop()
      for (const block of blocks) {
        const field = (name) => block.match(new RegExp(`^${name}: ?(.*)$`, 'm'))?.[1]
        if (field('data')) yield { event: field('event'), id: field('id'), data: JSON.parse(field('data')) }
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

/** Yields what `attempt` yields, and begins again after its end or an error, with growing pauses. */
async function* repeat(attempt, signal, onError) {
  for (let wait = 1; !signal?.aborted; wait = Math.min(2 * wait, LONGEST_WAIT_S)) {
    try {
      for await (const value of attempt()) {
        wait = 0.5
        yield value
      }
    } catch (error) {
      if (signal?.aborted) return
      onError?.(error)
      if (error.isFinal) throw error
      wait = Math.max(wait, error.retryAfter ?? 0)
    }
    await pause(wait)
  }
}

/**
 * Yields the events of a stream, such as /v1/events, as { event, id, data } with data parsed; `open`, without data, after
 * each connection. Resumes after a lost connection. Throws an Error with the API's sentence if the server refuses.
 */
export function follow(url, { apiKey, signal } = {}) {
  let last
  async function* attempt() {
    for await (const event of connect(url, { apiKey, signal, last })) {
      last = event.id ?? last
      yield event
    }
  }
  return repeat(attempt, signal)
}

/** One event connection for all players with the same server and key: a browser opens only six to one server. */
class Events {
  static #all = new Map()

  static of(server, apiKey) {
    const key = `${server} ${apiKey}`
    if (!this.#all.has(key)) this.#all.set(key, new Events(`${server}v1/events`, apiKey))
    return this.#all.get(key)
  }

  #players = new Set()
  #stop = null
  #isOpen = false

  constructor(url, apiKey) {
    Object.assign(this, { url, apiKey })
  }

  add(player) {
    if (this.#players.has(player)) return
    this.#players.add(player)
    if (this.#isOpen) player.read()
    if (!this.#stop) this.#run()
  }

  remove(player) {
    this.#players.delete(player)
    if (!this.#players.size) this.#stop?.abort()
  }

  async #run() {
    const { signal } = (this.#stop = new AbortController())
    try {
      for await (const { event, data } of follow(this.url, { apiKey: this.apiKey, signal })) {
        this.#isOpen = true
        for (const player of [...this.#players]) {
          if (event === 'open' || event === 'reset') player.read()
          else if (data.id === player.getAttribute('video')) player.take(event, data)
        }
      }
    } catch (error) {
      for (const player of this.#players) player.fail(error)
    }
    this.#isOpen = false
    this.#stop = null
    if (signal.aborted && this.#players.size) this.#run() // added while the connection was closed
  }
}

const STYLE = new CSSStyleSheet() // adopted, because the policy of the page may forbid inline styles
STYLE.replaceSync(`
  :host { display: block; max-width: 100% }
  :host([hidden]), [hidden] { display: none }
  div { position: relative; overflow: hidden; border-radius: inherit; background: #16191d; color: #f2f3f5 }
  video, img { display: block; width: 100%; height: 100%; object-fit: contain }
  img { position: absolute; inset: 0 }
  p { position: absolute; inset: auto 0 0; margin: 0; padding: 10px 14px; font: 14px/1.4 system-ui, sans-serif;
    background: rgb(16 18 21 / 82%) }
  progress { display: block; width: 100%; height: 6px; margin-top: 6px; accent-color: #5cc9be }
`)

const make = (name, properties = {}) => Object.assign(document.createElement(name), properties)

/**
 * Attributes: `video` (its id), `server` (default: the one of this script) and `api-key`, or without a key `src` and
 * `poster`: signed URLs; `controls`, `loop`, `muted`, `autoplay`. Properties: `data`, the Video as the API shows it, and
 * `media`, the <video>. Events: `ivmix-change` with a Video as detail, `ivmix-error` with an Error.
 */
class IvmixPlayer extends HTMLElement {
  static observedAttributes = ['video', 'server', 'api-key', 'src', 'poster', 'controls', 'loop', 'muted', 'autoplay']

  data = null
  media = make('video', { playsInline: true, preload: 'none' })
  #image = make('img', { alt: '', hidden: true })
  #text = make('span')
  #bar = make('progress', { max: 100, ariaLabel: 'Progress' })
  #line = make('p', { hidden: true })
  #box = make('div')
  #stop = null
  #events = null
  #isRefreshed = false
  #isPlaying = false

  constructor() {
    super()
    this.#line.append(this.#text, this.#bar)
    this.#box.append(this.media, this.#image, this.#line)
    this.attachShadow({ mode: 'open' }).append(this.#box)
    this.shadowRoot.adoptedStyleSheets = [STYLE]
    this.media.addEventListener('loadeddata', () => (this.#isRefreshed = false))
    this.media.addEventListener('play', () => (this.#isPlaying = true))
    this.media.addEventListener('pause', () => (this.#isPlaying = false)) // after an error too
    this.media.addEventListener('error', () => this.#refresh())
  }

  get apiKey() {
    return this.getAttribute('api-key')
  }

  set apiKey(key) {
    this.setAttribute('api-key', key)
  }

  connectedCallback() {
    this.#start()
  }

  disconnectedCallback() {
    this.#end()
    this.media.pause()
  }

  attributeChangedCallback(name) {
    if (['controls', 'loop', 'muted', 'autoplay'].includes(name)) this.media[name] = this.hasAttribute(name)
    else if (this.#stop) this.#start()
  }

  #url(path = '') {
    const server = `${this.getAttribute('server') ?? HERE}/`.replace(/\/+$/, '/')
    return new URL(path, new URL(server, document.baseURI)).href
  }

  /** Once for all attributes that change together. */
  async #start() {
    this.#end()
    const { signal } = (this.#stop = new AbortController())
    await null
    if (signal.aborted) return
    this.data = null
    this.#say('')
    if (this.hasAttribute('video')) this.read()
    else this.#play(this.getAttribute('src'), this.getAttribute('poster'))
  }

  #end() {
    this.#stop?.abort()
    this.#stop = null
    this.#events?.remove(this)
    this.#events = null
  }

  /** Reads the video, and follows it unless it has ended. */
  async read() {
    const { signal } = this.#stop
    const url = this.#url(`v1/videos/${encodeURIComponent(this.getAttribute('video'))}`)
    const { apiKey } = this
    async function* attempt() {
      yield (await request(url, apiKey, { signal })).json()
    }
    try {
      for await (const video of repeat(attempt, signal, (error) => this.fail(error))) {
        if (!signal.aborted && !hasEnded(this.data)) this.take('video.read', await video)
        return
      }
    } catch {} // it is shown
  }

  take(event, video) {
    if (event === 'video.deleted') return this.fail(new Error('The video was deleted.'))
    this.data = video
    this.#box.style.aspectRatio = `${video.width} / ${video.height}`
    this.media.ariaLabel = video.prompt
    this.#image.hidden = !video.preview_url
    if (video.preview_url) this.#image.src = this.#url(video.preview_url)
    this.#say(this.#words(video), hasEnded(video) ? null : video.progress)
    if (video.status === 'completed') this.#play(video.download_url, video.thumbnail_url)
    if (hasEnded(video)) this.#events?.remove(this)
    else (this.#events ??= Events.of(this.#url(), this.apiKey)).add(this)
    this.dispatchEvent(new CustomEvent('ivmix-change', { detail: video }))
  }

  fail(error) {
    this.#say(error.message)
    this.dispatchEvent(new CustomEvent('ivmix-error', { detail: error }))
  }

  #words({ status, error, queue_position: ahead, phase, step, total_steps: total }) {
    if (status === 'failed') return error.message
    if (status === 'completed') return ''
    if (status === 'queued') return ahead ? `Queued, ${ahead} ahead` : 'Queued'
    return phase ? `${phase[0].toUpperCase()}${phase.slice(1)}, step ${step} of ${total}` : 'Starting'
  }

  #say(text, progress = null) {
    this.#line.hidden = !text
    this.#text.textContent = text
    this.#bar.hidden = progress === null
    this.#bar.value = progress ?? 0
  }

  #play(src, poster) {
    if (poster) this.media.poster = this.#url(poster)
    else this.media.preload = 'metadata'
    if (src && this.media.src !== this.#url(src)) this.media.src = this.#url(src)
  }

  /** After an error of <video>: plays on with a new URL if the old one has expired, else shows what is wrong. */
  async #refresh() {
    const { currentTime, src } = this.media
    const isPlaying = this.#isPlaying
    if (this.hasAttribute('video') && !this.#isRefreshed) {
      this.#isRefreshed = true
      this.data = null
      await this.read()
      if (this.media.src !== src) {
        this.media.currentTime = currentTime
        return isPlaying && this.media.play()
      }
    }
    try {
      await request(src, null, { headers: { range: 'bytes=0-0' } })
      throw new Error('This browser cannot play the video.')
    } catch (error) {
      this.fail(error)
    }
  }
}

if (!customElements.get('ivmix-player')) customElements.define('ivmix-player', IvmixPlayer)
