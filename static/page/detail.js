/** Details of the open job: its timeline, its versions, how to read it by API, its properties, its deliveries, and the cancel button. */

import { Chart } from './chart.js';
import { Deliveries } from './deliveries.js';
import { $, attr, copyFrom, h, template, text } from './dom.js';
import { clock, dateAndClock, money, span } from './format.js';
import { MAX_ATTEMPTS } from './labels.js';
import { archiveText, outputLinks, validityText } from './outputs.js';
import { TABS, snippet } from './snippets.js';
import { changeText } from './timeline.js';
import { SOURCES, SOURCE_LABELS } from './update-sources.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Delivery} Delivery */
/** @typedef {import('./timeline.js').VersionRecord} VersionRecord */
/** @typedef {import('./snippets.js').Tab} Tab */

/** The destination that receives copies of the outputs. */
const ARCHIVE = 'archive';

export class Detail {
  /** @type {HTMLElement} */ element;
  /** @type {Tab} */ #tab = 'JSON';
  #renderedVersions = 0;
  /** The outputs with the state of their copies, which only responses to HTTP requests have. @type {Job['outputs']} */ #archivedOutputs = [];
  /** The deliveries to the archive when that state was read. */
  #archiveState = '';
  #chart;
  #deliveries;
  #card;
  #context;

