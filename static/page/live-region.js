/** For those who listen instead of look: the newest of each thing, gathered, so that a storm is one sentence. */

import { text } from './dom.js';

const GATHER_MS = 1_000;

export class News {
  #element;
  /** @type {Map<string, string>} */ #gathered = new Map();

  /** @param {HTMLElement} element a live region */
  constructor(element) {
    this.#element = element;
  }

  /** @param {string} about @param {string} words */
  say(about, words) {
    if (!this.#gathered.size) setTimeout(() => this.#speak(), GATHER_MS);
    this.#gathered.set(about, words);
  }

  #speak() {
    const news = [...this.#gathered.values()];
    this.#gathered.clear();
    text(this.#element, news.length > 3 ? `${news.length} jobs changed.` : news.join(' '));
  }
}
