/**
 * Destinations outside the hub, for administrators: one row for each.
 *
 * Invariant: only an administrator's tab asks the hub. The short polling interval is used only while the panel is open, and
 * a hidden tab does not poll.
 *
 * @module
 */

import { DestinationRow } from './destination-row.js';
import { destinationReasonText, destinationStateText, destinationsSummary } from './destination-text.js';
import { $, attr, setChildren, text } from './dom.js';
import { toSentence } from './error-text.js';

/** @typedef {import('../progress-hub.js').Destination} Destination */
/** @typedef {import('../progress-hub.js').TestResult} TestResult */
/**
 * What the component needs from the rest of the page.
 * @typedef {object} DestinationsContext
 * @property {() => Promise<Destination[]> | null} read null while the hub is not connected, and for others than administrators
 * @property {(name: string) => Promise<TestResult>} test
 * @property {(name: string) => Promise<Destination>} enable
 * @property {(name: string) => Promise<Destination>} disable
 * @property {() => number} now the hub's clock, in milliseconds
 * @property {(name: string, message: string) => void} announce
 */

const OPEN_POLL_INTERVAL_MS = 5_000;
const CLOSED_POLL_INTERVAL_MS = 60_000;

export class Destinations {
  /** @type {readonly Destination[]} */ #destinations = [];
  /** Rows by name. @type {Map<string, DestinationRow>} */ #rows = new Map();
  #polledAt = -Infinity;
  #isPolling = false;
  /** Incremented when responses to earlier requests are outdated, so that they are ignored. */
  #generation = 0;
  /** @type {HTMLDetailsElement} */ #panel = $('#destinations');
  #context;

  /** @param {DestinationsContext} context */
  constructor(context) {
    this.#context = context;
    this.#panel.addEventListener('toggle', () => this.tick());
    document.addEventListener('visibilitychange', () => this.tick());
  }

  /** Updates the countdowns, and polls when the interval has passed. */
  tick() {
    const now = this.#context.now();
    for (const row of this.#rows.values()) row.tick(now);
    const interval = this.#panel.open ? OPEN_POLL_INTERVAL_MS : CLOSED_POLL_INTERVAL_MS;
    if (document.visibilityState !== 'hidden' && !this.#isPolling && performance.now() - this.#polledAt >= interval) this.#poll();
  }

  /** Discards everything known, because the token changed. */
  clear() {
    this.#discardPoll();
    this.#polledAt = -Infinity;
    this.#destinations = [];
    this.#rows.clear();
    this.#panel.open = false;
    this.#render();
  }

  #discardPoll() {
    this.#generation += 1;
    this.#isPolling = false;
  }

  async #poll() {
    const response = this.#context.read();
    if (!response) return;
    const generation = this.#generation;
    this.#isPolling = true;
    this.#polledAt = performance.now();
    try {
      const destinations = await response;
      if (generation === this.#generation) this.#update(destinations);
    } catch {
      // The connection state already shows that the hub is unreachable. The last known states stay visible.
    }
    if (generation === this.#generation) this.#isPolling = false;
  }

  /** @param {string} name @param {(name: string) => Promise<Destination>} send @returns {Promise<void>} rejects with the hub's error */
  async #change(name, send) {
    const generation = this.#generation;
    const changed = await send(name);
    if (generation !== this.#generation) return;
    this.#discardPoll();
    this.#polledAt = performance.now();
    this.#update(this.#destinations.map(destination => (destination.name === name ? changed : destination)));
  }

  /** @param {readonly Destination[]} destinations */
  #update(destinations) {
    for (const destination of destinations) {
      const before = this.#destinations.find(({ name }) => name === destination.name);
      if (before && before.state !== destination.state) this.#context.announce(destination.name, toSentence([`${destination.name}: ${destinationStateText(destination)}`, destinationReasonText(destination)].filter(Boolean).join(' ')));
    }
    this.#destinations = destinations;
    this.#render();
  }

  #render() {
    const { test, enable, disable } = this.#context;
    /** @type {Map<string, DestinationRow>} */
    const rows = new Map();
    for (const destination of this.#destinations) {
      const { name } = destination;
      const row = this.#rows.get(name) ?? new DestinationRow({
        test: () => test(name),
        enable: () => this.#change(name, enable),
        disable: () => this.#change(name, disable),
      });
      row.show(destination);
      rows.set(name, row);
    }
    this.#rows = rows;
    setChildren($('ul', this.#panel), [...rows.values()].map(row => row.element));
    text($('summary b', this.#panel), destinationsSummary(this.#destinations));
    attr(this.#panel, 'data-attention', this.#destinations.some(({ state }) => state !== 'active') ? '' : null);
    attr(this.#panel, 'hidden', rows.size ? null : '');
    this.tick();
  }
}
