/** Cancellations requested in this tab. Invariant: a cancellation is pending until the hub rejects it or the job is final. */

import { cancelErrorText } from './error-text.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/**
 * - `sending`: the request to the hub is in flight.
 * - `requested`: the hub accepted the request, and the provider has not confirmed it.
 * - `rejected`: the hub or the provider rejected the request; `error` says why.
 *
 * @typedef {{ state: 'sending' | 'requested' | 'rejected', error: string }} Cancel
 */

const STORAGE_KEY = 'progress-hub.cancels';

export class PendingCancels {
  /** By job id. @type {Map<string, Cancel>} */ #cancels = new Map();
  #send;
  #onChange;

  /** @param {(job: Job) => Promise<void>} send @param {(id: string) => void} onChange */
  constructor(send, onChange) {
    this.#send = send;
    this.#onChange = onChange;
    // Restored after a reload, since the job document does not show a requested cancellation.
    for (const id of storedIds()) this.#cancels.set(id, { state: 'requested', error: '' });
  }

  /** @param {Job} job @returns {Cancel | null} */
  get(job) {
    const cancel = this.#cancels.get(job.id);
    if (!cancel || !job.final) return cancel ?? null;
    this.#cancels.delete(job.id);
    this.#save();
    return null;
  }

  /** @param {Job} job */
  isPending(job) {
    const state = this.get(job)?.state;
    return state === 'sending' || state === 'requested';
  }

  /** Requests cancellation. Does nothing while a request for this job is in flight. @param {Job} job */
  async request(job) {
    if (this.get(job)?.state === 'sending') return;
    this.#set(job.id, { state: 'sending', error: '' });
    try {
      await this.#send(job);
      this.#set(job.id, { state: 'requested', error: '' });
    } catch (error) {
      this.#set(job.id, { state: 'rejected', error: cancelErrorText(error) });
    }
  }

  /** @param {string} id @param {Cancel} cancel */
  #set(id, cancel) {
    this.#cancels.set(id, cancel);
    this.#save();
    this.#onChange(id);
  }

  #save() {
    const requested = [...this.#cancels].filter(([, { state }]) => state === 'requested').map(([id]) => id);
    try {
      sessionStorage.setItem(STORAGE_KEY, JSON.stringify(requested));
    } catch {
      // Storage is full. The state is kept in memory and lost on reload.
    }
  }
}

/** @returns {string[]} */
function storedIds() {
  try {
    return JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? '[]');
  } catch {
    return [];
  }
}
