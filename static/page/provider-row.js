/** State of one provider, with a button to resume it. */

import { onPress } from './action.js';
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

  /** @param {() => Promise<void>} resume rejects with the hub's error */
  constructor(resume) {
    onPress($('button', this.element), $('.error', this.element), resume, resumeErrorText);
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
}
