/** One job opened: who told what and when, its versions, its document, and what can be done about it. */

import { Chart } from './chart.js';
import { $, attr, copyFrom, h, template, text } from './dom.js';
import { clock, dateAndClock, span, sum } from './format.js';
import { outputLine, validityWords } from './outputs.js';
import { TABS, snippet } from './snippets.js';
import { SOURCES, TELLERS } from './update-sources.js';
import { changeOf } from './timeline.js';
import { MAX_ATTEMPTS } from './labels.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('./timeline.js').Seen} Seen */
/** @typedef {import('./snippets.js').Tab} Tab */

export class Detail {
  /** @type {HTMLElement} */ element;
  /** @type {Tab} */ #tab = 'Document';
  #rows = 0;
  #chart;
  #card;
  #around;

  /** @param {{ readonly job: Job }} card @param {import('./card.js').Around} around */
  constructor(card, around) {
    this.#card = card;
    this.#around = around;
    this.element = $('section', template('detail-template'));
    this.element.id = `detail-${card.job.id}`;
    attr(this.element, 'aria-label', 'This job in detail');
    this.#chart = new Chart($('.plot', this.element), version => this.#mark(version));
    $('.copy', this.element).addEventListener('click', event => copyFrom(/** @type {HTMLButtonElement} */ (event.currentTarget)));
    $('.danger', this.element).addEventListener('click', () => around.cancels.ask(this.#card.job));
    const body = $('tbody', this.element);
    body.addEventListener('pointerover', event => this.#mark(Number(/** @type {Element} */ (event.target).closest('tr')?.getAttribute('data-v'))));
    body.addEventListener('pointerleave', () => this.#mark(0));
    this.#makeTabs();
  }

  render() {
    const { job } = this.#card;
    const seen = this.#around.timeline.of(job.id);
    this.#chart.draw(job, seen, this.#around.now());
    this.#renderLegend(job, seen);
    this.#renderRows(job, seen);
    this.#renderCode();
    this.#renderAbout(job);
    this.#renderCancel(job);
  }

  tick() {
    const { job } = this.#card;
    const now = this.#around.now();
    if (!job.final) this.#chart.draw(job, this.#around.timeline.of(job.id), now);
    this.element.querySelectorAll('.until').forEach((until, at) => text(until, validityWords(job.outputs[at], now)));
  }

  end() {
    this.#chart.end();
    this.element.remove();
  }

  /** @param {Job} job @param {readonly Seen[]} seen */
  #renderLegend(job, seen) {
    $('.legend', this.element).replaceChildren(...SOURCES.flatMap(source => {
      const count = seen.filter(one => one.by === source).length;
      return count ? [h('li', { title: TELLERS[source] }, h('i', { class: 'mark', 'data-source': source }), `${source} ${count}`)] : [];
    }));
    const missing = job.version - seen.length;
    text($('.seen', this.element), missing > 0
      ? `This browser saw ${seen.length} of ${job.version} versions. The hub always sends the newest and skips what is outdated.`
      : `This browser saw every one of the ${job.version} versions.`);
  }

  /** @param {Job} job @param {readonly Seen[]} seen */
  #renderRows(job, seen) {
    if (this.#rows === seen.length) return;
    this.#rows = seen.length;
    const rows = [];
    for (let at = seen.length - 1; at >= 0; at--) {
      const one = seen[at];
      const before = at ? seen[at - 1] : null;
      rows.push(h('tr', { 'data-v': String(one.v) },
        h('td', {}, String(one.v)), h('td', {}, span(one.at - Date.parse(job.created_at))), h('td', {}, changeOf(one, before)),
        h('td', {}, h('i', { class: 'mark', 'data-source': one.by }), one.by)));
      const gap = one.v - (before?.v ?? 0) - 1;
      if (gap > 0) rows.push(h('tr', { class: 'gap' }, h('td', { colspan: '4' }, `${gap} not seen here`)));
    }
    $('tbody', this.element).replaceChildren(...rows);
  }

  /** @param {number} version 0: none */
  #mark(version) {
    for (const row of this.element.querySelectorAll('tbody tr')) row.classList.toggle('on', Number(row.getAttribute('data-v')) === version && version > 0);
    this.#chart.mark(version);
  }

  #makeTabs() {
    const list = $('.tabs', this.element);
    const panel = $('[role="tabpanel"]', this.element);
    panel.id = `code-${this.#card.job.id}`;
    for (const tab of TABS) {
      const button = h('button', { type: 'button', role: 'tab', 'aria-controls': panel.id }, tab);
      button.addEventListener('click', () => this.#choose(tab));
      list.append(button);
    }
    list.addEventListener('keydown', event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[/** @type {KeyboardEvent} */ (event).key];
      if (!step) return;
      event.preventDefault();
      this.#choose(TABS[(TABS.indexOf(this.#tab) + step + TABS.length) % TABS.length]);
      /** @type {HTMLElement} */ ($('[aria-selected="true"]', list)).focus();
    });
    this.#choose('Document');
  }

  /** @param {Tab} tab */
  #choose(tab) {
    this.#tab = tab;
    for (const button of this.element.querySelectorAll('[role="tab"]')) {
      const chosen = button.textContent === tab;
      attr(button, 'aria-selected', String(chosen));
      attr(button, 'tabindex', chosen ? '0' : '-1');
    }
    attr($('[role="tabpanel"]', this.element), 'aria-label', tab);
    this.#renderCode();
  }

  #renderCode() {
    text($('.take code', this.element), snippet(this.#tab, this.#card.job, this.#around.isDemo()));
  }

  /** @param {Job} job */
  #renderAbout(job) {
    /** @type {[string, Node | string | null][]} */
    const facts = [
      ['Job', h('span', { class: 'id' }, job.id)],
      ['At the provider', job.provider_task_id ? h('span', { class: 'id' }, job.provider_task_id) : null],
      ['Owner', job.owner],
      ['Placed', dateAndClock(job.created_at)],
      ['Tries', job.provider && job.attempt ? `${job.attempt} of ${MAX_ATTEMPTS}` : null],
      ['Ends by itself', job.final || !job.deadline_at ? null : `at ${clock(job.deadline_at)}`],
      ['The reason given', job.error ? `${job.error.message}${job.error.provider_code ? ` (${job.error.provider_code})` : ''}` : null],
      ['Cost', job.cost && sum(job.cost)],
      ['Moderation', job.moderation.length ? h('ul', {}, ...job.moderation.map(remark => h('li', {}, remark))) : null],
      ...job.outputs.map((output, index) => /** @type {[string, Node]} */ ([index ? '' : job.outputs.length > 1 ? 'Outputs' : 'Output', outputLine(output)])),
    ];
    $('.about dl', this.element).replaceChildren(...facts.flatMap(([name, value]) => (value === null ? [] : [h('div', {}, h('dt', {}, name), h('dd', {}, value))])));
    this.tick();
  }

  /** @param {Job} job */
  #renderCancel(job) {
    const cancel = this.#around.cancels.of(job);
    const button = $('.danger', this.element);
    const problem = $('.do .problem', this.element);
    attr($('.do', this.element), 'hidden', job.final ? '' : null);
    attr(button, 'aria-disabled', String(cancel?.state === 'asking'));
    text(button, cancel?.state === 'asking' ? 'Asking…' : cancel?.state === 'asked' ? 'Ask again to cancel' : 'Cancel this job');
    text(problem, cancel?.problem ?? '');
    attr(problem, 'hidden', cancel?.problem ? null : '');
  }
}
