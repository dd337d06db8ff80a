/** The job whose details are open. Invariant: the URL fragment names it, so that the address can be shared. */

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').ProgressHub} ProgressHub */
/** @typedef {import('./card.js').Card} Card */

export class SelectedJob {
  /** @type {Card | null} */ #card = null;
  /** Id from the URL of a job that is not in the list yet. @type {string | null} */ #awaitedId = null;
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

  /** Opens a card that was just added if the URL names its job. @param {Card} card */
  onCard(card) {
    if (card.job.id === this.#awaitedId) this.#open(card);
  }

  /**
   * Opens the job that the URL names. It may belong to another owner if the token can read it, so it is watched by id.
   * @param {ProgressHub | null} hub
   * @param {{ card(id: string): Card | null, show(job: Job): void }} list
   * @param {() => void} onMissing
   */
  openFromAddress(hub, list, onMissing) {
    const id = decodeURIComponent(location.hash.slice(1));
    if (!/^job_/.test(id) || !hub) return;
    const card = list.card(id);
    if (card) return this.#open(card);
    this.#awaitedId = id;
    this.#stopWatching?.();
    this.#stopWatching = hub.watch(id, job => list.show(job), error => {
      if (error.code === 'not_found') onMissing();
    });
  }

  /** @param {Card} card */
  #open(card) {
    if (this.#card !== card) this.#card?.setOpen(false);
    this.#awaitedId = null;
    this.#card = card;
    card.setOpen(true);
    if (location.hash !== `#${card.job.id}`) history.replaceState(null, '', `#${card.job.id}`);
  }
}
