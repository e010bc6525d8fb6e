/** Create: prompt, settings from GET /v1/models, and what they cost. */

import { html, useEffect, useState } from '../vendor/preact-htm.js'
import { api } from '../api.js'
import { remember } from '../live.js'
import { Empty, ErrorBox, Head } from '../parts.js'
import { Basics, More, Prompt } from './create_parts/basics.js'
import { EXAMPLES, emptyForm, formOf, requestBody } from './create_parts/form.js'
import { Loras } from './create_parts/loras.js'
import { Reference, estimateBody } from './create_parts/reference.js'
import { SamplerSettings } from './create_parts/sampler.js'
import { Summary } from './create_parts/summary.js'
import { useEstimate } from './create_parts/use_estimate.js'

export default function Create({ route, go, models }) {
  const source = route.query.get('from')
  const { video, error } = useSource(source)
  if (models.length === 0) return html`<${NoModels} />`
  if (source && !video && !error) return html`<${Head} title="Create a video" />`
  const model = models.find(({ id }) => id === video?.model) ?? models[0]
  const start = video ? formOf(video, model) : emptyForm(model, route.query.get('prompt') ?? '')
  return html`<${Head} title=${video ? 'Create from an earlier video' : 'Create a video'} />
    <${ErrorBox} error=${error} />
    <${Form} key=${source} start=${start} models=${models} go=${go} />`
}

const NoModels = () => html`<${Head} title="Create a video" />
  <${Empty} title="No model can be used at the moment"><p>The <a href="#/queue">queue</a> says why.</p><//>`

function useSource(id) {
  const [state, setState] = useState({ video: null, error: null })
  useEffect(() => {
    if (!id) return setState({ video: null, error: null })
    api.get(`/v1/videos/${id}`).then(
      (video) => setState({ video, error: null }),
      (error) => setState({ video: null, error }),
    )
  }, [id])
  return state
}

function Form({ start, models, go }) {
  const [form, setForm] = useState(start)
  const model = models.find(({ id }) => id === form.model) ?? models[0]
  const body = requestBody(form)
  const { estimate, error, isCurrent } = useEstimate(estimateBody({ ...body, prompt: form.prompt.trim() || anyPrompt(model) }, form))
  const { submit, failure, isBusy } = useSubmit(body, form.kept ? `/v1/videos/${form.kept.id}/run_again` : '/v1/videos', go)
  const problem = isCurrent ? error : null
  const errorOf = (param) => (problem?.param === param ? problem.message : undefined)
  const change = (changes) => setForm({ ...form, ...changes })
  const steps = estimate?.num_inference_steps ?? model.num_inference_steps.default
  // A problem with a field is shown there; all others above the button.
  const shown = failure ?? (problem && !isFieldOf(problem.param, model) ? problem : null)
  return html`<form class="create" onSubmit=${submit}>
    <${Prompt} form=${form} model=${model} error=${errorOf('prompt')} onChange=${change} />
    <${Summary} estimate=${estimate} model=${model} error=${shown} isCurrent=${isCurrent} isBusy=${isBusy} count=${Number(form.num_videos) || 1} />
    <div class="stack settings">
      <section class="card stack" aria-labelledby="settings">
        <h2 id="settings">Settings</h2>
        <${Basics} form=${form} model=${model} models=${models} errorOf=${errorOf} onChange=${change} onModel=${(id) => setForm(emptyForm(models.find((each) => each.id === id), form.prompt))} />
        <${Reference} form=${form} errorOf=${errorOf} onChange=${change} />
        <${Loras} form=${form} model=${model} error=${problem?.param?.startsWith('loras') ? problem.message : undefined} onChange=${change} />
      </section>
      <section class="card stack" aria-labelledby="sampler">
        <h2 id="sampler">Sampler</h2>
        <${SamplerSettings} form=${form} model=${model} steps=${steps} errorOf=${errorOf} onChange=${setForm} />
      </section>
      <details class="card">
        <summary>More settings</summary>
        <${More} form=${form} model=${model} errorOf=${errorOf} cacheError=${problem?.param?.startsWith('cache') ? problem.message : undefined} onChange=${change} />
      </details>
    </div>
  </form>`
}

const anyPrompt = (model) => (model.examples.length ? model.examples : EXAMPLES)[0]

const FIELDS = ['prompt', 'size', 'num_frames', 'fps', 'num_inference_steps', 'guidance_scale', 'seed', 'input_reference', 'strength', 'reference_use', 'clip_skip', 'num_videos', 'negative_prompt', 'callback_url', 'metadata']

function isFieldOf(param, model) {
  if (!param) return false
  const setting = param.replace(/^sampler\./, '')
  return FIELDS.includes(param) || (param.startsWith('loras') && model.loras.length > 0) || (param.startsWith('cache') && model.caches.length > 0) || setting === 'name' || Object.values(model.sampler_settings).flat().includes(setting)
}

/** Creates the video and goes to it, or to the gallery if there are several. */
function useSubmit(body, path, go) {
  const [state, setState] = useState({ failure: null, isBusy: false })
  const submit = async (event) => {
    event.preventDefault()
    setState({ failure: null, isBusy: true })
    try {
      const video = await api.post(path, body)
      if (!video.video_ids) remember(video)
      go(video.video_ids ? '#/gallery' : `#/videos/${video.id}`)
    } catch (failure) {
      setState({ failure, isBusy: false })
    }
  }
  return { ...state, submit }
}
