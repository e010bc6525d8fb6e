/** What happens on the server, as it happens: one event connection per page, shared by all screens. */

import { useCallback, useEffect, useState } from './vendor/preact-htm.js'
import { api, apiUrl } from './api.js'

const KINDS = ['created', 'progress', 'completed', 'failed', 'deleted']
const MOST_VIDEOS = 500 // kept in memory; the newest ones
const LONGEST_WAIT_MS = 30_000

const videos = new Map()
const videoListeners = new Set()
const resetListeners = new Set()
const changeListeners = new Set()
let source = null
let timer = null
let waitMs = 1000
let queue = null
let connection = 'reconnecting'

const changed = () => changeListeners.forEach((listener) => listener())
const parsed = (event) => JSON.parse(event.data)

/** Opens the connection. Call it once the caller is known to the server. */
export function start() {
  if (!source && !timer) open()
}

/** Closes the connection and forgets everything. */
export function stop() {
  clearTimeout(timer)
  source?.close()
  source = timer = queue = null
  videos.clear()
  setConnection('reconnecting')
}

function open() {
  timer = null
  source = new EventSource(apiUrl('/v1/events'))
  source.onopen = () => {
    waitMs = 1000
    setConnection('live')
  }
  source.onerror = () => {
    setConnection('reconnecting')
    if (source.readyState === EventSource.CLOSED) openLater() // the browser repeats by itself only a lost connection
  }
  for (const kind of KINDS) source.addEventListener(`video.${kind}`, (event) => take(kind, parsed(event)))
  source.addEventListener('queue', (event) => {
    queue = parsed(event)
    changed()
  })
  source.addEventListener('reset', reset)
}

function openLater() {
  source = null
  api.get('/v1/session').catch(() => {}) // if the key was revoked, this leads to the sign-in
  timer = setTimeout(() => {
    open()
    reset() // a new connection knows nothing of the last one
  }, waitMs)
  waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS)
}

function reset() {
  videos.clear()
  resetListeners.forEach((listener) => listener())
}

function take(kind, video) {
  if (kind === 'deleted') videos.delete(video.id)
  else keep(video)
  videoListeners.forEach((listener) => listener(kind, video))
  changed()
}

/** Keeps a video that a screen has just read, so that others show it too. */
export function remember(video) {
  keep(video)
  changed()
}

function keep(video) {
  videos.delete(video.id) // to the end: the first entries are dropped
  videos.set(video.id, video)
  if (videos.size > MOST_VIDEOS) videos.delete(videos.keys().next().value)
}

function setConnection(state) {
  connection = state
  changed()
}

function useLive(read) {
  const [value, setValue] = useState(read)
  useEffect(() => {
    const update = () => setValue(read)
    update()
    changeListeners.add(update)
    return () => changeListeners.delete(update)
  }, [read])
  return value
}

const readQueue = () => queue
const readConnection = () => connection

/** The body of GET /v1/queue, or null until it is known. */
export const useQueue = () => useLive(readQueue)

/** 'live' or 'reconnecting'. */
export const useConnection = () => useLive(readConnection)

/** The newest known state of a video, or `initial`. */
export function useVideo(id, initial = null) {
  const read = useCallback(() => videos.get(id), [id])
  return useLive(read) ?? initial
}

/**
 * Calls back for each event of a video. Returns the function that ends this.
 * @param {(kind: 'created' | 'progress' | 'completed' | 'failed' | 'deleted', video: object) => void} callback
 */
export function onVideo(callback) {
  videoListeners.add(callback)
  return () => videoListeners.delete(callback)
}

/** Calls back when events were missed: read the lists again. Returns the function that ends this. */
export function onReset(callback) {
  resetListeners.add(callback)
  return () => resetListeners.delete(callback)
}
