/** Compare: two to four videos, played in sync. The ids are in the URL, so that a link restores a comparison. */

import { html, useEffect, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { CopyButton } from '../copy.js'
import { onReset, onVideo, remember } from '../live.js'
import { Button, Head, can } from '../parts.js'
import { Controls } from './compare_parts/controls.js'
import { NewComparison } from './compare_parts/form.js'
import { Panel } from './compare_parts/panel.js'
import { Pick } from './compare_parts/pick.js'
import { Playback } from './compare_parts/playback.js'
import { settingsCompared, titlesOf } from './compare_parts/words.js'

const MOST = 4

const linkOf = (ids) => (ids.length ? `#/compare?ids=${ids.join(',')}` : '#/compare')

export default function Compare({ route, go, me, models }) {
  const ids = [...new Set((route.query.get('ids') ?? '').split(',').filter(Boolean))].slice(0, MOST)
  if (!ids.length) return html`<${Start} go=${go} me=${me} models=${models} />`
  return html`<${Comparison} ids=${ids} go=${go} models=${models} />`
}

function Start({ go, me, models }) {
  const open = (ids) => go(linkOf(ids))
  return html`
    <${Head} title="Compare"><p>One prompt and one seed, two to four samplers or settings, played in sync</p><//>
    <div class="stack wide">
      ${can(me, 'videos.write') && models.length > 0 && html`<${NewComparison} models=${models} onCreated=${open} />`}
      <section class="stack" aria-labelledby="pick"><h2 id="pick">Or compare existing videos</h2><${Pick} ids=${[]} most=${MOST} onPick=${open} /></section>
    </div>
  `
}

function Comparison({ ids, go, models }) {
  const [playback] = useState(() => new Playback())
  const [isPicking, setPicking] = useState(false)
  const { found, errors, read } = useVideos(ids)
  useEffect(() => () => playback.pause(), [])
  const videos = ids.map((id) => found[id]).filter(Boolean)
  const titles = titlesOf(videos, models)
  const prompts = new Set(videos.map(({ prompt }) => prompt))
  const actions = html`
    <${CopyButton} text=${location.href} icon="link">Copy link<//>
    ${ids.length < MOST && html`<${Button} icon="create" aria-expanded=${isPicking} onClick=${() => setPicking(!isPicking)}>Add a video<//>`}
    <${Button} kind="quiet" href=${linkOf([])}>New comparison<//>
  `
  return html`
    <${Head} title="Compare" actions=${actions}><p>${prompts.size > 1 ? 'Different prompts' : [...prompts]}</p><//>
    <div class="stack wide">
      ${isPicking && html`<${Pick} ids=${ids} most=${MOST} like=${videos[0]} onPick=${(picked) => (setPicking(false), go(linkOf(picked)))} />`}
      <div class="panels" style=${{ '--panels': ids.length }}>
        ${ids.map(
          (id) => html`<${Panel}
            key=${id}
            id=${id}
            title=${titles.get(id) ?? id}
            video=${found[id] ?? null}
            error=${errors[id] ?? null}
            playback=${playback}
            onRemove=${() => go(linkOf(ids.filter((other) => other !== id)))}
            onExpired=${() => read(id)}
          />`,
        )}
      </div>
      ${videos.some(({ status }) => status === 'completed') && html`<${Controls} playback=${playback} />`}
      ${videos.length > 1 && html`<${Settings} videos=${videos} titles=${titles} models=${models} />`}
    </div>
  `
}

/** The videos by id, as they are now, and the API's errors about them. */
function useVideos(ids) {
  const [state, setState] = useState({ found: {}, errors: {} })
  const put = (video) => setState(({ found, errors }) => ({ found: { ...found, [video.id]: video }, errors: { ...errors, [video.id]: null } }))
  const refuse = (id, error) => setState(({ found, errors }) => ({ found: { ...found, [id]: null }, errors: { ...errors, [id]: error } }))
  const read = (id) =>
    api.get(`/v1/videos/${id}`).then(
      (video) => (remember(video), put(video)),
      (error) => refuse(id, error),
    )
  const key = ids.join()
  useEffect(() => {
    const readAll = () => ids.forEach(read)
    readAll()
    const take = (kind, video) => {
      if (!ids.includes(video.id)) return
      if (kind === 'deleted') read(video.id) // for the API's sentence
      else put(video)
    }
    const ends = [onVideo(take), onReset(readAll)]
    return () => ends.forEach((end) => end())
  }, [key])
  return { ...state, read }
}

function Settings({ videos, titles, models }) {
  const { same, different } = settingsCompared(videos, models)
  return html`<section class="card stack" aria-labelledby="settings">
    <h2 id="settings">Settings</h2>
    ${different.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Different settings"><table class="settings-table">
      <caption class="visually-hidden">Different settings</caption>
      <thead><tr><th scope="col">Different</th>${videos.map(({ id }) => html`<th scope="col">${titles.get(id)}</th>`)}</tr></thead>
      <tbody>${different.map(([name, values]) => html`<tr><th scope="row">${name}</th>${values.map((value) => html`<td>${value ?? html`<span class="muted">–</span>`}</td>`)}</tr>`)}</tbody>
    </table></div>`}
    <details><summary>The same in all (${same.length})</summary>
      <dl class="facts">${same.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
    </details>
  </section>`
}
