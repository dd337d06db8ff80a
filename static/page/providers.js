/**
 * How the providers are, a line for each that is not well; nothing while all are.
 *
 * Invariant: the hub is asked soon again only while something waits for the answer, and never by a tab that nobody sees.
 *
 * @module
 */

import { $, attr, h, text } from './dom.js';
import { clock, sum } from './format.js';
import { spokenStanding, standingWords } from './standing.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */
/**
 * @typedef {object} Around
 * @property {() => Promise<Provider[]> | null} read null while there is nobody to ask
 * @property {() => number} now the hub's clock
 * @property {() => boolean} isAwaited whether a job waits for its provider
 * @property {() => void} onChange
 * @property {(name: string, words: string) => void} say
 */

const SOON_MS = 3_000;
const RARELY_MS = 60_000;

export class Providers {
  /** Those that are not open, by name. @type {Map<string, Provider>} */ #unwell = new Map();
  /** @type {Map<string, HTMLElement>} */ #lines = new Map();
  #askedAt = -Infinity;
  #isAsking = false;
  /** Rises when the one who asks leaves, so that a late answer is void. */
  #generation = 0;
  #list = $('#providers');
  #around;

  /** @param {Around} around */
  constructor(around) {
    this.#around = around;
    document.addEventListener('visibilitychange', () => this.tick());
  }

  /** @param {string | null} name @returns {Provider | null} null when it is well, or nothing is known */
  unwell(name) {
    return this.#unwell.get(name ?? '') ?? null;
  }

  /** Every second: counts down, and asks when it is time. */
  tick() {
    const now = this.#around.now();
    for (const [name, provider] of this.#unwell) text($('span', /** @type {HTMLElement} */ (this.#lines.get(name))), standingWords(provider, now));
    if (document.visibilityState !== 'hidden' && !this.#isAsking && performance.now() - this.#askedAt >= this.#pause()) this.#ask();
  }

  /** Whoever asked is not here any more. */
  forget() {
    this.#generation += 1;
    this.#askedAt = -Infinity;
    this.#isAsking = false;
    this.#show([]);
  }

  #pause() {
    return this.#unwell.size || this.#around.isAwaited() ? SOON_MS : RARELY_MS;
  }

  async #ask() {
    const answer = this.#around.read();
    if (!answer) return;
    const generation = this.#generation;
    this.#isAsking = true;
    this.#askedAt = performance.now();
    try {
      const providers = await answer;
      if (generation === this.#generation) this.#learn(providers);
    } catch {
      // The pill already says that the hub is away; until then this is the last known.
    }
    if (generation === this.#generation) this.#isAsking = false;
  }

  /** @param {Provider[]} providers */
  #learn(providers) {
    const count = (/** @type {string} */ title) => providers.filter(one => one.title === title).length;
    const named = providers.map(one => (count(one.title) > 1 ? { ...one, title: `${one.title} (${one.name})` } : one));
    const isNews = (/** @type {Provider} */ { name, state, reason }) => (this.unwell(name)?.state ?? 'open') !== state || (this.unwell(name)?.reason ?? null) !== reason;
    for (const one of named.filter(isNews)) this.#around.say(one.name, `${spokenStanding(one)}.`);
    this.#show(named.filter(({ state }) => state !== 'open'));
  }

  /** @param {Provider[]} unwell */
  #show(unwell) {
    this.#unwell = new Map(unwell.map(one => [one.name, one]));
    this.#lines = new Map(unwell.map(one => [one.name, this.#lines.get(one.name) ?? h('li', {}, h('i', { 'aria-hidden': 'true' }), h('span'), h('small'))]));
    for (const { name, state, since, balance } of unwell) {
      const line = /** @type {HTMLElement} */ (this.#lines.get(name));
      attr(line, 'data-state', state);
      text($('small', line), [since && `since ${clock(since)}`, balance && `${sum(balance)} left`].filter(Boolean).join(', '));
    }
    const lines = [...this.#lines.values()];
    if (lines.length !== this.#list.children.length || lines.some((line, at) => this.#list.children[at] !== line)) this.#list.replaceChildren(...lines);
    attr(this.#list, 'hidden', lines.length ? null : '');
    this.tick();
    this.#around.onChange();
  }
}
