/** The form that submits a job, including validation and the errors that the hub returns. */

import { HubError } from '../progress-hub.js';
import { $, attr, text } from './dom.js';
import { errorText, fieldNamedIn, retryText } from './error-text.js';
import { PLATFORMS } from './presets.js';
import { renderScenarios } from './scenarios.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('./session.js').Demo} Demo */

const CLIP_DURATION_SECONDS = 5;
/** Leaves room for the other fields, since the hub accepts at most 2 KiB of metadata. */
const MAX_METADATA_PROMPT_BYTES = 1_200;
/** The form offers the next of these after each submission, so that demo jobs have different titles. */
const SAMPLE_PROMPTS = [
  'A paper boat crosses a flooded piazza at dawn, slow dolly, soft fog',
  'A tram climbs a hill through falling blossoms, handheld, late sun',
  'Ink unfolds in a glass of water into a small galaxy, macro, black ground',
  'A lighthouse keeper lights the lamp while a storm draws near, wide shot',
  'Hands knead bread on a floured table, window light, shallow focus',
];

export class SubmitForm {
  #form = /** @type {HTMLFormElement} */ ($('#submit-form'));
  #prompt = /** @type {HTMLTextAreaElement} */ ($('#prompt'));
  #model = /** @type {HTMLInputElement} */ ($('#model'));
  #button = /** @type {HTMLButtonElement} */ ($('#submit'));
  #error = $('#submit-error');
  #retry = $('#submit-retry');
  /** Error of the last submission and when it arrived, in milliseconds. @type {{ error: unknown, at: number } | null} */ #lastError = null;
  /** @type {Demo | null} */ #demo = null;
  #send;

  /** @param {(request: Record<string, unknown>) => Promise<void>} send submits a request; rejects with the hub's error */
  constructor(send) {
    this.#send = send;
    this.#form.addEventListener('submit', event => {
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener('keydown', event => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
    this.#form.addEventListener('input', () => this.#showError(null));
  }

  /** Adapts the form to the demo, which sets the model and offers scenarios. @param {Demo | null} demo null on a configured hub */
  prepare(demo) {
    this.#demo = demo;
    attr($('#model-fields'), 'hidden', demo ? '' : null);
    text(this.#button, demo ? 'Render a demo clip' : 'Render a clip');
    text($('#empty-hint b'), this.#button.textContent ?? '');
    renderScenarios(demo?.scenarios ?? []);
  }

  /** Updates the countdown to the next permitted submission. */
  tick() {
    const message = this.#lastError ? retryText(this.#lastError.error, Date.now() - this.#lastError.at) : '';
    text(this.#retry, message);
    attr(this.#retry, 'hidden', message ? null : '');
  }

  /** Copies the request of a job into the form. @param {Job} job */
  fill(job) {
    this.#prompt.value = String(job.metadata.prompt);
    for (const [name, value] of Object.entries({ platform: job.metadata.platform, model: job.model, provider: job.provider })) {
      const field = this.#form.elements.namedItem(name);
      if (field instanceof RadioNodeList && PLATFORMS[String(value)]) field.value = String(value);
      else if (field instanceof HTMLInputElement && value) field.value = String(value);
    }
    // Selects the success scenario, since the scenario that failed would fail again.
    /** @type {HTMLInputElement | null} */ ($('#scenarios input'))?.click();
    this.#prompt.focus();
    this.#prompt.scrollIntoView({ block: 'center' });
  }

  /** @param {string} name */
  #value(name) {
    return String(new FormData(this.#form).get(name) ?? '').trim();
  }

  /** @param {string | null} message null clears the error @param {HTMLElement} [field] the invalid field @param {unknown} [error] the hub's error */
  #showError(message, field, error) {
    this.#lastError = error ? { error, at: Date.now() } : null;
    this.tick();
    text(this.#error, message ?? '');
    attr(this.#error, 'hidden', message ? null : '');
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
    if (!prompt) return this.#showError('Enter a prompt.', this.#prompt);
    if (!model) return this.#showError('Enter a model.', this.#model);
    const label = this.#button.textContent ?? '';
    this.#showError(null);
    attr(this.#button, 'aria-disabled', 'true');
    text(this.#button, 'Submitting…');
    try {
      await this.#send(this.#request(model, prompt));
      const index = SAMPLE_PROMPTS.indexOf(prompt);
      if (index >= 0) this.#prompt.value = SAMPLE_PROMPTS[(index + 1) % SAMPLE_PROMPTS.length];
    } catch (error) {
      const fieldName = error instanceof HubError && error.status === 400 ? fieldNamedIn(error.message) : undefined;
      this.#showError(errorText(error), fieldName ? this.#fieldNamed(fieldName) : undefined, error);
    }
    attr(this.#button, 'aria-disabled', 'false');
    text(this.#button, label);
  }

  /** @param {string} model @param {string} prompt @returns {Record<string, unknown>} */
  #request(model, prompt) {
    const platform = this.#value('platform');
    const scenario = this.#demo && this.#value('scenario');
    const provider = this.#demo ? '' : this.#value('provider');
    return {
      model, prompt, platform, duration: CLIP_DURATION_SECONDS,
      ...(provider && { provider }),
      ...(scenario && { input: { scenario } }),
      // The document has no prompt. Metadata carries it, so that every tab can show it as the title.
      metadata: { prompt: truncate(prompt), platform },
    };
  }
}

/** Shortens the prompt to the limit in bytes, which is how the hub counts metadata. @param {string} prompt */
function truncate(prompt) {
  const encoder = new TextEncoder();
  let result = prompt;
  while (encoder.encode(result).length > MAX_METADATA_PROMPT_BYTES) result = `${[...result].slice(0, Math.floor(result.length * 0.9)).join('').trimEnd()}…`;
  return result;
}
