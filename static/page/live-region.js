/** Announcements for screen readers, batched so that many changes at once become one sentence. */

import { text } from './dom.js';

const BATCH_WINDOW_MS = 1_000;
/** A larger batch is announced as a count. */
const MAX_MESSAGES_PER_BATCH = 3;

export class LiveRegion {
  #element;
  /** Newest message by subject. @type {Map<string, string>} */ #pending = new Map();

  /** @param {HTMLElement} element an element with `aria-live` */
  constructor(element) {
    this.#element = element;
  }

  /** Announces a message with the next batch. It replaces a pending message about the same subject. @param {string} subject @param {string} message */
  announce(subject, message) {
    if (!this.#pending.size) setTimeout(() => this.#flush(), BATCH_WINDOW_MS);
    this.#pending.set(subject, message);
  }

  #flush() {
    const messages = [...this.#pending.values()];
    this.#pending.clear();
    text(this.#element, messages.length > MAX_MESSAGES_PER_BATCH ? `${messages.length} updates.` : messages.join(' '));
  }
}