  /** @param {{ readonly job: Job }} card @param {import('./card.js').CardContext} context */
  constructor(card, context) {
    this.#card = card;
    this.#context = context;
    this.element = $('section', template('detail-template'));
    this.element.id = `detail-${card.job.id}`;
    attr(this.element, 'aria-label', 'Job details');
    this.#chart = new Chart($('.plot', this.element), version => this.#highlight(version));
    this.#deliveries = new Deliveries(card.job, context.deliveries, deliveries => this.#readArchiveState(deliveries));
    $('.snippets', this.element).before(this.#deliveries.element);
    $('.copy', this.element).addEventListener('click', event => copyFrom(/** @type {HTMLButtonElement} */ (event.currentTarget)));
    $('.danger', this.element).addEventListener('click', () => context.cancels.request(this.#card.job));
    const body = $('tbody', this.element);
    body.addEventListener('pointerover', event => this.#highlight(Number(/** @type {Element} */ (event.target).closest('tr')?.getAttribute('data-version'))));
    body.addEventListener('pointerleave', () => this.#highlight(0));
    this.#createTabs();
  }

  render() {
    const { job } = this.#card;
    const records = this.#context.timeline.get(job.id);
    this.#chart.draw(job, records, this.#context.now());
    this.#renderLegend(job, records);
    this.#renderVersions(job, records);
    this.#renderSnippet();
    this.#renderProperties(job);
    this.#renderCancel(job);
    this.#deliveries.show(job);
  }

  tick() {
    const { job } = this.#card;
    const now = this.#context.now();
    if (!job.final) this.#chart.draw(job, this.#context.timeline.get(job.id), now);
    this.#deliveries.tick();
    this.element.querySelectorAll('.validity').forEach((element, index) => text(element, validityText(job.outputs[index], now)));
  }

  remove() {
    this.#chart.disconnect();
    this.element.remove();
  }

  /** @param {Job} job @param {readonly VersionRecord[]} records */
  #renderLegend(job, records) {
    $('.legend', this.element).replaceChildren(...SOURCES.flatMap(source => {
      const count = records.filter(record => record.by === source).length;
      return count ? [h('li', { title: SOURCE_LABELS[source] }, h('i', { class: 'source-icon', 'data-source': source }), `${source} ${count}`)] : [];
    }));
    text($('.received', this.element), records.length < job.version
      ? `This tab received ${records.length} of ${job.version} versions. The hub sends the latest version and skips superseded ones.`
      : `This tab received all ${job.version} versions.`);
  }

  /** @param {Job} job @param {readonly VersionRecord[]} records */
  #renderVersions(job, records) {
    if (this.#renderedVersions === records.length) return;
    this.#renderedVersions = records.length;
    const rows = [];
    for (let index = records.length - 1; index >= 0; index--) {
      const record = records[index];
      const before = index ? records[index - 1] : null;
      rows.push(h('tr', { 'data-version': String(record.v) },
        h('td', {}, String(record.v)), h('td', {}, span(record.at - Date.parse(job.created_at))), h('td', {}, changeText(record, before)),
        h('td', {}, h('i', { class: 'source-icon', 'data-source': record.by }), record.by)));
      const missing = record.v - (before?.v ?? 0) - 1;
      if (missing > 0) rows.push(h('tr', { class: 'gap' }, h('td', { colspan: '4' }, `${missing} ${missing > 1 ? 'versions' : 'version'} not received`)));
    }
    $('tbody', this.element).replaceChildren(...rows);
  }

  /** @param {number} version 0 for none */
  #highlight(version) {
    for (const row of this.element.querySelectorAll('tbody tr')) row.classList.toggle('highlighted', Number(row.getAttribute('data-version')) === version && version > 0);
    this.#chart.highlight(version);
  }

  #createTabs() {
    const list = $('.tabs', this.element);
    const panel = $('[role="tabpanel"]', this.element);
    panel.id = `snippet-${this.#card.job.id}`;
    for (const tab of TABS) {
      const button = h('button', { type: 'button', role: 'tab', 'aria-controls': panel.id }, tab);
      button.addEventListener('click', () => this.#selectTab(tab));
      list.append(button);
    }
    list.addEventListener('keydown', event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[/** @type {KeyboardEvent} */ (event).key];
      if (!step) return;
      event.preventDefault();
      this.#selectTab(TABS[(TABS.indexOf(this.#tab) + step + TABS.length) % TABS.length]);
      /** @type {HTMLElement} */ ($('[aria-selected="true"]', list)).focus();
    });
    this.#selectTab(this.#tab);
  }

  /** @param {Tab} tab */
  #selectTab(tab) {
    this.#tab = tab;
    for (const button of this.element.querySelectorAll('[role="tab"]')) {
      const isSelected = button.textContent === tab;
      attr(button, 'aria-selected', String(isSelected));
      attr(button, 'tabindex', isSelected ? '0' : '-1');
    }
    attr($('[role="tabpanel"]', this.element), 'aria-label', tab);
    this.#renderSnippet();
  }

  #renderSnippet() {
    text($('.snippets code', this.element), snippet(this.#tab, this.#card.job, this.#context.isDemo()));
  }

  /** @param {Job} job */
  #renderProperties(job) {
    const outputsLabel = job.outputs.length > 1 ? 'Outputs' : 'Output';
    /** @type {[string, Node | string | null][]} */
    const properties = [
      ['Job ID', h('span', { class: 'id' }, job.id)],
      ['Provider task ID', job.provider_task_id ? h('span', { class: 'id' }, job.provider_task_id) : null],
      ['Owner', job.owner],
      ['Created', dateAndClock(job.created_at)],
      ['Attempts', job.provider && job.attempt ? `${job.attempt} of ${MAX_ATTEMPTS}` : null],
      ['Times out', job.final || !job.deadline_at ? null : `at ${clock(job.deadline_at)}`],
      ['Error message', job.error ? `${job.error.message}${job.error.provider_code ? ` (${job.error.provider_code})` : ''}` : null],
      ['Cost', job.cost && money(job.cost)],
      ['Moderation', job.moderation.length ? h('ul', {}, ...job.moderation.map(message => h('li', {}, message))) : null],
      ...job.outputs.map((output, index) => /** @type {[string, Node]} */ ([index ? '' : outputsLabel, outputLinks(output, archiveText(this.#archivedOutputs[index] ?? output))])),
    ];
    $('.properties dl', this.element).replaceChildren(...properties.flatMap(([name, value]) => (value === null ? [] : [h('div', {}, h('dt', {}, name), h('dd', {}, value))])));
    this.tick();
  }

  /** @param {readonly Delivery[]} deliveries */
  async #readArchiveState(deliveries) {
    const copies = deliveries.filter(({ destination }) => destination === ARCHIVE);
    const state = JSON.stringify(copies.map(({ id, state, attempts }) => [id, state, attempts.length]));
    if (!copies.length || state === this.#archiveState) return;
    this.#archiveState = state;
    try {
      const { outputs } = await this.#context.readJob(this.#card.job.id);
      this.#archivedOutputs = outputs;
      this.#renderProperties(this.#card.job);
    } catch {
      // The next change of a delivery reads it again. The deliveries themselves show the state of the copies.
    }
  }

  /** @param {Job} job */
  #renderCancel(job) {
    const cancel = this.#context.cancels.get(job);
    const button = $('.danger', this.element);
    const error = $('.cancel .error', this.element);
    const isOffered = this.#context.cancellable.get(job) || cancel?.state === 'sending';
    attr(button, 'hidden', isOffered ? null : '');
    attr($('.cancel', this.element), 'hidden', isOffered || cancel?.error ? null : '');
    attr(button, 'aria-disabled', String(cancel?.state === 'sending'));
    text(button, cancel?.state === 'sending' ? 'Cancelling…' : cancel?.state === 'requested' ? 'Request cancellation again' : 'Cancel job');
    text(error, cancel?.error ?? '');
    attr(error, 'hidden', cancel?.error ? null : '');
  }
}
