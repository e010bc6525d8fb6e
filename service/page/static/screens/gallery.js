/** All videos that the caller may see, as pictures that play while the pointer or the focus is on them. */

import { html, useEffect, useRef, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { Confirm } from '../dialog.js'
import { Button, Empty, ErrorBox, Field, Head, can, seesAll } from '../parts.js'
import { useVideoList } from '../video_list.js'
import { Tile } from './gallery_parts/tile.js'

export const MOST_COMPARED = 4
const STATUSES = { '': 'All', 'queued,in_progress': 'Unfinished', completed: 'Completed', failed: 'Failed' }
const NAMES = ['model', 'status', 'text', 'from', 'to', 'metadata']

const filterOf = (query) => Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? '']))

/** Another filter is no new entry of the browser's history: Back leaves the gallery. */
function showFilter(filter) {
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value))
  const url = new URL(location.href)
  url.hash = `/gallery${query.size ? `?${query}` : ''}`
  location.replace(url)
}

export default function Gallery({ route, go, me, models }) {
  const filter = filterOf(route.query)
  const list = useVideoList(filter)
  const [selected, setSelected] = useState([])
  const [doomed, setDoomed] = useState(null)
  const isFiltered = NAMES.some((name) => filter[name])
  const toggle = (id) => setSelected((ids) => (ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id]))
  const ask = (ids) => setDoomed({ ids, next: neighbour(ids) })
  const onDeleted = () => {
    const { ids, next } = doomed
    ids.forEach((id) => list.remove(id))
    setSelected((all) => all.filter((id) => !ids.includes(id)))
    setDoomed(null)
    setTimeout(() => document.querySelector(next ? `#${next} a` : 'h1')?.focus()) // after the dialog has returned it
  }
  return html`
    <${Head} title="Gallery"><p>${seesAll(me) ? 'The videos of all API keys' : 'Your videos'}, newest first</p><//>
    <${Filters} filter=${filter} models=${models} key=${isFiltered} />
    <${Videos} list=${list} filter=${filter} selected=${selected} canDelete=${can(me, 'videos.write')} onToggle=${toggle} onDelete=${(id) => ask([id])} />
    <${Selection} ids=${selected} canDelete=${can(me, 'videos.write')} go=${go} onDelete=${() => ask(selected)} onClear=${() => setSelected([])} />
    ${doomed && html`<${DeleteDialog} ids=${doomed.ids} onDone=${onDeleted} onClose=${() => setDoomed(null)} />`}
  `
}

/** The id of the element that has the focus when these videos are gone. */
function neighbour(ids) {
  const tiles = [...document.querySelectorAll('.tile')].map((tile) => tile.id)
  const first = tiles.indexOf(`tile-${ids[0]}`)
  const isKept = (tile) => !ids.includes(tile.replace('tile-', ''))
  return tiles.slice(first).find(isKept) ?? tiles.slice(0, Math.max(0, first)).findLast(isKept)
}

function Filters({ filter, models }) {
  const set = (changes) => showFilter({ ...filter, ...changes })
  const isFiltered = Object.values(filter).some(Boolean)
  const [isOpen] = useState(Boolean(filter.model || filter.from || filter.to || filter.metadata))
  return html`<form class="filters stack" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
    <div class="row between">
      <div class="row" role="group" aria-label="Status">
        ${Object.entries(STATUSES).map(
          ([status, word]) => html`<button type="button" class="chip" aria-pressed=${filter.status === status} onClick=${() => set({ status })}>${word}</button>`,
        )}
      </div>
      <${Search} value=${filter.text} onChange=${(text) => set({ text })} />
    </div>
    <details open=${isOpen}>
      <summary>More filters</summary>
      <${MoreFilters} filter=${filter} models=${models} set=${set} />
    </details>
    ${isFiltered && html`<div><${Button} kind="quiet" onClick=${() => showFilter({})}>Clear filters<//></div>`}
  </form>`
}

function MoreFilters({ filter, models, set }) {
  const changed = (name) => (event) => set({ [name]: event.target.value })
  const known = models.some(({ id }) => id === filter.model) || !filter.model ? models : [{ id: filter.model }, ...models]
  const day = (name, label) => html`<${Field} id="filter-${name}" label=${label}>
    ${(attributes) => html`<input class="input" type="date" ...${attributes} value=${filter[name]} onChange=${changed(name)} />`}
  <//>`
  return html`<div class="filter-fields">
    <${Field} id="filter-model" label="Model">
      ${(attributes) => html`<select class="input" ...${attributes} value=${filter.model} onChange=${changed('model')}>
        <option value="">All models</option>
        ${known.map(({ id }) => html`<option value=${id}>${id}</option>`)}
      </select>`}
    <//>
    ${day('from', 'Created on or after')}${day('to', 'Created on or before')}
    <${Field} id="filter-metadata" label="Metadata" hint="NAME=VALUE, such as project=shapes">
      ${(attributes) => html`<input class="input" ...${attributes} value=${filter.metadata} pattern=".+=.*" autocomplete="off" onChange=${changed('metadata')} />`}
    <//>
  </div>`
}

