/**
 * Preview of a job: a progress fill while the job runs, then its first video or image.
 *
 * Invariants: the preview keeps the requested aspect ratio. A video that is off screen holds no media player, because
 * browsers limit their number. Media flagged as not safe for work is not loaded before the user asks for it.
 *
 * @module
 */

import { $, REDUCED_MOTION, attr, css, h, safeUrl, text } from './dom.js';
import { percent, seconds } from './format.js';
import { jobTitle } from './labels.js';
import { requestedRatio } from './presets.js';

/** @typedef {import('../progress-hub.js').Job} Job */

export class Player {
  /** @type {HTMLElement} */ #element;
  /** @type {HTMLElement} */ #placeholder;
  /** @type {HTMLButtonElement} */ #playbackButton;
  /** @type {HTMLButtonElement} */ #cover;
  /** @type {HTMLVideoElement | HTMLImageElement | null} */ #media = null;
  #url = '';
  #hasFailed = false;
  #isPaused = REDUCED_MOTION.matches;
  /** Whether the user asked to see media flagged as not safe for work. */
  #isRevealed = false;
  #isVisible = false;

  /** @param {HTMLElement} element @param {() => void} onReveal called after the user revealed the media; must render again */
  constructor(element, onReveal) {
    this.#element = element;
    this.#placeholder = $('.placeholder', element);
    this.#playbackButton = $('.playback', element);
    this.#playbackButton.addEventListener('click', () => {
      this.#isPaused = !this.#isPaused;
      this.#updatePlayback();
    });
    this.#cover = $('.cover', element);
    this.#cover.addEventListener('click', () => {
      this.#isRevealed = true;
      onReveal();
      if (!this.#playbackButton.hidden) this.#playbackButton.focus({ preventScroll: true });
    });
  }

  /** @param {Job} job */
  render(job) {
    const ratio = requestedRatio(job) ?? (job.provider ? null : 1);
    if (ratio) css(this.#element, '--requested-ratio', ratio.toFixed(4));
    css(this.#element, '--progress', String(job.final ? 0 : (job.progress ?? 0) / 100));
    const output = job.outputs.find(({ type, url }) => (type === 'video' || type === 'image') && safeUrl(url));
    if (!output) return;
    const isCovered = output.nsfw === true && !this.#isRevealed;
    attr(this.#cover, 'hidden', isCovered ? null : '');
    if (!isCovered) this.#showMedia(output.type, /** @type {string} */ (safeUrl(output.url)), jobTitle(job));
  }

  /** @param {Job} job @param {number} now */
  tick(job, now) {
    text(this.#placeholder, this.#media || !this.#cover.hidden ? '' : this.#hasFailed ? '?' : placeholderText(job, now));
  }

  /** @param {boolean} isVisible */
  setVisible(isVisible) {
    this.#isVisible = isVisible;
    this.#updatePlayback();
  }

  /** @param {string} type @param {string} url @param {string} title */
  #showMedia(type, url, title) {
    if (this.#url === url) return;
    this.#url = url;
    this.#media?.remove();
    this.#media = type === 'image' ? this.#createImage(title) : this.#createVideo(title);
    this.#media.addEventListener('error', () => this.#onMediaError());
    this.#element.classList.add('media');
    this.#playbackButton.before(this.#media);
    attr(this.#playbackButton, 'hidden', type === 'image' ? '' : null);
    this.#updatePlayback();
  }

  /** @param {string} title */
  #createImage(title) {
    const image = h('img', { alt: title, loading: 'lazy', decoding: 'async' });
    image.addEventListener('load', () => this.#setActualRatio(image.naturalWidth / image.naturalHeight));
    image.src = this.#url;
    return image;
  }

  /** @param {string} title */
  #createVideo(title) {
    const video = h('video', { playsinline: '', preload: 'metadata', 'aria-label': title });
    video.muted = true;
    video.loop = true;
    video.addEventListener('loadedmetadata', () => this.#setActualRatio(video.videoWidth / video.videoHeight));
    return video;
  }

  /** @param {number} ratio width divided by height of the loaded media */
  #setActualRatio(ratio) {
    if (Number.isFinite(ratio) && ratio > 0) css(this.#element, '--actual-ratio', ratio.toFixed(4));
  }

  #onMediaError() {
    // Unloading a video that is off screen also raises `error`.
    if (!this.#media?.getAttribute('src')) return;
    this.#media.remove();
    this.#media = null;
    this.#hasFailed = true;
    this.#element.classList.remove('media');
    attr(this.#playbackButton, 'hidden', '');
    text(this.#placeholder, '?');
    attr(this.#element, 'title', 'Preview unavailable. The link may have expired.');
  }

  #updatePlayback() {
    const video = this.#media;
    if (!(video instanceof HTMLVideoElement)) return;
    this.#playbackButton.classList.toggle('paused', this.#isPaused);
    attr(this.#playbackButton, 'aria-label', this.#isPaused ? 'Play clip' : 'Pause clip');
    if (!this.#isVisible) {
      video.pause();
      if (video.hasAttribute('src')) {
        video.removeAttribute('src');
        video.load();
      }
      return;
    }
    if (!video.hasAttribute('src')) video.src = this.#url;
    if (this.#isPaused) video.pause();
    else video.play().catch(() => {});
  }
}

/** Returns the text shown while there is no media. @param {Job} job @param {number} now */
function placeholderText(job, now) {
  if (job.status === 'succeeded') return job.error || !job.outputs.length ? '–' : '✓';
  if (job.status === 'failed') return '×';
  if (job.status === 'cancelled') return '–';
  if (job.next_attempt_at) return `${seconds(Date.parse(job.next_attempt_at) - now)}s`;
  if (job.progress !== null) return percent(Math.floor(job.progress));
  return job.status === 'queued' && job.queue_position !== null ? `#${job.queue_position}` : '';
}
