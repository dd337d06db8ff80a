/**
 * State of the providers: one row for each provider that is not available.
 *
 * Invariant: the short polling interval is used only while a job waits or a provider is not available, and a hidden tab
 * does not poll.
 *
 * @module
 */

import { $, attr, setChildren } from './dom.js';
import { ProviderRow } from './provider-row.js';
import { providerStatusAria } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */
/**
 * What the component needs from the rest of the page.
 * @typedef {object} ProvidersContext
 * @property {() => Promise<Provider[]> | null} read null while the hub is not connected
 * @property {(name: string) => Promise<Provider>} resume
 * @property {() => number} now the hub's clock, in milliseconds
 * @property {() => boolean} hasPendingJobs whether any job waits to be submitted
 * @property {() => void} onChange
 * @property {(name: string, message: string) => void} announce
 */

const ACTIVE_POLL_INTERVAL_MS = 3_000;
const IDLE_POLL_INTERVAL_MS = 60_000;

export class Providers {
  /** Last known state by name. @type {Map<string, Provider>} */ #providers = new Map();
  /** Visible rows by name. @type {Map<string, ProviderRow>} */ #rows = new Map();
  #polledAt = -Infinity;
  #isPolling = false;
  /** Incremented when responses to earlier requests are outdated, so that they are ignored. */
  #generation = 0;
  #list = $('#providers');
  #context;

  /** @param {ProvidersContext} context */
  constructor(context) {
    this.#context = context;
    document.addEventListener('visibilitychange', () => this.tick());
  }

  /** Returns the provider if its state is not `available`, else null. @param {string | null} name @returns {Provider | null} */
  limited(name) {
    const provider = this.#providers.get(name ?? '');
    return provider && provider.state !== 'available' ? provider : null;
  }

  /** Updates the countdowns, and polls when the interval has passed. */
  tick() {
    const now = this.#context.now();
    for (const row of this.#rows.values()) row.tick(now);
    if (document.visibilityState !== 'hidden' && !this.#isPolling && performance.now() - this.#polledAt >= this.#pollInterval()) this.#poll();
  }

  /** Polls now, after an event that is likely to have changed a state. */
  refresh() {
    this.#polledAt = -Infinity;
    this.tick();
  }

  /** Discards everything known, because the token changed. */
  clear() {
    this.#discardPoll();
    this.#polledAt = -Infinity;
    this.#providers.clear();
    this.#rows.clear();
    this.#render();
  }

  #pollInterval() {
    return this.#rows.size || this.#context.hasPendingJobs() ? ACTIVE_POLL_INTERVAL_MS : IDLE_POLL_INTERVAL_MS;
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
      const providers = await response;
      if (generation === this.#generation) this.#update(providers);
    } catch {
      // The connection state already shows that the hub is unreachable. The last known states stay visible.
    }
    if (generation === this.#generation) this.#isPolling = false;
  }

  /** @param {string} name @returns {Promise<void>} rejects with the hub's error */
  async #resume(name) {
    const generation = this.#generation;
    const resumed = await this.#context.resume(name);
    if (generation !== this.#generation) return;
    this.#discardPoll();
    this.#polledAt = performance.now();
    this.#rows.get(name)?.markResumed();
    this.#update([...this.#providers.values()].map(provider => (provider.name === name ? { ...resumed, title: provider.title } : provider)));
  }

  /** @param {Provider[]} providers */
  #update(providers) {
    const count = (/** @type {string} */ title) => providers.filter(provider => provider.title === title).length;
    const withUniqueTitles = providers.map(provider => (count(provider.title) > 1 ? { ...provider, title: `${provider.title} (${provider.name})` } : provider));
    const hasChanged = (/** @type {Provider} */ { name, state, reason }) => (this.limited(name)?.state ?? 'available') !== state || (this.limited(name)?.reason ?? null) !== reason;
    for (const provider of withUniqueTitles.filter(hasChanged)) this.#context.announce(provider.name, providerStatusAria(provider));
    this.#providers = new Map(withUniqueTitles.map(provider => [provider.name, provider]));
    this.#render();
  }

  #render() {
    /** @type {Map<string, ProviderRow>} */
    const rows = new Map();
    for (const provider of this.#providers.values()) {
      const { name, state } = provider;
      let row = this.#rows.get(name);
      if (state === 'available' && !row?.isResumed) continue;
      row ??= new ProviderRow(() => this.#resume(name));
      row.show(provider);
      rows.set(name, row);
    }
    this.#rows = rows;
    setChildren(this.#list, [...rows.values()].map(row => row.element));
    attr(this.#list, 'hidden', rows.size ? null : '');
    this.tick();
    this.#context.onChange();
  }
}
