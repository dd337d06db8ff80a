/**
 * How the providers are, a line for each that is not well; nothing while all are.
 *
 * Invariant: the hub is asked soon again only while something waits for the answer, and never by a tab that nobody sees.
 *
 * @module
 */

import { $, attr } from './dom.js';
import { ProviderLine } from './provider-row.js';
import { spokenStanding } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */
/**
 * @typedef {object} Around
 * @property {() => Promise<Provider[]> | null} read null while there is nobody to ask
 * @property {(name: string) => Promise<Provider>} resume
 * @property {() => number} now the hub's clock
 * @property {() => boolean} isAwaited whether a job waits for its provider
 * @property {() => void} onChange
 * @property {(name: string, words: string) => void} say
 */

const SOON_MS = 3_000;
const RARELY_MS = 60_000;

export class Providers {
  /** As last told, by name. @type {Map<string, Provider>} */ #known = new Map();
  /** Of those that are worth a line. @type {Map<string, ProviderLine>} */ #lines = new Map();
  #askedAt = -Infinity;
  #isAsking = false;
  /** Rises when whatever was asked before is outdated, so that a late answer is void. */
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
    const provider = this.#known.get(name ?? '');
    return provider && provider.state !== 'open' ? provider : null;
  }

  /** Every second: counts down, and asks when it is time. */
  tick() {
    const now = this.#around.now();
    for (const line of this.#lines.values()) line.tick(now);
    if (document.visibilityState !== 'hidden' && !this.#isAsking && performance.now() - this.#askedAt >= this.#pause()) this.#ask();
  }

  /** Something was heard that changes the answer. */
  askNow() {
    this.#askedAt = -Infinity;
    this.tick();
  }

  /** Whoever asked is not here any more. */
  forget() {
    this.#forgetQuestion();
    this.#askedAt = -Infinity;
    this.#known.clear();
    this.#lines.clear();
    this.#show();
  }

  #pause() {
    return this.#lines.size || this.#around.isAwaited() ? SOON_MS : RARELY_MS;
  }

  #forgetQuestion() {
    this.#generation += 1;
    this.#isAsking = false;
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

  /** @param {string} name @returns {Promise<void>} fails as the hub does */
  async #resume(name) {
    const generation = this.#generation;
    const resumed = await this.#around.resume(name);
    if (generation !== this.#generation) return;
    this.#forgetQuestion();
    this.#askedAt = performance.now();
    this.#lines.get(name)?.showResumed();
    this.#learn([...this.#known.values()].map(one => (one.name === name ? { ...resumed, title: one.title } : one)));
  }

  /** @param {Provider[]} providers */
  #learn(providers) {
    const count = (/** @type {string} */ title) => providers.filter(one => one.title === title).length;
    const named = providers.map(one => (count(one.title) > 1 ? { ...one, title: `${one.title} (${one.name})` } : one));
    const isNews = (/** @type {Provider} */ { name, state, reason }) => (this.unwell(name)?.state ?? 'open') !== state || (this.unwell(name)?.reason ?? null) !== reason;
    for (const one of named.filter(isNews)) this.#around.say(one.name, `${spokenStanding(one)}.`);
    this.#known = new Map(named.map(one => [one.name, one]));
    this.#show();
  }

  #show() {
    /** @type {Map<string, ProviderLine>} */
    const lines = new Map();
    for (const provider of this.#known.values()) {
      const { name, state } = provider;
      let line = this.#lines.get(name);
      if (state === 'open' && !line?.isResumed) continue;
      line ??= new ProviderLine(() => this.#resume(name));
      line.show(provider);
      lines.set(name, line);
    }
    this.#lines = lines;
    const elements = [...lines.values()].map(line => line.element);
    if (elements.length !== this.#list.children.length || elements.some((element, at) => this.#list.children[at] !== element)) this.#list.replaceChildren(...elements);
    attr(this.#list, 'hidden', elements.length ? null : '');
    this.tick();
    this.#around.onChange();
  }
}
