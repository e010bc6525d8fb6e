/** The videos that meet a filter, newest first: read page by page, and kept up to date by the events of the server. */

import { useEffect, useState } from './vendor/preact-htm.js'
import { api } from './api.js'
import { onReset, onVideo, remember } from './live.js'

const PAGE = 48
const MOST_READ = 1000 // videos that one search for a text reads before it asks to go on
const DAY_S = 86_400

/** The first second of a day, such as 2026-11-27, where the person is. */
const startOf = (day) => new Date(`${day}T00:00:00`).getTime() / 1000

/**
 * @typedef {{model: string, status: string, text: string, from: string, to: string, metadata: string}} Filter
 * All may be empty. `from` and `to` are days, both included; `metadata` is NAME=VALUE.
 */

/** The query of GET /v1/videos. It has no text: prompts are searched here. */
function queryOf({ model, status, from, to, metadata }) {
  const query = new URLSearchParams()
  if (model) query.set('model', model)
  if (status) query.set('status', status)
  if (from) query.set('created_after', startOf(from))
  if (to) query.set('created_before', startOf(to) + DAY_S)
  const [name, ...value] = metadata.split('=')
  if (name && value.length) query.set(`metadata[${name.trim()}]`, value.join('=').trim())
  return query
}

const hasText = (video, text) => (video.prompt ?? '').toLowerCase().includes(text.trim().toLowerCase())

function matches(video, filter) {
  const query = queryOf(filter)
  const after = Number(query.get('created_after') ?? 0)
  const before = Number(query.get('created_before') ?? Infinity)
  const pairs = [...query].filter(([name]) => name.startsWith('metadata['))
  return (
    (!filter.model || video.model === filter.model) &&
    (!filter.status || filter.status.split(',').includes(video.status)) &&
    after <= video.created_at &&
    video.created_at < before &&
    pairs.every(([name, value]) => video.metadata[name.slice(9, -1)] === value) &&
    hasText(video, filter.text)
  )
}

/** Ids begin with the time of creation. */
const isNewer = (a, b) => a.id > b.id

class VideoList {
  videos = []
  hasMore = true
  isLoading = false
  error = null
  searched = 0
  asks = false // a search has read many videos and found few: the person decides whether it goes on
  #after = null
  #stop = new AbortController()

  constructor(filter, onChange) {
    Object.assign(this, { filter, onChange })
  }

  close() {
    this.#stop.abort()
  }

  async more() {
    if (this.isLoading || !this.hasMore) return
    Object.assign(this, { isLoading: true, error: null })
    this.onChange()
    try {
      await this.#read()
    } catch (error) {
      if (error.name === 'AbortError') return
      this.error = error
    }
    this.isLoading = false
    this.onChange()
  }

  async #read() {
    const { text } = this.filter
    const enough = this.videos.length + (text ? PAGE / 2 : 1)
    const last = this.searched + MOST_READ
    do {
      const query = queryOf(this.filter)
      query.set('limit', text ? 100 : PAGE)
      if (this.#after) query.set('after', this.#after)
      const page = await api.get('/v1/videos', { query, signal: this.#stop.signal })
      this.#after = page.last_id ?? this.#after
      this.hasMore = page.has_more
      this.searched += page.data.length
      page.data.forEach(remember)
      page.data.filter((video) => hasText(video, text)).forEach((video) => this.#put(video))
      this.onChange()
    } while (this.hasMore && this.videos.length < enough && this.searched < last)
    this.asks = this.hasMore && this.videos.length < enough
  }

  /** An event of the server. A video between two pages that are not read yet comes with its page. */
  take(kind, video) {
    const oldest = this.videos.at(-1)
    const isKnown = this.videos.some(({ id }) => id === video.id)
    if (kind === 'deleted' || !matches(video, this.filter)) this.remove(video.id)
    else if (isKnown || !this.hasMore || (oldest && isNewer(video, oldest))) this.#put(video)
    else return
    this.onChange()
  }

  remove(id) {
    this.videos = this.videos.filter((video) => video.id !== id)
  }

  #put(video) {
    const at = this.videos.findIndex(({ id }) => id === video.id)
    if (at >= 0) {
      this.videos = this.videos.with(at, video)
      return
    }
    const place = this.videos.findLastIndex((other) => isNewer(other, video)) + 1
    this.videos = this.videos.toSpliced(place, 0, video)
  }
}

/**
 * The list of a filter; a new filter, or missed events, begin a new one.
 * @param {Filter} filter
 * @returns {VideoList}
 */
export function useVideoList(filter) {
  const key = JSON.stringify(filter)
  const [round, setRound] = useState(0)
  const [, count] = useState(0)
  const [list, setList] = useState(null)
  useEffect(() => {
    const opened = new VideoList(filter, () => count((n) => n + 1))
    setList(opened)
    opened.more()
    const ends = [
      onVideo((kind, video) => opened.take(kind, video)),
      onReset(() => setRound((n) => n + 1)),
      () => opened.close(),
    ]
    return () => ends.forEach((end) => end())
  }, [key, round])
  return list
}
