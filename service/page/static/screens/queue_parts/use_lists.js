/** The unfinished videos and those that ended last, kept up to date by events. */

import { useEffect, useRef, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'
import { onReset, onVideo, useConnection, useQueue } from '../../live.js'

export const MOST = 50 // of each list
const MOST_ENDED = 6
const READ_AT_MOST_EVERY_MS = 3000 // places change with every start, on every open page

const EMPTY = { queued: [], running: [], ended: [], hasMore: false, isReady: false, error: null }

async function read() {
  const list = (query) => api.get('/v1/videos', { query: { limit: MOST, ...query } })
  const [queued, running, ended] = await Promise.all([
    list({ status: 'queued', order: 'asc' }),
    list({ status: 'in_progress', order: 'asc' }),
    list({ status: 'completed,failed', limit: MOST_ENDED }),
  ])
  return { queued: byPlace(queued.data), running: running.data, ended: ended.data, hasMore: queued.has_more, isReady: true, error: null }
}

const byPlace = (videos) => videos.toSorted((a, b) => (a.queue_position ?? 0) - (b.queue_position ?? 0))

/** The lists after one event. */
export function withEvent(lists, kind, video) {
  const known = lists.queued.find(({ id }) => id === video.id)
  const without = (list) => list.filter(({ id }) => id !== video.id)
  const next = { ...lists, queued: without(lists.queued), ended: without(lists.ended) }
  const isRunning = kind !== 'deleted' && video.status === 'in_progress'
  const place = lists.running.findIndex(({ id }) => id === video.id)
  if (isRunning && place >= 0) next.running = lists.running.with(place, video) // stays where it is
  else next.running = isRunning ? [...lists.running, video].slice(0, MOST) : without(lists.running)
  if (kind === 'deleted' || isRunning) return next
  if (video.status === 'queued') {
    const queued = { ...video, queue_position: video.queue_position ?? known?.queue_position ?? lists.queued.length }
    return { ...next, queued: byPlace([...next.queued, queued]).slice(0, MOST) }
  }
  return { ...next, ended: [video, ...next.ended].slice(0, MOST_ENDED) }
}

/** @returns {typeof EMPTY & {reload: () => Promise<void>}} */
export function useLists() {
  const [lists, setLists] = useState(EMPTY)
  const queue = useQueue()
  const isLive = useConnection() === 'live'
  const last = useRef(0)
  const reload = async () => {
    last.current = Date.now()
    await read().then(setLists, (error) => setLists((known) => ({ ...known, error, isReady: true })))
  }
  useEffect(() => {
    reload()
    const ends = [onReset(reload), onVideo((kind, video) => setLists((known) => (known.isReady ? withEvent(known, kind, video) : known)))]
    return () => ends.forEach((end) => end())
  }, [])
  useEffect(() => {
    if (!queue || document.hidden) return undefined
    const timer = setTimeout(reload, Math.max(0, last.current + READ_AT_MOST_EVERY_MS - Date.now()))
    return () => clearTimeout(timer)
  }, [queue])
  useEffect(() => {
    if (isLive) return undefined
    const timer = setInterval(reload, READ_AT_MOST_EVERY_MS)
    return () => clearInterval(timer)
  }, [isLive])
  return { ...lists, reload }
}
