/** What the request of the form would cost, asked of the server while a person changes it. */

import { useEffect, useState } from '../../vendor/preact-htm.js'
import { api } from '../../api.js'

const PAUSE_MS = 180 // after the last change

/**
 * @param {object} body of POST /v1/videos
 * @returns {{estimate: object | null, error: Error | null, isCurrent: boolean}} the last estimate stays while another
 * one is on its way, so that nothing jumps
 */
export function useEstimate(body) {
  const [state, setState] = useState({ estimate: null, error: null, text: null })
  const text = JSON.stringify(body)
  useEffect(() => {
    const stop = new AbortController()
    const ask = async () => {
      try {
        const estimate = await api.post('/v1/videos/estimate', JSON.parse(text), { signal: stop.signal })
        setState({ estimate, error: null, text })
      } catch (error) {
        if (error.name !== 'AbortError') setState((last) => ({ ...last, error, text }))
      }
    }
    const timer = setTimeout(ask, state.text === null ? 0 : PAUSE_MS)
    return () => {
      clearTimeout(timer)
      stop.abort()
    }
  }, [text])
  return { ...state, isCurrent: state.text === text }
}
