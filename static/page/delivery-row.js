/** One delivery of the open job, with a button that sends it again and the result of that. */

import { onPress } from './action.js';
import { deliveryErrorText, toSentence } from './error-text.js';
import { attemptCountText, attemptResultText, attemptTimeText, deliveryNote, deliveryStateText, eventText, isPending, lastResultText } from './delivery-text.js';
import { $, attr, h, text } from './dom.js';

/** @typedef {import('../progress-hub.js').Delivery} Delivery */

export class DeliveryRow {
  element = h('li', {},
    h('i', { class: 'state-icon', 'aria-hidden': 'true' }),
    h('p', { class: 'delivery-name' }, h('b'), ' ', h('span')),
    h('p', { class: 'delivery-state' }, h('b'), ' ', h('span', { class: 'note' }), ' ', h('span', { class: 'last-result' })),
    h('button', { class: 'secondary', type: 'button' }),
    h('details', {}, h('summary'), h('ol')),
    h('p', { class: 'result', role: 'status' }),
    h('p', { class: 'error', role: 'alert', hidden: '' }));
  /** @type {Delivery | null} */ #delivery = null;
  /** Time of the last attempt before the one that was requested here; null if none was requested. @type {{ lastAttemptAt: string } | null} */ #requested = null;

  /** @param {() => Promise<void>} redeliver rejects with the hub's error */
  constructor(redeliver) {
    onPress($('button', this.element), $('.error', this.element), () => this.#redeliver(redeliver), deliveryErrorText);
  }

  /** Whether the result of a requested attempt has not arrived yet. */
  get awaitsResult() {
    return this.#requested !== null && this.#delivery?.state === 'waiting';
  }

  /** @param {Delivery} delivery @param {boolean} maySend */
  show(delivery, maySend) {
    this.#delivery = delivery;
    const { destination, address, state, attempts } = delivery;
    attr(this.element, 'data-state', state);
    text($('.delivery-name b', this.element), eventText(delivery));
    text($('.delivery-name span', this.element), `to ${destination}${address ? ` · ${address}` : ''}`);
    text($('.delivery-state b', this.element), deliveryStateText(delivery));
    const lastResult = lastResultText(delivery);
    text($('.last-result', this.element), lastResult && isPending(delivery) ? `last attempt: ${lastResult}` : lastResult);
    const button = $('button', this.element);
    // An attempt to a disabled destination would not be made.
    attr(button, 'hidden', maySend && state !== 'held' ? null : '');
    text(button, state === 'waiting' ? 'Send now' : 'Send again');
    attr(button, 'aria-label', `${button.textContent}: ${eventText(delivery)} to ${destination}`);
    attr($('details', this.element), 'hidden', attempts.length ? null : '');
    text($('summary', this.element), attemptCountText(delivery));
    this.#renderAttempts(delivery);
    this.#renderResult(delivery);
  }

  /** @param {number} now the hub's clock, in milliseconds */
  tick(now) {
    if (this.#delivery) text($('.note', this.element), deliveryNote(this.#delivery, now));
  }

  /** @param {Delivery} delivery */
  #renderAttempts({ attempts }) {
    const list = $('ol', this.element);
    if (list.getAttribute('data-last') === lastAttemptAt(attempts)) return;
    attr(list, 'data-last', lastAttemptAt(attempts));
    list.replaceChildren(...attempts.toReversed().map(attempt => h('li', { 'data-failed': String(attempt.error !== null) },
      h('span', {}, attemptTimeText(attempt)), ' ', h('b', {}, attemptResultText(attempt)))));
  }

  /** @param {Delivery} delivery */
  #renderResult(delivery) {
    if (!this.#requested) return;
    const { state, attempts } = delivery;
    const isAttempted = lastAttemptAt(attempts) !== this.#requested.lastAttemptAt;
    const isDelivered = attempts.at(-1)?.error === null;
    text($('.result', this.element), isAttempted ? toSentence(isDelivered ? 'Delivered' : `Not delivered: ${lastResultText(delivery)}`)
      : state === 'held' ? 'It is sent when the destination is enabled.' : 'Sending…');
    if (isAttempted) this.#requested = null;
  }

  /** @param {() => Promise<void>} redeliver */
  async #redeliver(redeliver) {
    if (!this.#delivery) return;
    this.#requested = { lastAttemptAt: lastAttemptAt(this.#delivery.attempts) };
    text($('.result', this.element), '');
    try {
      await redeliver();
    } catch (error) {
      this.#requested = null;
      throw error;
    }
  }
}

/** @param {Delivery['attempts']} attempts */
function lastAttemptAt(attempts) {
  return attempts.at(-1)?.at ?? '';
}
