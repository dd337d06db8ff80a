/** Whether jobs can be cancelled, by the hub's answer. Invariant: asked once for each state of a job in which it can differ. */

/** @typedef {import('../progress-hub.js').Job} Job */

export class Cancellable {
  /** By job id: the state that the answer is about, and the answer. @type {Map<string, { state: string, isCancellable: boolean }>} */ #answers = new Map();
  #ask;
  #onAnswer;

  /** @param {(id: string) => Promise<{ cancellable: boolean }>} ask @param {(id: string) => void} onAnswer */
  constructor(ask, onAnswer) {
    this.#ask = ask;
    this.#onAnswer = onAnswer;
  }

  /** Returns whether the job is known to be cancellable. Asks the hub if it is not known. @param {Job} job */
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

  /** @param {string} id @param {string} state @param {boolean} last the answer until the new one arrives */
  async #request(id, state, last) {
    const request = { state, isCancellable: last };
    this.#answers.set(id, request);
    try {
      const { cancellable } = await this.#ask(id);
      request.isCancellable = cancellable;
    } catch {
      // Asked again with the next version of the job.
      if (this.#answers.get(id) === request) this.#answers.delete(id);
      return;
    }
    if (this.#answers.get(id) === request) this.#onAnswer(id);
  }
}
