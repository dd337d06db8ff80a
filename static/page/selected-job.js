/** The one job that is opened. Invariant: the address names it, so that it can be handed on. */

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').ProgressHub} ProgressHub */
/** @typedef {import('./card.js').Card} Card */

export class Opened {
  /** @type {Card | null} */ #card = null;
  /** Named by the address, not here yet. @type {string | null} */ #awaited = null;
  /** @type {(() => void) | null} */ #stopWatching = null;

  constructor() {
    document.addEventListener('keydown', event => {
      if (event.key === 'Escape') this.close();
    });
  }

  /** @param {Card} card */
  toggle(card) {
    if (this.#card === card) this.close();
    else this.#open(card);
  }

  close() {
    const card = this.#card;
    if (!card) return;
    this.#card = null;
    this.#stopWatching?.();
    this.#stopWatching = null;
    card.setOpen(false);
    card.focus();
    history.replaceState(null, '', location.pathname);
  }

  /** @param {Card} card new in the list */
  onCard(card) {
    if (card.job.id === this.#awaited) this.#open(card);
  }

  /**
   * Opens the job that the address names. It may be somebody else's that this token is allowed to see.
   * @param {ProgressHub | null} hub
   * @param {{ card(id: string): Card | null, show(job: Job): void }} list
   * @param {() => void} onMissing
   */
  followAddress(hub, list, onMissing) {
    const id = decodeURIComponent(location.hash.slice(1));
    if (!/^job_/.test(id) || !hub) return;
    const card = list.card(id);
    if (card) return this.#open(card);
    this.#awaited = id;
    this.#stopWatching?.();
    this.#stopWatching = hub.watch(id, job => list.show(job), problem => {
      if (problem.code === 'not_found') onMissing();
    });
  }

  /** @param {Card} card */
  #open(card) {
    if (this.#card !== card) this.#card?.setOpen(false);
    this.#awaited = null;
    this.#card = card;
    card.setOpen(true);
    if (location.hash !== `#${card.job.id}`) history.replaceState(null, '', `#${card.job.id}`);
  }
}
