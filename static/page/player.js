/**
 * A job's frame: fills while the job runs, then shows what it made.
 *
 * Invariant: the frame keeps the shape that was ordered; a video out of sight holds no player, for a browser has few; what
 * the provider marked as not safe for work is not even loaded before somebody asks for it.
 *
 * @module
 */

import { $, REDUCED_MOTION, attr, css, h, safeUrl, text } from './dom.js';
import { seconds } from './format.js';
import { orderedRatio } from './presets.js';
import { titleOf } from './labels.js';

/** @typedef {import('../progress-hub.js').Job} Job */

export class Frame {
  /** @type {HTMLElement} */ #element;
  /** @type {HTMLElement} */ #glyph;
  /** @type {HTMLButtonElement} */ #pause;
  /** @type {HTMLButtonElement} */ #cover;
  /** @type {HTMLVideoElement | HTMLImageElement | null} */ #media = null;
  #url = '';
  #isLost = false;
  #isStopped = REDUCED_MOTION.matches;
  /** Whether somebody asked to see what is not for every eye. */
  #isAsked = false;
  #isVisible = false;

  /** @param {HTMLElement} element @param {() => void} onAsked renders it again */
  constructor(element, onAsked) {
    this.#element = element;
    this.#glyph = $('.glyph', element);
    this.#pause = $('.pause', element);
    this.#pause.addEventListener('click', () => {
      this.#isStopped = !this.#isStopped;
      this.#play();
    });
    this.#cover = $('.cover', element);
    this.#cover.addEventListener('click', () => {
      this.#isAsked = true;
      onAsked();
      if (!this.#pause.hidden) this.#pause.focus({ preventScroll: true });
    });
  }

  /** @param {Job} job */
  render(job) {
    const ratio = orderedRatio(job) ?? (job.provider ? null : 1);
    if (ratio) css(this.#element, '--ordered', ratio.toFixed(4));
    css(this.#element, '--p', String(job.final ? 0 : (job.progress ?? 0) / 100));
    const output = job.outputs.find(({ type, url }) => (type === 'video' || type === 'image') && safeUrl(url));
    if (!output) return;
    const isCovered = output.nsfw === true && !this.#isAsked;
    attr(this.#cover, 'hidden', isCovered ? null : '');
    if (!isCovered) this.#show(output.type, /** @type {string} */ (safeUrl(output.url)), titleOf(job));
  }

  /** @param {Job} job @param {number} now */
  tick(job, now) {
    text(this.#glyph, this.#media || !this.#cover.hidden ? '' : this.#isLost ? '?' : glyphOf(job, now));
  }

  /** @param {boolean} isVisible */
  setVisible(isVisible) {
    this.#isVisible = isVisible;
    this.#play();
  }

  /** @param {string} type @param {string} url @param {string} title */
  #show(type, url, title) {
    if (this.#url === url) return;
    this.#url = url;
    this.#media?.remove();
    this.#media = type === 'image' ? this.#image(title) : this.#video(title);
    this.#media.addEventListener('error', () => this.#lose());
    this.#element.classList.add('media');
    this.#pause.before(this.#media);
    attr(this.#pause, 'hidden', type === 'image' ? '' : null);
    this.#play();
  }

  /** @param {string} title */
  #image(title) {
    const image = h('img', { alt: title, loading: 'lazy', decoding: 'async' });
    image.addEventListener('load', () => this.#fit(image.naturalWidth / image.naturalHeight));
    image.src = this.#url;
    return image;
  }

  /** @param {string} title */
  #video(title) {
    const video = h('video', { playsinline: '', preload: 'metadata', 'aria-label': title });
    video.muted = true;
    video.loop = true;
    video.addEventListener('loadedmetadata', () => this.#fit(video.videoWidth / video.videoHeight));
    return video;
  }

  /** @param {number} ratio what came, whatever was ordered */
  #fit(ratio) {
    if (Number.isFinite(ratio) && ratio > 0) css(this.#element, '--real', ratio.toFixed(4));
  }

  #lose() {
    if (!this.#media?.getAttribute('src')) return;
    this.#media.remove();
    this.#media = null;
    this.#isLost = true;
    this.#element.classList.remove('media');
    attr(this.#pause, 'hidden', '');
    text(this.#glyph, '?');
    attr(this.#element, 'title', 'The clip does not load. Its link may have expired.');
  }

  #play() {
    const video = this.#media;
    if (!(video instanceof HTMLVideoElement)) return;
    this.#pause.classList.toggle('stopped', this.#isStopped);
    attr(this.#pause, 'aria-label', this.#isStopped ? 'Play the clip' : 'Pause the clip');
    if (!this.#isVisible) {
      video.pause();
      if (video.hasAttribute('src')) {
        video.removeAttribute('src');
        video.load();
      }
      return;
    }
    if (!video.hasAttribute('src')) video.src = this.#url;
    if (this.#isStopped) video.pause();
    else video.play().catch(() => {});
  }
}

/** What stands in an empty frame. @param {Job} job @param {number} now */
function glyphOf(job, now) {
  if (job.status === 'succeeded') return job.error || !job.outputs.length ? '–' : '✓';
  if (job.status === 'failed') return '×';
  if (job.status === 'cancelled') return '–';
  if (job.next_attempt_at) return `${seconds(Date.parse(job.next_attempt_at) - now)} s`;
  if (job.progress !== null) return `${Math.floor(job.progress)} %`;
  return job.status === 'queued' && job.queue_position !== null ? `#${job.queue_position}` : '';
}
