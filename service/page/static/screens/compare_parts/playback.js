/** Several <video> elements that show the same moment. */

/**
 * The time of the longest video is that of all; one that is shorter holds its last frame meanwhile. Frames are counted
 * in the highest frame rate.
 */
export class Playback {
  frame = 0
  isPlaying = false
  #clips = new Map()
  #listeners = new Set()
  #timer = 0

  /** Calls back when frame or state have changed. Returns the function that ends this. */
  onChange(callback) {
    this.#listeners.add(callback)
    return () => this.#listeners.delete(callback)
  }

  /** @param {HTMLVideoElement} element that plays `video`; returns the function that takes it out again */
  add(element, video) {
    this.#clips.set(element, { seconds: video.duration_s, fps: video.fps })
    element.addEventListener('loadeddata', () => this.isPlaying || this.#seek(element), { once: true })
    this.#changed()
    return () => {
      this.#clips.delete(element)
      if (!this.#clips.size) this.pause()
      this.#changed()
    }
  }

  get fps() {
    return Math.max(1, ...[...this.#clips.values()].map(({ fps }) => fps))
  }

  get frames() {
    return Math.max(1, ...[...this.#clips.values()].map(({ seconds }) => Math.round(seconds * this.fps)))
  }

  /** Pauses at a frame, counted from 0. */
  show(frame) {
    this.#halt()
    this.frame = Math.min(Math.max(0, frame), this.frames - 1)
    for (const element of this.#clips.keys()) this.#seek(element)
    this.#changed()
  }

  pause() {
    this.show(this.frame)
  }

  async play() {
    if (this.frame >= this.frames - 1) this.frame = 0
    for (const element of this.#clips.keys()) this.#seek(element)
    this.isPlaying = true
    this.#changed()
    await Promise.all([...this.#clips.keys()].map(ready)) // else the first one to be loaded would be ahead
    if (this.isPlaying) this.#run()
  }

  #run() {
    for (const [element, { seconds }] of this.#clips) if (this.#time < seconds) element.play().catch(() => {})
    const tick = () => {
      this.#timer = requestAnimationFrame(tick)
      this.#follow()
    }
    cancelAnimationFrame(this.#timer)
    this.#timer = requestAnimationFrame(tick)
  }

  /** Takes the time from the longest video, and moves those that have drifted by more than half a frame. */
  #follow() {
    const [leader] = [...this.#clips.keys()].sort((a, b) => this.#clips.get(b).seconds - this.#clips.get(a).seconds)
    if (leader.ended) {
      this.frame = this.frames - 1
      return this.play()
    }
    for (const [element, { seconds, fps }] of this.#clips) {
      const isRunning = leader.currentTime < seconds - 1 / fps && !element.seeking
      if (isRunning && Math.abs(element.currentTime - leader.currentTime) > 0.5 / fps) element.currentTime = leader.currentTime
    }
    const frame = Math.min(Math.floor(leader.currentTime * this.fps), this.frames - 1)
    if (frame === this.frame) return undefined
    this.frame = frame
    return this.#changed()
  }

  #halt() {
    cancelAnimationFrame(this.#timer)
    this.isPlaying = false
    for (const element of this.#clips.keys()) element.pause()
  }

  /** The middle of the frame, which no rounding moves to another one. */
  get #time() {
    return (this.frame + 0.5) / this.fps
  }

  #seek(element) {
    const { seconds, fps } = this.#clips.get(element)
    const start = this.isPlaying && this.frame === 0 ? 0 : this.#time
    element.currentTime = Math.min(start, seconds - 0.5 / fps)
  }

  #changed() {
    this.#listeners.forEach((listener) => listener())
  }
}

const HAVE_FUTURE_DATA = 3

/** Resolves when the element can play on from where it is, or cannot be loaded. */
function ready(element) {
  const isReady = () => element.error || (element.readyState >= HAVE_FUTURE_DATA && !element.seeking)
  return new Promise((done) => {
    const look = () => isReady() && done()
    for (const event of ['canplay', 'seeked', 'error']) element.addEventListener(event, look)
    look()
  })
}
