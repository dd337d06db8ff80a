/** State of one provider, with a button to resume it. Invariant: one press sends one request, and the row shows its error. */

import { $, attr, h, text } from './dom.js';
import { resumeErrorText } from './error-text.js';
import { clock, money } from './format.js';
import { providerStatusText, resumedText } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */

/** How long the row of a resumed provider stays visible. */
const RESUMED_MESSAGE_MS = 5_000;

export class ProviderRow {
  element = h('li', {}, h('i', { 'aria-hidden': 'true' }), h('span'), h('small'), h('button', { class: 'secondary', type: 'button' }, 'Resume now'), h('p', { class: 'error', role: 'alert', hidden: '' }));
  /** @type {Provider | null} */ #provider = null;
  #resumedAt = -Infinity;
  #isSending = false;

  /** @param {() => Promise<void>} resume rejects with the hub's error */
  constructor(resume) {
    $('button', this.element).addEventListener('click', () => this.#onPress(resume));
  }

  /** Whether the provider was resumed from this row a moment ago. */
  get isResumed() {
    return performance.now() - this.#resumedAt < RESUMED_MESSAGE_MS;
  }

  markResumed() {
    this.#resumedAt = performance.now();
  }

  /** @param {Provider} provider */
  show(provider) {
    this.#provider = provider;
    const { title, state, since, balance } = provider;
    attr(this.element, 'data-state', state);
    const isAvailable = state === 'available';
    text($('small', this.element), isAvailable ? '' : [since && `since ${clock(since)}`, balance && `${money(balance)} left`].filter(Boolean).join(', '));
    const button = $('button', this.element);
    // The hub sends `balance` to admins only, and only admins may resume a provider.
    attr(button, 'hidden', isAvailable || balance === undefined ? '' : null);
    attr(button, 'aria-label', `Resume now: ${title}`);
  }

  /** @param {number} now the hub's clock, in milliseconds */
  tick(now) {
    const provider = this.#provider;
    if (provider) text($('span', this.element), provider.state === 'available' ? resumedText(provider) : providerStatusText(provider, now));
  }

  /** @param {() => Promise<void>} resume */
  async #onPress(resume) {
    if (this.#isSending) return;
    this.#setSending(true);
    this.#showError('');
    try {
      await resume();
    } catch (error) {
      this.#showError(resumeErrorText(error));
    }
    this.#setSending(false);
  }

  /** @param {boolean} isSending */
  #setSending(isSending) {
    this.#isSending = isSending;
    attr($('button', this.element), 'aria-disabled', isSending ? 'true' : null);
  }

  /** @param {string} message */
  #showError(message) {
    const error = $('.error', this.element);
    text(error, message);
    attr(error, 'hidden', message ? null : '');
  }
}
