/** A job in the list. Invariant: a card changes only with a newer document, a change of its context, or the clock. */

import { Detail } from './detail.js';
import { $, attr, css, h, safeUrl, template, text } from './dom.js';
import { ago, clock, money, span } from './format.js';
import { jobNote, jobStatus, jobTitle, outputLabel } from './labels.js';
import { isExpired } from './outputs.js';
import { Player } from './player.js';
import { platformOf } from './presets.js';
import { STEPS, stepsFor } from './steps.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/**
 * What a card needs from the rest of the page.
 * @typedef {object} CardContext
 * @property {import('./timeline.js').Timeline} timeline
 * @property {() => number} now the hub's clock, in milliseconds
 * @property {() => boolean} isDemo
 * @property {(card: Card) => void} toggle opens or closes the card
 * @property {(job: Job) => void} editAndResubmit copies the job's request into the form
 * @property {import('./pending-cancels.js').PendingCancels} cancels
 * @property {import('./cancellable.js').Cancellable} cancellable
 * @property {import('./deliveries.js').DeliveriesContext} deliveries
 * @property {(id: string) => Promise<Job>} readJob reads the document by HTTP
 * @property {(job: Job) => import('./labels.js').JobState} stateOf
 */

export class Card {
  /** @type {Job} */ job;
  /** @type {HTMLElement} */ element;
  /** @type {Detail | null} */ #detail = null;
  #context;
  #parts;
  #player;

  /** @param {Job} job @param {CardContext} context */
  constructor(job, context) {
    this.job = job;
    this.#context = context;
    const root = this.element = /** @type {HTMLElement} */ ($('li', template('card-template')));
    root.id = job.id;
    this.#parts = {
      title: $('.title span', root),
      titleButton: /** @type {HTMLButtonElement} */ ($('.title', root)),
      status: $('.status', root),
      note: $('.note', root),
      progressBar: /** @type {HTMLElement} */ ($('[role="progressbar"]', root)),
      lastUpdate: $('.last-update span', root),
      sourceIcon: $('.last-update .source-icon', root),
      target: $('.target', root),
      cost: $('.cost', root),
      actions: $('.actions', root),
      steps: STEPS.map(name => $(`[data-step="${name}"]`, root)),
    };
    this.#player = new Player($('.player', root), () => this.render());
    this.#parts.titleButton.addEventListener('click', () => context.toggle(this));
  }

  /** Renders everything that depends on the document. */
  render() {
    const { job, element } = this;
    const { title, status, progressBar, target, cost } = this.#parts;
    const { label, tone } = jobStatus(job, this.#context.stateOf(job));
    const name = jobTitle(job);
    attr(element, 'data-tone', tone);
    attr(element, 'data-status', job.status);
    attr(element, 'data-final', job.final ? '' : null);
    attr(element, 'data-worker', job.provider ? null : '');
    text(title, name);
    attr(title, 'title', name);
    text(status, label);
    this.#renderSteps(tone);
    css(/** @type {HTMLElement} */ ($('i', progressBar)), '--progress', String(job.status === 'running' ? (job.progress ?? 0) / 100 : 0));
    attr(progressBar, 'aria-valuenow', job.progress === null ? null : String(job.progress));
    attr(progressBar, 'aria-label', `Progress of ${name.slice(0, 80)}`);
    this.#player.render(job);
    const targetText = [job.model, job.provider ?? (job.model ? null : 'Worker job'), platformOf(job)?.name].filter(Boolean).join(' · ');
    text(target, targetText);
    attr(target, 'title', `${targetText} · ${job.id}`);
    text(cost, job.cost ? money(job.cost) : '');
    this.tick();
    this.#detail?.render();
  }

  /** Renders everything that depends on the clock. */
  tick() {
    const { job } = this;
    const { note, progressBar, status, lastUpdate, sourceIcon } = this.#parts;
    const now = this.#context.now();
    const noteText = jobNote(job, now, this.#context.stateOf(job));
    text(note, noteText);
    attr(progressBar, 'aria-valuetext', [status.textContent, noteText].filter(Boolean).join(', '));
    text(lastUpdate, `Updated ${ago(now - Date.parse(job.updated_at))} via ${job.source}`);
    attr(sourceIcon, 'data-source', job.source);
    this.#player.tick(job, now);
    this.#renderActions(now);
    this.#detail?.tick();
  }

  /** @param {boolean} isVisible */
  setVisible(isVisible) {
    if (isVisible) this.tick();
    this.#player.setVisible(isVisible);
  }

  /** @param {boolean} isOpen */
  setOpen(isOpen) {
    this.element.classList.toggle('open', isOpen);
    attr(this.#parts.titleButton, 'aria-expanded', String(isOpen));
    if (isOpen && !this.#detail) {
      this.#detail = new Detail(this, this.#context);
      attr(this.#parts.titleButton, 'aria-controls', this.#detail.element.id);
      this.element.append(this.#detail.element);
      this.#detail.render();
    } else if (!isOpen && this.#detail) {
      this.#detail.remove();
      this.#detail = null;
      attr(this.#parts.titleButton, 'aria-controls', null);
    }
  }

  focus() {
    this.#parts.titleButton.focus({ preventScroll: true });
  }

  remove() {
    this.setOpen(false);
    this.element.remove();
  }

  /** @param {ReturnType<typeof jobStatus>['tone']} tone */
  #renderSteps(tone) {
    const { job } = this;
    const steps = stepsFor(job, this.#context.timeline.get(job.id));
    STEPS.forEach((name, index) => {
      const { state, source, elapsedMs } = steps[name];
      const element = this.#parts.steps[index];
      attr(element, 'data-state', state);
      attr(element, 'data-source', source);
      if (name === 'end') text($('b', element), job.status === 'failed' ? 'Failed' : job.status === 'cancelled' ? 'Cancelled' : outputLabel(job));
      text($('.step-source', element), source ?? (state === 'skipped' && name !== 'end' ? 'skipped' : state === 'unknown' ? 'unknown' : ''));
      text($('.step-time', element), elapsedMs === null ? '' : index ? span(elapsedMs) : clock(job.created_at));
      const isIndeterminate = state === 'current' && tone !== 'waiting' && (name !== 'running' || job.progress === null);
      $('.segment', element)?.classList.toggle('indeterminate', isIndeterminate);
    });
  }

  /** @param {number} now */
  #renderActions(now) {
    const { job } = this;
    const { actions } = this.#parts;
    const url = job.outputs.filter(output => !isExpired(output, now)).map(output => safeUrl(output.url)).find(Boolean);
    const action = url && job.status === 'succeeded' ? 'open' : job.final && job.metadata?.prompt ? 'resubmit' : '';
    if (actions.getAttribute('data-action') === action) return;
    attr(actions, 'data-action', action);
    actions.replaceChildren();
    if (action === 'open') {
      actions.append(h('a', { href: /** @type {string} */ (url), target: '_blank', rel: 'noopener noreferrer' }, `Open ${outputLabel(job).toLowerCase()}`));
    } else if (action === 'resubmit') {
      const button = h('button', { type: 'button' }, 'Edit and try again');
      button.addEventListener('click', () => this.#context.editAndResubmit(job));
      actions.append(button);
    }
  }
}
