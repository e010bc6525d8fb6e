/** Icons of the page, drawn with lines in the colour of the text. */

import { html } from './vendor/preact-htm.js'

const PATHS = {
  create: 'M12 5v14M5 12h14',
  queue: 'M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01',
  gallery: 'M4 5h7v6H4zM13 5h7v6h-7zM4 13h7v6H4zM13 13h7v6h-7z',
  compare: 'M12 4v16M4 6h5v12H4M20 6h-5v12h5',
  webhooks: 'M4 12h4l3-7 3 14 3-7h3',
  alert: 'M12 8v5M12 16.5h.01M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17z',
  play: 'M8 5v14l11-7z',
  pause: 'M9 6v12M15 6v12',
  back: 'M17 6l-8 6 8 6zM6 6v12',
  forward: 'M7 6l8 6-8 6zM18 6v12',
  close: 'M6 6l12 12M18 6L6 18',
  link: 'M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1',
  copy: 'M9 9h10v10H9zM15 9V5H5v10h4',
  download: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  again: 'M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4',
  edit: 'M5 19h3L19 8l-3-3L5 16z',
  trash: 'M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12',
  stop: 'M7 7h10v10H7z',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  out: 'M14 5H6v14h8M11 12h9M17 8l4 4-4 4',
}

/**
 * @param {{name: keyof typeof PATHS}} props
 */
export function Icon({ name }) {
  return html`<svg
    class="icon"
    viewBox="0 0 24 24"
    fill="none"
    stroke="currentColor"
    stroke-width="1.8"
    stroke-linecap="round"
    stroke-linejoin="round"
    aria-hidden="true"
  >
    <path d=${PATHS[name]} />
  </svg>`
}
