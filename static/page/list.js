/**
 * All jobs as cards, newest first.
 *
 * Invariant: a card never changes its place, and a frame of the screen never does more than its budget of work.
 *
 * @module
 */

import { Card } from './card.js';
import { $, REDUCED_MOTION, attr, h, text } from './dom.js';
import { SOURCES, TELLERS } from './update-sources.js';
import { isWaiting } from './labels.js';

/** @typedef {import('../progress-hub.js').Job} Job */

const CARDS_AT_ONCE = 500;
/** Of a frame's 16 ms, what building and updating cards may take. */
const FRAME_BUDGET_MS = 8;

export class JobList {
  /** @type {Map<string, Job>} */ #jobs = new Map();
  /** @type {Map<string, Card>} */ #cards = new Map();
  /** Ids, newest first. @type {string[]} */ #order = [];
  /** @type {Set<string>} */ #dirty = new Set();
  #frame = 0;
  #limit = CARDS_AT_ONCE;
  #settled = false;
  /** @type {string | null} */ #revealing = null;
  #list = $('#list');
  #around;
  #events;
  /** Only cards on the screen play, and only they follow the clock. @type {Set<Card>} */ #visible = new Set();
  #watchVisibility = new IntersectionObserver(entries => this.#onVisibility(entries), { rootMargin: '160px' });

  /** @param {import('./card.js').Around} around @param {{ onCard(card: Card): void, onChange(job: Job, before: Job): void }} events */
  constructor(around, events) {
    this.#around = around;
    this.#events = events;
    $('#tellers').replaceChildren(...SOURCES.map(source => h('div', {}, h('dt', {}, h('i', { class: 'mark', 'data-source': source }), source), h('dd', {}, TELLERS[source]))));
    $('#more').addEventListener('click', () => {
      this.#limit += CARDS_AT_ONCE;
      for (const id of this.#order.slice(0, this.#limit)) this.#dirty.add(id);
      this.#schedule();
    });
  }

  /** @param {string} id @returns {Card | null} */
  card(id) {
    return this.#cards.get(id) ?? null;
  }

  /** @param {Job} job */
  show(job) {
    const before = this.#jobs.get(job.id);
    if (before && before.version >= job.version) return;
    this.#jobs.set(job.id, job);
    this.#around.timeline.add(job);
    if (before) this.#events.onChange(job, before);
    else this.#insert(job);
    this.refresh(job.id);
  }

  /** Something beside the document has changed. @param {string} id */
  refresh(id) {
    this.#dirty.add(id);
    this.#schedule();
  }

  /** How the providers are has changed. */
  refreshWaiting() {
    for (const job of this.#waiting()) this.refresh(job.id);
  }

  /** Whether a job is still to be sent to its provider. */
  get isWaiting() {
    return this.#waiting().length > 0;
  }

  /** Brings a job just placed here into sight. @param {string} id */
  reveal(id) {
    this.#revealing = id;
    this.refresh(id);
  }

  /** Whether the hub had the time to send what there is: only then is an empty list true. @param {boolean} settled */
  settle(settled) {
    this.#settled = settled;
    this.#summary();
  }

  forget() {
    for (const card of this.#cards.values()) card.end();
    this.#watchVisibility.disconnect();
    this.#visible.clear();
    this.#jobs.clear();
    this.#cards.clear();
    this.#order = [];
    this.#dirty.clear();
    this.#summary();
  }

  tick() {
    for (const card of this.#visible) card.tick();
  }

  #waiting() {
    return [...this.#jobs.values()].filter(isWaiting);
  }

  /** @param {Job} job */
  #insert(job) {
    let low = 0;
    let high = this.#order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (newer(job, /** @type {Job} */ (this.#jobs.get(this.#order[middle])))) high = middle;
      else low = middle + 1;
    }
    this.#order.splice(low, 0, job.id);
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#render();
    });
  }

  /** Within a frame's budget; what is left over waits for the next one. */
  #render() {
    const until = performance.now() + FRAME_BUDGET_MS;
    const place = new Map(this.#order.map((id, at) => [id, at]));
    const dirty = [...this.#dirty].sort((a, b) => (place.get(a) ?? 0) - (place.get(b) ?? 0));
    for (const id of dirty) {
      this.#dirty.delete(id);
      const at = place.get(id);
      if (at === undefined || at >= this.#limit) continue;
      this.#renderOne(id, at);
      if (performance.now() > until) break;
    }
    this.#summary();
    if (this.#dirty.size) this.#schedule();
  }

  /** @param {string} id @param {number} at */
  #renderOne(id, at) {
    const job = /** @type {Job} */ (this.#jobs.get(id));
    const known = this.#cards.get(id);
    const card = known ?? new Card(job, this.#around);
    card.job = job;
    if (!known) this.#place(card, at);
    card.render();
    if (!known) this.#events.onCard(card);
    if (this.#revealing !== id) return;
    this.#revealing = null;
    card.element.scrollIntoView({ block: 'nearest', behavior: REDUCED_MOTION.matches ? 'auto' : 'smooth' });
  }

  /** @param {Card} card @param {number} at */
  #place(card, at) {
    const next = this.#order.slice(at + 1).find(id => this.#cards.has(id));
    this.#cards.set(card.job.id, card);
    if (this.#settled) card.element.classList.add('fresh');
    this.#list.insertBefore(card.element, next ? /** @type {Card} */ (this.#cards.get(next)).element : null);
    this.#watchVisibility.observe(card.element);
  }

  /** @param {IntersectionObserverEntry[]} entries */
  #onVisibility(entries) {
    for (const { target, isIntersecting } of entries) {
      const card = this.#cards.get(target.id);
      if (!card) continue;
      if (isIntersecting) this.#visible.add(card);
      else this.#visible.delete(card);
      card.setVisible(isIntersecting);
    }
  }

  #summary() {
    const all = [...this.#jobs.values()];
    const count = (/** @type {(job: Job) => boolean} */ test) => all.filter(test).length;
    const parts = [
      [count(job => !job.final), 'under way'], [count(job => job.status === 'succeeded'), 'finished'],
      [count(job => job.status === 'failed'), 'failed'], [count(job => job.status === 'cancelled'), 'cancelled'],
    ].flatMap(([number, word]) => (number ? [`${number} ${word}`] : []));
    text($('#summary'), parts.join(', '));
    document.body.toggleAttribute('data-jobs', all.length > 0);
    attr($('#empty'), 'hidden', all.length || !this.#settled ? '' : null);
    const hidden = this.#order.length - this.#limit;
    attr($('#more'), 'hidden', hidden > 0 ? null : '');
    text($('#more'), `Show ${Math.min(hidden, CARDS_AT_ONCE)} older`);
  }
}

/** @param {Job} a @param {Job} b */
function newer(a, b) {
  return a.created_at === b.created_at ? a.id > b.id : a.created_at > b.created_at;
}
