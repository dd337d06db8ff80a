/**
 * The versions of each job that this browser has seen, for as long as its tab lives.
 *
 * Invariant: the versions of a job rise; none is made up.
 *
 * @module
 */

import { percent, span } from './format.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Source} Source */
/** @typedef {import('../progress-hub.js').Status} Status */
/**
 * One version as this browser saw it; kept small, because it goes to the session storage.
 * @typedef {{ v: number, at: number, s: Status, by: Source, p?: number, a?: number, q?: number, st?: string, e?: string, n?: number }} Seen
 */

const PREFIX = 'progress-hub.seen.';
const VERSIONS_PER_JOB = 240;
const JOBS_KEPT = 300;
const SAVE_EVERY_MS = 1_000;

export class Timeline {
  /** @type {Map<string, Seen[]>} */ #seen = new Map();
  /** @type {Set<string>} */ #unsaved = new Set();

  constructor() {
    this.#prune(JOBS_KEPT);
    addEventListener('pagehide', () => this.#save());
    document.addEventListener('visibilitychange', () => this.#save());
    setInterval(() => this.#save(), SAVE_EVERY_MS);
  }

  /** @param {string} id @returns {readonly Seen[]} rising versions */
  of(id) {
    let seen = this.#seen.get(id);
    if (!seen) {
      try {
        seen = /** @type {Seen[]} */ (JSON.parse(sessionStorage.getItem(PREFIX + id) ?? '[]'));
      } catch {
        seen = [];
      }
      this.#seen.set(id, seen);
    }
    return seen;
  }

  /** @param {Job} job */
  add(job) {
    const seen = /** @type {Seen[]} */ (this.of(job.id));
    if (seen.length && seen[seen.length - 1].v >= job.version) return;
    /** @type {Seen} */
    const one = { v: job.version, at: Date.parse(job.updated_at), s: job.status, by: job.source };
    if (job.progress !== null) one.p = job.progress;
    if (job.attempt) one.a = job.attempt;
    if (job.queue_position !== null) one.q = job.queue_position;
    if (job.stage) one.st = job.stage;
    if (job.error) one.e = job.error.kind;
    if (job.next_attempt_at) one.n = Date.parse(job.next_attempt_at);
    seen.push(one);
    // The beginning tells the stations, the end tells the news: the middle can go.
    if (seen.length > VERSIONS_PER_JOB) seen.splice(VERSIONS_PER_JOB / 2, 1);
    this.#unsaved.add(job.id);
  }

  #save() {
    for (const id of this.#unsaved) {
      const value = JSON.stringify(this.#seen.get(id));
      try {
        sessionStorage.setItem(PREFIX + id, value);
      } catch {
        this.#prune(JOBS_KEPT / 4);
      }
    }
    this.#unsaved.clear();
  }

  /** Forgets the oldest jobs; their ids sort by time. @param {number} keep */
  #prune(keep) {
    const keys = Object.keys(sessionStorage).filter(key => key.startsWith(PREFIX)).sort();
    for (const key of keys.slice(0, Math.max(0, keys.length - keep))) sessionStorage.removeItem(key);
  }
}

/** What a version brought. @param {Seen} one @param {Seen | null} before */
export function changeOf(one, before) {
  const parts = [];
  if (one.s !== before?.s) parts.push(one.s);
  if (one.a !== before?.a && one.a) parts.push(`try ${one.a}`);
  if (one.p !== undefined && one.p !== before?.p) parts.push(percent(one.p));
  if (one.q !== undefined && one.q !== before?.q) parts.push(`queue ${one.q}`);
  if (one.st && one.st !== before?.st) parts.push(one.st);
  if (one.e && one.e !== before?.e) parts.push(one.e.replace('_', ' '));
  if (one.n) parts.push(`next in ${span(one.n - one.at)}`);
  return parts.join(', ') || 'details';
}
