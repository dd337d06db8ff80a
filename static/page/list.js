/**
 * All jobs as cards, newest first.
 *
 * Invariants: the order of the cards never changes. One animation frame never exceeds its rendering budget.
 *
 * @module
 */

import { Card } from './card.js';
import { $, REDUCED_MOTION, attr, h, text } from './dom.js';
import { isPendingSubmission } from './labels.js';
import { SOURCES, SOURCE_LABELS } from './update-sources.js';

/** @typedef {import('../progress-hub.js').Job} Job */

const CARDS_PER_PAGE = 500;
/** Time per animation frame for creating and updating cards. A frame at 60 fps lasts 16 ms. */
const RENDER_BUDGET_MS = 8;
const VISIBILITY_MARGIN = '160px';

export class JobList {
  /** @type {Map<string, Job>} */ #jobs = new Map();
  /** @type {Map<string, Card>} */ #cards = new Map();
  /** Job ids, newest first. @type {string[]} */ #ids = [];
  /** Ids of jobs whose cards need rendering. @type {Set<string>} */ #dirty = new Set();
  #animationFrame = 0;
  #maxCards = CARDS_PER_PAGE;
  #isLoaded = false;
  /** State of the older jobs that are not loaded. @type {{ hasMore: boolean, isLoading: boolean, hasFailed: boolean }} */ #older = { hasMore: false, isLoading: false, hasFailed: false };
  /** Id of the job to scroll to after it was rendered. @type {string | null} */ #revealId = null;
  #list = $('#list');
  #context;
  #events;
  /** Cards on the screen. Only these play videos and follow the clock. @type {Set<Card>} */ #visible = new Set();
  #visibilityObserver = new IntersectionObserver(entries => this.#onVisibility(entries), { rootMargin: VISIBILITY_MARGIN });

