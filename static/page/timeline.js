/**
 * The versions of each job that this tab received, kept in session storage.
 *
 * Invariant: the versions of a job are in ascending order, and each was received from the hub.
 *
 * @module
 */

import { percent, span } from './format.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Source} Source */
/** @typedef {import('../progress-hub.js').Status} Status */
/**
 * One received version. Keys are short because session storage holds up to 72,000 of these in about 5 MB. Times are in
 * milliseconds. Absent fields were null in the document.
 * @typedef {object} VersionRecord
 * @property {number} v version
 * @property {number} at `updated_at`
 * @property {Status} s status
 * @property {Source} by source
 * @property {number} [p] progress
 * @property {number} [a] attempt
 * @property {number} [q] queue position
 * @property {string} [st] stage
 * @property {string} [e] error kind
 * @property {number} [n] `next_attempt_at`
 */

const KEY_PREFIX = 'progress-hub.seen.';
const MAX_VERSIONS_PER_JOB = 240;
const MAX_STORED_JOBS = 300;
const SAVE_INTERVAL_MS = 1_000;

export class Timeline {
  /** By job id. @type {Map<string, VersionRecord[]>} */ #records = new Map();
  /** Ids of jobs with records that are not in session storage yet. @type {Set<string>} */ #unsaved = new Set();

  constructor() {
    this.#prune(MAX_STORED_JOBS);
    addEventListener('pagehide', () => this.#save());
    document.addEventListener('visibilitychange', () => this.#save());
    setInterval(() => this.#save(), SAVE_INTERVAL_MS);
  }

  /** @param {string} id @returns {readonly VersionRecord[]} in ascending order of version */
  get(id) {
    let records = this.#records.get(id);
    if (!records) {
      try {
        records = /** @type {VersionRecord[]} */ (JSON.parse(sessionStorage.getItem(KEY_PREFIX + id) ?? '[]'));
      } catch {
        records = [];
      }
      this.#records.set(id, records);
    }
    return records;
  }

  /** Adds the version of a document, unless it is already known or older. @param {Job} job */
  add(job) {
    const records = /** @type {VersionRecord[]} */ (this.get(job.id));
    if (records.length && records[records.length - 1].v >= job.version) return;
    /** @type {VersionRecord} */
    const record = { v: job.version, at: Date.parse(job.updated_at), s: job.status, by: job.source };
    if (job.progress !== null) record.p = job.progress;
    if (job.attempt) record.a = job.attempt;
    if (job.queue_position !== null) record.q = job.queue_position;
    if (job.stage) record.st = job.stage;
    if (job.error) record.e = job.error.kind;
    if (job.next_attempt_at) record.n = Date.parse(job.next_attempt_at);
    records.push(record);
    // Drops a version from the middle: the first versions show the steps, the last ones the current state.
    if (records.length > MAX_VERSIONS_PER_JOB) records.splice(MAX_VERSIONS_PER_JOB / 2, 1);
    this.#unsaved.add(job.id);
  }

  #save() {
    for (const id of this.#unsaved) {
      const value = JSON.stringify(this.#records.get(id));
      try {
        sessionStorage.setItem(KEY_PREFIX + id, value);
      } catch {
        // Storage is full.
        this.#prune(MAX_STORED_JOBS / 4);
      }
    }
    this.#unsaved.clear();
  }

  /** Removes the oldest jobs from session storage. Job ids sort by creation time. @param {number} maxJobs */
  #prune(maxJobs) {
    const keys = Object.keys(sessionStorage).filter(key => key.startsWith(KEY_PREFIX)).sort();
    for (const key of keys.slice(0, Math.max(0, keys.length - maxJobs))) sessionStorage.removeItem(key);
  }
}

/** Describes what changed between two versions. @param {VersionRecord} record @param {VersionRecord | null} before */
export function changeText(record, before) {
  const changes = [];
  if (record.s !== before?.s) changes.push(record.s);
  if (record.a !== before?.a && record.a) changes.push(`attempt ${record.a}`);
  if (record.p !== undefined && record.p !== before?.p) changes.push(percent(record.p));
  if (record.q !== undefined && record.q !== before?.q) changes.push(`#${record.q} in queue`);
  if (record.st && record.st !== before?.st) changes.push(record.st);
  if (record.e && record.e !== before?.e) changes.push(`error: ${record.e.replaceAll('_', ' ')}`);
  if (record.n) changes.push(`next attempt in ${span(record.n - record.at)}`);
  return changes.join(', ') || 'other fields';
}
