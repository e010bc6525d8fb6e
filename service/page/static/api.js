/** Calls of the API. The browser adds the cookie of the session; no script ever keeps a key. */

/** An answer that is an error, with the API's own sentence as message. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 if there was no answer
   * @param {{message: string, code?: string, param?: string | null}} error
   * @param {number | null} [retryAfter] seconds
   */
  constructor(status, { message, code = '', param = null }, retryAfter = null) {
    super(message)
    Object.assign(this, { status, code, param, retryAfter })
  }
}

const UNREACHABLE = { message: 'The server cannot be reached. Is it running?', code: 'unreachable' }
const signedOutListeners = new Set()

/** Calls back whenever a request needs a new sign-in. Returns the function that ends this. */
export function onSignedOut(callback) {
  signedOutListeners.add(callback)
  return () => signedOutListeners.delete(callback)
}

/** The URL of an API path, such as /v1/videos, under the prefix of this server. */
export function apiUrl(path, query = {}) {
  const url = new URL(path.replace(/^\//, ''), document.baseURI)
  const pairs = query instanceof URLSearchParams ? query : Object.entries(query)
  for (const [name, value] of pairs) {
    if (value !== undefined && value !== null && value !== '') url.searchParams.append(name, value)
  }
  return url.href
}

async function call(method, path, { body, query, signal, headers = {}, quiet = false } = {}) {
  const isJson = body !== undefined && !(body instanceof FormData)
  let response
  try {
    response = await fetch(apiUrl(path, query), {
      method,
      signal,
      credentials: 'same-origin',
      headers: { ...headers, ...(isJson ? { 'content-type': 'application/json' } : {}) },
      body: isJson ? JSON.stringify(body) : body,
    })
  } catch (error) {
    throw error.name === 'AbortError' ? error : new ApiError(0, UNREACHABLE)
  }
  const answer = await response.json().catch(() => null)
  if (response.ok) return answer
  if (response.status === 401 && !quiet) signedOutListeners.forEach((listener) => listener())
  const wait = Number.parseFloat(response.headers.get('retry-after') ?? '')
  const error = answer?.error ?? { message: `The server answered with status ${response.status}.` }
  throw new ApiError(response.status, error, Number.isNaN(wait) ? null : wait)
}

/** A body that contains a file becomes a form, whose objects are JSON text. */
function withFiles(body) {
  const fields = Object.entries(body ?? {})
  if (!fields.some(([, value]) => value instanceof File)) return body
  const form = new FormData()
  for (const [name, value] of fields) form.append(name, typeof value === 'object' && !(value instanceof File) ? JSON.stringify(value) : value)
  return form
}

/**
 * Each returns the parsed answer or throws ApiError. `options`: query, signal, headers, and quiet, with which a 401 does
 * not lead to the sign-in.
 */
export const api = {
  get: (path, options) => call('GET', path, options),
  post: (path, body, options) => call('POST', path, { ...options, body: withFiles(body) }),
  delete: (path, options) => call('DELETE', path, options),
}
