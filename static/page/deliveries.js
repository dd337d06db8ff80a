/**
 * Deliveries of the open job to destinations outside the hub.
 *
 * Invariant: the hub is asked when the job is opened, when it becomes final, and while a delivery waits. A hidden tab does
 * not ask, and a token without the right to read the job never does.
 *
 * @module
 */

import { HubError } from '../progress-hub.js';
import { DeliveryRow } from './delivery-row.js';
import { $, attr, h, setChildren, text } from './dom.js';
import { deliveryErrorText } from './error-text.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Delivery} Delivery */
/**
 * What the component needs from the rest of the page.
 * @typedef {object} DeliveriesContext
 * @property {(job: Job, limit: number) => Promise<{ deliveries: Delivery[], next_cursor: string | null }> | null} read null while the hub is
 *   not connected, and for a token that may not read the job
 * @property {(id: string) => Promise<Delivery>} redeliver
 * @property {(job: Job) => boolean} mayRedeliver
 * @property {() => number} now the hub's clock, in milliseconds
 */

const MAX_DELIVERIES = 100;
/** Polling interval while the result of a requested attempt is awaited. */
const RESULT_POLL_INTERVAL_MS = 1_000;
/** Polling interval while an attempt is due. */
const MIN_POLL_INTERVAL_MS = 2_000;
/** Polling interval while deliveries are held, or wait for longer. */
const MAX_POLL_INTERVAL_MS = 30_000;

export class Deliveries {
  element = h('div', { class: 'deliveries', hidden: '' }, h('h4', {}, 'Deliveries'), h('ul', { role: 'list', 'aria-label': 'Deliveries' }),
    h('p', { class: 'hint', hidden: '' }, `Only the newest ${MAX_DELIVERIES} deliveries are shown.`),
    h('p', { class: 'load-error', hidden: '' }, h('span', { class: 'error', role: 'alert' }), h('button', { class: 'secondary', type: 'button' }, 'Try again')));
  /** Rows by delivery id. @type {Map<string, DeliveryRow>} */ #rows = new Map();
  /** @type {readonly Delivery[]} */ #deliveries = [];
  /** When to ask the hub next, by `performance.now()`. */
  #dueAt = -Infinity;
  #isLoading = false;
  /** Incremented when a response to an earlier request is outdated, so that it is ignored. */
  #generation = 0;
  #isFinal = false;
  /** @type {Job} */ #job;
  #context;
  #onLoaded;

  /** @param {Job} job @param {DeliveriesContext} context @param {(deliveries: readonly Delivery[]) => void} onLoaded */
  constructor(job, context, onLoaded) {
    this.#job = job;
    this.#isFinal = job.final;
    this.#context = context;
    this.#onLoaded = onLoaded;
    $('.load-error button', this.element).addEventListener('click', () => this.#refresh());
  }

  /** @param {Job} job */
  show(job) {
    this.#job = job;
    if (job.final && !this.#isFinal) this.#refresh();
    this.#isFinal = job.final;
  }

  /** Updates the countdowns, and asks the hub if that is due. */
  tick() {
    const now = this.#context.now();
    for (const row of this.#rows.values()) row.tick(now);
    if (document.visibilityState !== 'hidden' && !this.#isLoading && performance.now() >= this.#dueAt) this.#load();
  }

  #refresh() {
    this.#discardLoad();
    this.#dueAt = -Infinity;
    this.tick();
  }

  #discardLoad() {
    this.#generation += 1;
    this.#isLoading = false;
  }

  async #load() {
    const response = this.#context.read(this.#job, MAX_DELIVERIES);
    if (!response) return;
    const generation = this.#generation;
    this.#isLoading = true;
    try {
      const { deliveries, next_cursor } = await response;
      if (generation !== this.#generation) return;
      attr($('.hint', this.element), 'hidden', next_cursor === null ? '' : null);
      this.#showError('');
      this.#update(deliveries);
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#dueAt = error instanceof HubError && error.retryable ? performance.now() + MAX_POLL_INTERVAL_MS : Infinity;
      this.#showError(`Deliveries can't be loaded. ${deliveryErrorText(error)}`);
    }
    this.#isLoading = false;
  }

  /** @param {string} id @returns {Promise<void>} rejects with the hub's error */
  async #redeliver(id) {
    const requested = await this.#context.redeliver(id);
    this.#discardLoad();
    this.#update(this.#deliveries.map(delivery => (delivery.id === id ? requested : delivery)));
  }

  /** @param {readonly Delivery[]} deliveries */
  #update(deliveries) {
    this.#deliveries = deliveries;
    const maySend = this.#context.mayRedeliver(this.#job);
    /** @type {Map<string, DeliveryRow>} */
    const rows = new Map();
    for (const delivery of deliveries) {
      const row = this.#rows.get(delivery.id) ?? new DeliveryRow(() => this.#redeliver(delivery.id));
      row.show(delivery, maySend);
      rows.set(delivery.id, row);
    }
    this.#rows = rows;
    setChildren($('ul', this.element), [...rows.values()].map(row => row.element));
    this.#dueAt = performance.now() + this.#pollInterval();
    this.#renderVisibility();
    this.tick();
    this.#onLoaded(deliveries);
  }

  /** Returns the time until the next attempt, within limits. An attempt that is overdue is asked for less and less often. */
  #pollInterval() {
    const now = this.#context.now();
    const delays = this.#deliveries.flatMap(({ state, next_attempt_at }) => {
      if (state === 'held') return [MAX_POLL_INTERVAL_MS];
      if (state !== 'waiting') return [];
      const delay = Date.parse(next_attempt_at ?? '') - now;
      return [delay >= 0 ? delay : -delay / 2];
    });
    if (!delays.length) return Infinity;
    const min = [...this.#rows.values()].some(row => row.awaitsResult) ? RESULT_POLL_INTERVAL_MS : MIN_POLL_INTERVAL_MS;
    return Math.min(Math.max(min, Math.min(...delays)), MAX_POLL_INTERVAL_MS);
  }

  /** @param {string} message */
  #showError(message) {
    text($('.load-error span', this.element), message);
    attr($('.load-error', this.element), 'hidden', message ? null : '');
    this.#renderVisibility();
  }

  #renderVisibility() {
    const hasError = !$('.load-error', this.element).hasAttribute('hidden');
    attr(this.element, 'hidden', this.#deliveries.length || hasError ? null : '');
  }
}
