/**
 * Loads the older jobs that the hub does not push, page by page, newest first.
 *
 * Invariant: after a reconnect, every loaded page is read again, so that no shown job stays out of date.
 *
 * @module
 */

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {{ jobs: Job[], next_cursor: string | null }} Page */

/** The largest page that the hub sends. */
const PAGE_SIZE = 200;

export class OlderJobs {
  /** Number of pages that were read, or are to be read again. */ #pages = 1;
  /** @type {string | null} */ #cursor = null;
  /** Incremented when responses to earlier requests are outdated. */ #generation = 0;
  #read;
  #events;

  /**
   * @param {(query: { limit: number, cursor?: string }) => Promise<Page>} read
   * @param {{ onJob(job: Job): void, onState(state: { hasMore: boolean, isLoading: boolean, hasFailed: boolean }): void }} events
   */
  constructor(read, events) {
    this.#read = read;
    this.#events = events;
  }

  /** Discards the pages of the previous user. */
  clear() {
    this.#generation += 1;
    this.#pages = 1;
    this.#cursor = null;
    this.#report();
  }

  /** Reads the first page, and every other page that was read before. */
  async reload() {
    const generation = ++this.#generation;
    this.#cursor = null;
    for (let page = 0; page < this.#pages && (!page || this.#cursor); page++) {
      if (!(await this.#readPage(generation))) return;
    }
  }

  /** Reads one more page. */
  async more() {
    const generation = ++this.#generation;
    // Without a cursor, the first page is read again after a failure.
    const isFurther = this.#cursor !== null;
    if ((await this.#readPage(generation)) && isFurther) this.#pages += 1;
  }

  /** @param {number} generation @returns {Promise<boolean>} whether the page was read and is current */
  async #readPage(generation) {
    this.#report({ isLoading: true });
    try {
      const { jobs, next_cursor: cursor } = await this.#read({ limit: PAGE_SIZE, ...(this.#cursor && { cursor: this.#cursor }) });
      if (generation !== this.#generation) return false;
      this.#cursor = cursor;
      for (const job of jobs) this.#events.onJob(job);
      this.#report();
      return true;
    } catch {
      if (generation === this.#generation) this.#report({ hasFailed: true });
      return false;
    }
  }

  #report({ isLoading = false, hasFailed = false } = {}) {
    this.#events.onState({ hasMore: this.#cursor !== null || hasFailed, isLoading, hasFailed });
  }
}
