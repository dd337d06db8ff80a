/** One job in the list. Invariant: a card is changed by a newer document or by the clock, by nothing else. */

import { $, attr, css, h, safeUrl, template, text } from './dom.js';
import { Detail } from './detail.js';
import { ago, clock, span, sum } from './format.js';
import { Frame } from './player.js';
import { isOver } from './outputs.js';
import { platformOf } from './presets.js';
import { STATIONS, stationsOf } from './steps.js';
import { kindOfOutput, noteOf, statusOf, titleOf } from './labels.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/**
 * The page around a card.
 * @typedef {object} Around
 * @property {import('./timeline.js').Timeline} timeline
 * @property {() => number} now the hub's clock
 * @property {() => boolean} isDemo
 * @property {(card: Card) => void} toggle opens the card, or closes it
 * @property {(job: Job) => void} orderAgain offers the order for another try
 * @property {import('./pending-cancels.js').Cancels} cancels
 * @property {(job: Job) => import('./labels.js').Beside} beside
 */

export class Card {
  /** @type {Job} */ job;
  /** @type {HTMLElement} */ element;
  /** @type {Detail | null} */ #detail = null;
  #around;
  #parts;
  #frame;

  /** @param {Job} job @param {Around} around */
  constructor(job, around) {
    this.job = job;
    this.#around = around;
    const root = this.element = /** @type {HTMLElement} */ ($('li', template('card-template')));
    root.id = job.id;
    this.#parts = {
      title: $('.title span', root), button: /** @type {HTMLButtonElement} */ ($('.title', root)), word: $('.word', root), note: $('.note', root),
      bar: /** @type {HTMLElement} */ ($('[role="progressbar"]', root)), news: $('.news span', root), mark: $('.news .mark', root), from: $('.from', root), cost: $('.cost', root), acts: $('.acts', root),
      stations: STATIONS.map(at => $(`[data-at="${at}"]`, root)),
    };
    this.#frame = new Frame($('.frame', root), () => this.render());
    this.#parts.button.addEventListener('click', () => around.toggle(this));
  }

  /** Everything that follows from the document. */
  render() {
    const { job, element } = this;
    const { title, word, bar, from, cost } = this.#parts;
    const status = statusOf(job, this.#around.beside(job));
    const name = titleOf(job);
    attr(element, 'data-tone', status.tone);
    attr(element, 'data-status', job.status);
    attr(element, 'data-final', job.final ? '' : null);
    attr(element, 'data-worker', job.provider ? null : '');
    text(title, name);
    attr(title, 'title', name);
    text(word, status.word);
    this.#renderRail(status.tone);
    css(/** @type {HTMLElement} */ ($('i', bar)), '--p', String(job.status === 'running' ? (job.progress ?? 0) / 100 : 0));
    attr(bar, 'aria-valuenow', job.progress === null ? null : String(job.progress));
    attr(bar, 'aria-label', `Progress of ${name.slice(0, 80)}`);
    this.#frame.render(job);
    const maker = job.provider && job.model ? `${job.model} at ${job.provider}` : job.model ?? job.provider ?? 'a worker of yours';
    const words = [maker, platformOf(job)?.name].filter(Boolean).join(' · ');
    text(from, words);
    attr(from, 'title', `${words} · ${job.id}`);
    text(cost, job.cost ? sum(job.cost) : '');
    this.tick();
    this.#detail?.render();
  }

  /** Everything that follows from the clock. */
  tick() {
    const { job } = this;
    const { note, bar, word, news, mark } = this.#parts;
    const now = this.#around.now();
    const words = noteOf(job, now, this.#around.beside(job));
    text(note, words);
    attr(bar, 'aria-valuetext', `${word.textContent}, ${words}`);
    text(news, `${ago(now - Date.parse(job.updated_at))} by ${job.source}`);
    attr(mark, 'data-source', job.source);
    this.#frame.tick(job, now);
    this.#renderActs(now);
    this.#detail?.tick();
  }

  /** @param {boolean} isVisible */
  setVisible(isVisible) {
    if (isVisible) this.tick();
    this.#frame.setVisible(isVisible);
  }

  /** @param {boolean} isOpen */
  setOpen(isOpen) {
    this.element.classList.toggle('open', isOpen);
    attr(this.#parts.button, 'aria-expanded', String(isOpen));
    if (isOpen && !this.#detail) {
      this.#detail = new Detail(this, this.#around);
      attr(this.#parts.button, 'aria-controls', this.#detail.element.id);
      this.element.append(this.#detail.element);
      this.#detail.render();
    } else if (!isOpen && this.#detail) {
      this.#detail.end();
      this.#detail = null;
      attr(this.#parts.button, 'aria-controls', null);
    }
  }

  focus() {
    this.#parts.button.focus({ preventScroll: true });
  }

  end() {
    this.setOpen(false);
    this.element.remove();
  }

  /** @param {ReturnType<typeof statusOf>['tone']} tone */
  #renderRail(tone) {
    const { job } = this;
    const stations = stationsOf(job, this.#around.timeline.of(job.id));
    STATIONS.forEach((name, index) => {
      const { state, by, at } = stations[name];
      const station = this.#parts.stations[index];
      attr(station, 'data-state', state);
      attr(station, 'data-source', by);
      if (name === 'end') text($('b', station), job.status === 'failed' ? 'Failed' : job.status === 'cancelled' ? 'Cancelled' : kindOfOutput(job));
      text($('.teller', station), name === 'accepted' ? 'you' : by ?? (state === 'skipped' && name !== 'end' ? 'skipped' : state === 'unseen' ? 'not seen' : ''));
      text($('.when', station), at === null ? '' : index ? span(at) : clock(job.created_at));
      $('.seg', station)?.classList.toggle('moving', state === 'here' && tone !== 'wait' && (name !== 'running' || job.progress === null));
    });
  }

  /** @param {number} now */
  #renderActs(now) {
    const { job } = this;
    const { acts } = this.#parts;
    const url = job.outputs.filter(output => !isOver(output, now)).map(output => safeUrl(output.url)).find(Boolean);
    const wanted = url && job.status === 'succeeded' ? 'open' : job.final && job.metadata?.prompt ? 'again' : '';
    if (acts.getAttribute('data-for') === wanted) return;
    attr(acts, 'data-for', wanted);
    acts.replaceChildren();
    if (wanted === 'open') {
      acts.append(h('a', { href: /** @type {string} */ (url), target: '_blank', rel: 'noopener noreferrer' }, `Open ${kindOfOutput(job).toLowerCase()}`));
    } else if (wanted === 'again') {
      const again = h('button', { type: 'button' }, 'Edit and try again');
      again.addEventListener('click', () => this.#around.orderAgain(job));
      acts.append(again);
    }
  }
}
