/** State of one destination, with buttons to test it and to enable or disable it. */

import { onPress, showMessage } from './action.js';
import { destinationKindText, destinationNote, destinationStateText, testResultText } from './destination-text.js';
import { $, attr, h, text } from './dom.js';
import { destinationErrorText } from './error-text.js';

/** @typedef {import('../progress-hub.js').Destination} Destination */
/** @typedef {import('../progress-hub.js').TestResult} TestResult */
/**
 * Requests about one destination. They reject with the hub's error.
 * @typedef {object} DestinationRequests
 * @property {() => Promise<TestResult>} test
 * @property {() => Promise<void>} enable
 * @property {() => Promise<void>} disable
 */

/** A destination of this kind has no address of its own that could be tested. */
const UNTESTABLE_KIND = 'host';

export class DestinationRow {
  #test = h('button', { class: 'secondary', type: 'button' }, 'Test');
  #resume = h('button', { class: 'secondary', type: 'button' }, 'Resume now');
  #toggle = h('button', { class: 'secondary', type: 'button' });
  element = h('li', {},
    h('i', { class: 'state-icon', 'aria-hidden': 'true' }),
    h('p', { class: 'destination-name' }, h('b'), ' ', h('span')),
    h('p', { class: 'destination-state' }, h('b'), ' ', h('span', { class: 'note' })),
    h('p', { class: 'buttons' }, this.#test, this.#resume, this.#toggle),
    h('p', { class: 'result', role: 'status', hidden: '' }),
    h('p', { class: 'error', role: 'alert', hidden: '' }));
  /** @type {Destination | null} */ #destination = null;

  /** @param {DestinationRequests} requests */
  constructor(requests) {
    const result = $('.result', this.element);
    const toggle = () => (this.#destination?.state === 'disabled' ? requests.enable() : requests.disable());
    this.#onPress(this.#test, async () => {
      showMessage(result, 'Sending a test…');
      showMessage(result, testResultText(await requests.test().catch(error => {
        showMessage(result, '');
        throw error;
      })));
    });
    this.#onPress(this.#resume, requests.enable);
    this.#onPress(this.#toggle, toggle);
  }

  /** @param {Destination} destination */
  show(destination) {
    this.#destination = destination;
    const { name, kind, state } = destination;
    attr(this.element, 'data-state', state);
    text($('.destination-name b', this.element), name);
    text($('.destination-name span', this.element), destinationKindText(destination));
    text($('.destination-state b', this.element), destinationStateText(destination));
    text(this.#toggle, state === 'disabled' ? 'Enable' : 'Disable');
    const isConfigured = state !== 'unconfigured';
    // The button of a pause that has ended may have the focus.
    if (state !== 'paused' && this.#resume === document.activeElement) this.#toggle.focus();
    this.#offer(this.#test, isConfigured && kind !== UNTESTABLE_KIND);
    this.#offer(this.#resume, state === 'paused');
    this.#offer(this.#toggle, isConfigured);
  }

  /** @param {number} now the hub's clock, in milliseconds */
  tick(now) {
    if (this.#destination) text($('.note', this.element), destinationNote(this.#destination, now));
  }

  /** @param {HTMLButtonElement} button @param {() => Promise<void>} send */
  #onPress(button, send) {
    onPress(button, $('.error', this.element), send, destinationErrorText);
  }

  /** @param {HTMLButtonElement} button @param {boolean} isOffered */
  #offer(button, isOffered) {
    attr(button, 'hidden', isOffered ? null : '');
    attr(button, 'aria-label', `${button.textContent}: ${this.#destination?.name}`);
  }
}
