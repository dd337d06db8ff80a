/** Caches whether jobs can be cancelled. Invariant: one successful request for each job state that can change the response. */

/** @typedef {import('../progress-hub.js').Job} Job */

export class Cancellable {
  /** By job id: the response of the hub, and the job state that it applies to. @type {Map<string, { state: string, isCancellable: boolean }>} */ #answers = new Map();
  #ask;
  #onAnswer;

  /** @param {(id: string) => Promise<{ cancellable: boolean }>} ask @param {(id: string) => void} onAnswer */
  constructor(ask, onAnswer) {
    this.#ask = ask;
    this.#onAnswer = onAnswer;
  }

  /** Returns whether the job is known to be cancellable. Sends a request if the cache has no response for its state. @param {Job} job */
  get(job) {
    if (job.final) return false;
    const state = [job.status, job.attempt, job.provider_task_id, job.next_attempt_at].join();
    const answer = this.#answers.get(job.id);
    if (answer?.state !== state) this.#request(job.id, state, answer?.isCancellable ?? false);
    return this.#answers.get(job.id)?.isCancellable ?? false;
  }

  clear() {
    this.#answers.clear();
  }

  /** @param {string} id @param {string} state @param {boolean} last the value until the response arrives */
  async #request(id, state, last) {
    const request = { state, isCancellable: last };
    this.#answers.set(id, request);
    try {
      const { cancellable } = await this.#ask(id);
      request.isCancellable = cancellable;
    } catch {
      // The next call of `get` sends a new request.
      if (this.#answers.get(id) === request) this.#answers.delete(id);
      return;
    }
    if (this.#answers.get(id) === request) this.#onAnswer(id);
  }
}
