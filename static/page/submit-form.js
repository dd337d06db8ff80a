/** A new job: the order, and what to say when the hub does not take it. */

import { HubError } from '../progress-hub.js';
import { $, attr, text } from './dom.js';
import { PLATFORMS } from './presets.js';
import { fieldIn, problemWords, retryWords } from './error-text.js';
import { offerScenarios } from './scenarios.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('./session.js').Demo} Demo */

const DURATION_SECONDS = 5;
/** The hub keeps at most 2 KiB of metadata. */
const PROMPT_BYTES = 1_200;
/** The next one is offered after each order, so that a list of demo clips can be told apart. */
const PROMPTS = [
  'A paper boat crosses a flooded piazza at dawn, slow dolly, soft fog',
  'A tram climbs a hill through falling blossoms, handheld, late sun',
  'Ink unfolds in a glass of water into a small galaxy, macro, black ground',
  'A lighthouse keeper lights the lamp while a storm draws near, wide shot',
  'Hands knead bread on a floured table, window light, shallow focus',
];

export class OrderForm {
  #form = /** @type {HTMLFormElement} */ ($('#composer'));
  #prompt = /** @type {HTMLTextAreaElement} */ ($('#prompt'));
  #model = /** @type {HTMLInputElement} */ ($('#model'));
  #button = /** @type {HTMLButtonElement} */ ($('#submit'));
  #problem = $('#submit-problem');
  #retry = $('#submit-retry');
  /** The last order was not taken. @type {{ error: unknown, at: number } | null} */ #refusal = null;
  /** @type {Demo | null} */ #demo = null;
  #place;

  /** @param {(order: Record<string, unknown>) => Promise<void>} place throws what the hub answers when it does not take the order */
  constructor(place) {
    this.#place = place;
    this.#form.addEventListener('submit', event => {
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener('keydown', event => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
    this.#form.addEventListener('input', () => this.#say(null));
  }

  /** @param {Demo | null} demo null: the order names its own model */
  prepare(demo) {
    this.#demo = demo;
    attr($('#order'), 'hidden', demo ? '' : null);
    text(this.#button, demo ? 'Render a demo clip' : 'Render a clip');
    text($('#empty-how b'), this.#button.textContent ?? '');
    offerScenarios(demo?.scenarios ?? []);
  }

  /** Every second: counts down to when an order may be taken. */
  tick() {
    const words = this.#refusal ? retryWords(this.#refusal.error, Date.now() - this.#refusal.at) : '';
    text(this.#retry, words);
    attr(this.#retry, 'hidden', words ? null : '');
  }

  /** @param {Job} job whose order is tried once more */
  fill(job) {
    this.#prompt.value = String(job.metadata.prompt);
    for (const [name, value] of Object.entries({ platform: job.metadata.platform, model: job.model, provider: job.provider })) {
      const field = this.#form.elements.namedItem(name);
      if (field instanceof RadioNodeList && PLATFORMS[String(value)]) field.value = String(value);
      else if (field instanceof HTMLInputElement && value) field.value = String(value);
    }
    // What the demo was told to do wrong would only go wrong again.
    /** @type {HTMLInputElement | null} */ ($('#scenarios input'))?.click();
    this.#prompt.focus();
    this.#prompt.scrollIntoView({ block: 'center' });
  }

  /** @param {string} name */
  #value(name) {
    return String(new FormData(this.#form).get(name) ?? '').trim();
  }

  /** @param {string | null} words @param {HTMLElement} [field] @param {unknown} [error] what the hub said */
  #say(words, field, error) {
    this.#refusal = error ? { error, at: Date.now() } : null;
    this.tick();
    text(this.#problem, words ?? '');
    attr(this.#problem, 'hidden', words ? null : '');
    for (const invalid of this.#form.querySelectorAll('[aria-invalid]')) invalid.removeAttribute('aria-invalid');
    if (!field) return;
    attr(field.closest('fieldset') ?? field, 'aria-invalid', 'true');
    field.focus();
  }

  /** @param {string} name */
  #fieldNamed(name) {
    const found = this.#form.elements.namedItem(name);
    const field = found instanceof RadioNodeList ? this.#form.querySelector(`[name="${name}"]:checked`) : found;
    return field instanceof HTMLElement ? field : undefined;
  }

  async #submit() {
    if (this.#button.getAttribute('aria-disabled') === 'true') return;
    const prompt = this.#value('prompt');
    const model = this.#demo?.model ?? this.#value('model');
    if (!prompt) return this.#say('Say what the clip should show.', this.#prompt);
    if (!model) return this.#say('Name the model that should render it.', this.#model);
    const label = this.#button.textContent ?? '';
    this.#say(null);
    attr(this.#button, 'aria-disabled', 'true');
    text(this.#button, 'Placing the order…');
    try {
      await this.#place(this.#order(model, prompt));
      const at = PROMPTS.indexOf(prompt);
      if (at >= 0) this.#prompt.value = PROMPTS[(at + 1) % PROMPTS.length];
    } catch (error) {
      const field = error instanceof HubError && error.status === 400 ? fieldIn(error.message) : undefined;
      this.#say(problemWords(error), field && this.#fieldNamed(field), error);
    }
    attr(this.#button, 'aria-disabled', 'false');
    text(this.#button, label);
  }

  /** @param {string} model @param {string} prompt @returns {Record<string, unknown>} */
  #order(model, prompt) {
    const platform = this.#value('platform');
    const scenario = this.#demo && this.#value('scenario');
    const provider = this.#demo ? '' : this.#value('provider');
    return {
      model, prompt, platform, duration: DURATION_SECONDS,
      ...(provider && { provider }),
      ...(scenario && { input: { scenario } }),
      // The document does not carry the prompt; kept here, every tab can name the job.
      metadata: { prompt: clip(prompt), platform },
    };
  }
}

/** By bytes, since that is how the hub counts. @param {string} prompt */
function clip(prompt) {
  const encoder = new TextEncoder();
  let clipped = prompt;
  while (encoder.encode(clipped).length > PROMPT_BYTES) clipped = `${[...clipped].slice(0, Math.floor(clipped.length * 0.9)).join('').trimEnd()}…`;
  return clipped;
}