/** Takes effect when the person stops typing. */
function Search({ value, onChange }) {
  const timer = useRef(0)
  const typed = (event) => {
    const text = event.target.value
    clearTimeout(timer.current)
    timer.current = setTimeout(() => onChange(text), 300)
  }
  useEffect(() => () => clearTimeout(timer.current), [])
  return html`<input class="input search" type="search" placeholder="Search prompts" aria-label="Search prompts" value=${value} onInput=${typed} />`
}

function Videos({ list, filter, selected, canDelete, onToggle, onDelete }) {
  if (!list) return null
  const { videos, hasMore, isLoading, error } = list
  const isFull = selected.length >= MOST_COMPARED
  if (!videos.length && !hasMore) return html`<${NoVideos} filter=${filter} />`
  return html`
    <ul class="tiles" aria-label="Videos" aria-busy=${isLoading}>
      ${videos.map(
        (video) => html`<${Tile}
          key=${video.id}
          video=${video}
          isSelected=${selected.includes(video.id)}
          canDelete=${canDelete}
          onToggle=${onToggle}
          onDelete=${onDelete}
        />`,
      )}
    </ul>
    <${ErrorBox} error=${error} />
    <${More} list=${list} />
    <p class="visually-hidden" role="status">${isLoading ? '' : `${videos.length} videos${hasMore ? ', there are more' : ''}`}</p>
  `
}

function NoVideos({ filter }) {
  if (Object.values(filter).some(Boolean)) {
    return html`<${Empty} title="No videos match these filters"><${Button} onClick=${() => showFilter({})}>Clear filters<//><//>`
  }
  return html`<${Empty} title="No videos yet"><${Button} kind="primary" icon="create" href="#/create">Create one<//><//>`
}

/** Reads on when the end of the list comes into view; the button does the same. */
function More({ list }) {
  const end = useRef(null)
  const { videos, hasMore, isLoading, error, asks, searched } = list
  const found = videos.length
  useEffect(() => {
    if (!hasMore || isLoading || error || asks) return undefined
    const observer = new IntersectionObserver(([entry]) => entry.isIntersecting && list.more(), { rootMargin: '800px' })
    observer.observe(end.current)
    return () => observer.disconnect()
  }, [list, found, hasMore, isLoading, error, asks])
  if (!hasMore) return html`<p class="muted small list-end">${found} ${found === 1 ? 'video' : 'videos'}</p>`
  const word = asks ? `Search older videos (${searched} searched)` : 'Show more'
  return html`<div class="row list-end" ref=${end}><${Button} busy=${isLoading} onClick=${() => list.more()}>${isLoading ? 'Loading' : word}<//></div>`
}

/** What can be done with the selected videos, at the lower edge of the window. */
function Selection({ ids, canDelete, go, onDelete, onClear }) {
  if (!ids.length) return null
  const compare = () => go(`#/compare?ids=${ids.join(',')}`)
  const isComparable = ids.length >= 2 && ids.length <= MOST_COMPARED
  const hint = ids.length < 2 ? 'Select another one to compare' : `At most ${MOST_COMPARED} can be compared`
  return html`<div class="selection card" role="region" aria-label="Selection">
    <p role="status"><b class="number">${ids.length}</b> selected${!isComparable && html`<span class="muted small"> ${hint}</span>`}</p>
    <div class="row">
      <${Button} kind="primary" icon="compare" busy=${!isComparable} onClick=${compare}>Compare<//>
      ${canDelete && html`<${Button} kind="danger" icon="trash" onClick=${onDelete}>Delete<//>`}
      <${Button} kind="quiet" onClick=${onClear}>Clear<//>
    </div>
  </div>`
}

function DeleteDialog({ ids, onDone, onClose }) {
  const count = ids.length === 1 ? 'this video' : `${ids.length} videos`
  const remove = async () => {
    for (const id of ids) await api.delete(`/v1/videos/${id}`).catch((error) => error.status === 404 || Promise.reject(error))
  }
  return html`<${Confirm} title="Delete ${count}?" verb="Delete" action=${remove} onDone=${onDone} onClose=${onClose}>
    <p>The record and the files are deleted for good. An unfinished video is cancelled before.</p>
  <//>`
}
