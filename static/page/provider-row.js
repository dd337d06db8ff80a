/** The line of one provider, with the button for whoever may say that it is mended. Invariant: the hub is told once for each press, and what came of it stands in the line. */

import { $, attr, h, text } from './dom.js';
import { clock, sum } from './format.js';
import { resumeProblemWords } from './error-text.js';
import { resumedWords, standingWords } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */

/** How long a line stays to say that its provider is open again. */
const RESUMED_MS = 5_000;

export class ProviderLine {
  element = h('li', {}, h('i', { 'aria-hidden': 'true' }), h('span'), h('small'), h('button', { class: 'quiet', type: 'button' }, 'Try again now'), h('p', { class: 'problem', role: 'alert', hidden: '' }));
  /** @type {Provider | null} */ #provider = null;
  #resumedAt = -Infinity;
  #isSending = false;

  /** @param {() => Promise<void>} resume */
  constructor(resume) {
    $('button', this.element).addEventListener('click', () => this.#press(resume));
  }

  /** Whether it was just said to be mended. */
  get isResumed() {
    return performance.now() - this.#resumedAt < RESUMED_MS;
  }

  showResumed() {
    this.#resumedAt = performance.now();
  }

  /** @param {Provider} provider */
  show(provider) {
    this.#provider = provider;
    const { title, state, since, balance } = provider;
    attr(this.element, 'data-state', state);
    const isOpen = state === 'open';
    text($('small', this.element), isOpen ? '' : [since && `since ${clock(since)}`, balance && `${sum(balance)} left`].filter(Boolean).join(', '));
    const button = $('button', this.element);
    // Only an admin is told of balances, and only an admin may say that a provider is mended.
    attr(button, 'hidden', isOpen || balance === undefined ? '' : null);
    attr(button, 'aria-label', `Try ${title} again now`);
  }

  /** @param {number} now the hub's clock */
  tick(now) {
    const provider = this.#provider;
    if (provider) text($('span', this.element), provider.state === 'open' ? resumedWords(provider) : standingWords(provider, now));
  }

  /** @param {() => Promise<void>} resume */
  async #press(resume) {
    if (this.#isSending) return;
    this.#sending(true);
    this.#complain('');
    try {
      await resume();
    } catch (error) {
      this.#complain(resumeProblemWords(error));
    }
    this.#sending(false);
  }

  /** @param {boolean} isSending */
  #sending(isSending) {
    this.#isSending = isSending;
    attr($('button', this.element), 'aria-disabled', isSending ? 'true' : null);
  }

  /** @param {string} words */
  #complain(words) {
    const problem = $('.problem', this.element);
    text(problem, words);
    attr(problem, 'hidden', words ? null : '');
  }
}
