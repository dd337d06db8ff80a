/** What was asked to be cancelled here. Invariant: a cancel is under way from the press until the hub refuses it or the job ends. */

import { cancelProblemWords } from './error-text.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {{ state: 'asking' | 'asked' | 'refused', problem: string }} Cancel `asked`: by the hub, at the provider */

const KEY = 'progress-hub.cancels';

export class Cancels {
  /** @type {Map<string, Cancel>} */ #cancels = new Map();
  #send;
  #onChange;

  /** @param {(job: Job) => Promise<void>} send @param {(id: string) => void} onChange */
  constructor(send, onChange) {
    this.#send = send;
    this.#onChange = onChange;
    // A reload must not look as if nobody had asked.
    for (const id of stored()) this.#cancels.set(id, { state: 'asked', problem: '' });
  }

  /** @param {Job} job @returns {Cancel | null} */
  of(job) {
    const cancel = this.#cancels.get(job.id);
    if (!cancel || !job.final) return cancel ?? null;
    this.#cancels.delete(job.id);
    this.#store();
    return null;
  }

  /** @param {Job} job */
  isUnderWay(job) {
    const state = this.of(job)?.state;
    return state === 'asking' || state === 'asked';
  }

  /** @param {Job} job */
  async ask(job) {
    if (this.of(job)?.state === 'asking') return;
    this.#put(job.id, { state: 'asking', problem: '' });
    try {
      await this.#send(job);
      this.#put(job.id, { state: 'asked', problem: '' });
    } catch (error) {
      this.#put(job.id, { state: 'refused', problem: cancelProblemWords(error) });
    }
  }

  /** @param {string} id @param {Cancel} cancel */
  #put(id, cancel) {
    this.#cancels.set(id, cancel);
    this.#store();
    this.#onChange(id);
  }

  #store() {
    const asked = [...this.#cancels].filter(([, { state }]) => state === 'asked').map(([id]) => id);
    try {
      sessionStorage.setItem(KEY, JSON.stringify(asked));
    } catch {
      // Full: then only a reload forgets it.
    }
  }
}

/** @returns {string[]} */
function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? '[]');
  } catch {
    return [];
  }
}