  /** @param {import('./card.js').CardContext} context @param {{ onCard(card: Card): void, onChange(job: Job, before: Job): void, onMore(): void }} events `onMore`: the user requests older jobs that are not loaded */
  constructor(context, events) {
    this.#context = context;
    this.#events = events;
    $('#source-legend').replaceChildren(...SOURCES.map(source => h('div', {}, h('dt', {}, h('i', { class: 'source-icon', 'data-source': source }), source), h('dd', {}, SOURCE_LABELS[source]))));
    $('#more').addEventListener('click', () => {
      if (this.#older.isLoading) return;
      if (this.#ids.length <= this.#maxCards) this.#events.onMore();
      this.#maxCards += CARDS_PER_PAGE;
      for (const id of this.#ids.slice(0, this.#maxCards)) this.#dirty.add(id);
      this.#scheduleRender();
    });
  }

  /** @param {string} id @returns {Card | null} */
  card(id) {
    return this.#cards.get(id) ?? null;
  }

  /** Adds a job, or updates it if the document is newer. @param {Job} job */
  show(job) {
    const before = this.#jobs.get(job.id);
    if (before && before.version >= job.version) return;
    this.#jobs.set(job.id, job);
    this.#context.timeline.add(job);
    if (before) this.#events.onChange(job, before);
    else this.#insert(job);
    this.refresh(job.id);
  }

  /** Renders a job again after a change outside its document. @param {string} id */
  refresh(id) {
    this.#dirty.add(id);
    this.#scheduleRender();
  }

  /** Renders the jobs that wait for submission again after a change of provider states. */
  refreshPending() {
    for (const job of this.#pendingJobs()) this.refresh(job.id);
  }

  /** Whether any job waits to be submitted to its provider. */
  get hasPendingJobs() {
    return this.#pendingJobs().length > 0;
  }

  /** Scrolls to a job once it is rendered. @param {string} id */
  reveal(id) {
    this.#revealId = id;
    this.refresh(id);
  }

  /** @param {boolean} isLoaded whether the hub had time to send the existing jobs; the empty state is shown only then */
  setLoaded(isLoaded) {
    this.#isLoaded = isLoaded;
    this.#renderSummary();
  }

  /** Shows whether the hub has older jobs that are not in the list. @param {{ hasMore: boolean, isLoading: boolean, hasFailed: boolean }} state */
  setOlder(state) {
    this.#older = state;
    this.#renderSummary();
  }

  clear() {
    for (const card of this.#cards.values()) card.remove();
    this.#visibilityObserver.disconnect();
    this.#visible.clear();
    this.#jobs.clear();
    this.#cards.clear();
    this.#ids = [];
    this.#dirty.clear();
    this.#renderSummary();
  }

  tick() {
    for (const card of this.#visible) card.tick();
  }

  #pendingJobs() {
    return [...this.#jobs.values()].filter(isPendingSubmission);
  }

  /** @param {Job} job */
  #insert(job) {
    let low = 0;
    let high = this.#ids.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isNewer(job, /** @type {Job} */ (this.#jobs.get(this.#ids[middle])))) high = middle;
      else low = middle + 1;
    }
    this.#ids.splice(low, 0, job.id);
  }

  #scheduleRender() {
    this.#animationFrame ||= requestAnimationFrame(() => {
      this.#animationFrame = 0;
      this.#render();
    });
  }

  /** Renders dirty cards from the top until the budget is used. The next frame continues. */
  #render() {
    const deadline = performance.now() + RENDER_BUDGET_MS;
    const indexes = new Map(this.#ids.map((id, index) => [id, index]));
    const dirty = [...this.#dirty].sort((a, b) => (indexes.get(a) ?? 0) - (indexes.get(b) ?? 0));
    for (const id of dirty) {
      this.#dirty.delete(id);
      const index = indexes.get(id);
      if (index === undefined || index >= this.#maxCards) continue;
      this.#renderCard(id, index);
      if (performance.now() > deadline) break;
    }
    this.#renderSummary();
    if (this.#dirty.size) this.#scheduleRender();
  }

  /** @param {string} id @param {number} index */
  #renderCard(id, index) {
    const job = /** @type {Job} */ (this.#jobs.get(id));
    const existing = this.#cards.get(id);
    const card = existing ?? new Card(job, this.#context);
    card.job = job;
    if (!existing) this.#attach(card, index);
    card.render();
    if (!existing) this.#events.onCard(card);
    if (this.#revealId !== id) return;
    this.#revealId = null;
    card.element.scrollIntoView({ block: 'nearest', behavior: REDUCED_MOTION.matches ? 'auto' : 'smooth' });
  }

  /** @param {Card} card @param {number} index */
  #attach(card, index) {
    const next = this.#ids.slice(index + 1).find(id => this.#cards.has(id));
    this.#cards.set(card.job.id, card);
    if (this.#isLoaded) card.element.classList.add('fresh');
    this.#list.insertBefore(card.element, next ? /** @type {Card} */ (this.#cards.get(next)).element : null);
    this.#visibilityObserver.observe(card.element);
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

  #renderSummary() {
    const jobs = [...this.#jobs.values()];
    const count = (/** @type {(job: Job) => boolean} */ matches) => jobs.filter(matches).length;
    const parts = [
      [count(job => !job.final), 'active'], [count(job => job.status === 'succeeded'), 'succeeded'],
      [count(job => job.status === 'failed'), 'failed'], [count(job => job.status === 'cancelled'), 'cancelled'],
    ].flatMap(([number, label]) => (number ? [`${number} ${label}`] : []));
    // The hub reports no totals, so only the loaded jobs are counted.
    text($('#summary'), parts.join(', ') + (parts.length && this.#older.hasMore ? ', older jobs not counted' : ''));
    document.body.toggleAttribute('data-jobs', jobs.length > 0);
    attr($('#empty'), 'hidden', jobs.length || !this.#isLoaded ? '' : null);
    const hidden = this.#ids.length - this.#maxCards;
    const { hasMore, isLoading, hasFailed } = this.#older;
    attr($('#more'), 'hidden', hidden > 0 || hasMore ? null : '');
    attr($('#more'), 'aria-disabled', String(isLoading && hidden <= 0));
    text($('#more'), hidden > 0 ? `Show ${Math.min(hidden, CARDS_PER_PAGE)} older ${hidden === 1 ? 'job' : 'jobs'}`
      : isLoading ? 'Loading…' : hasFailed ? 'Older jobs could not be loaded. Try again' : 'Show older jobs');
  }
}

/** @param {Job} a @param {Job} b */
function isNewer(a, b) {
  return a.created_at === b.created_at ? a.id > b.id : a.created_at > b.created_at;
}
