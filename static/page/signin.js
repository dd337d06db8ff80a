/** Signing in and out, and the name of whoever is here. */

import { $, attr, copyFrom, text } from './dom.js';

/** @typedef {{ signIn(token: string): void, signOut(): void }} Door */

/** @type {Record<string, string>} */
const REASONS = {
  token_expired: 'Your token has expired. Paste a fresh one to go on; what you see is the last known.',
  unauthorized: 'The hub did not accept this token. Paste another one.',
};
const FIRST_TIME = 'This hub shows jobs to whoever owns them. Paste a token to see yours.';

export class SignIn {
  #token = /** @type {HTMLInputElement} */ ($('#token'));

  /** @param {Door} door */
  constructor(door) {
    $('#sign-out').addEventListener('click', () => door.signOut());
    $('#signin').addEventListener('submit', event => {
      event.preventDefault();
      this.#submit(door);
    });
    $('.how .copy').addEventListener('click', event => copyFrom(/** @type {HTMLButtonElement} */ (event.currentTarget)));
  }

  /** @param {string} owner @param {boolean} canLeave */
  welcome(owner, canLeave) {
    document.body.dataset.view = 'work';
    text($('#who dd'), owner);
    attr($('#who'), 'hidden', owner ? null : '');
    attr($('#sign-out'), 'hidden', canLeave ? null : '');
  }

  /** @param {string | null} reason */
  ask(reason) {
    document.body.dataset.view = 'out';
    attr($('#who'), 'hidden', '');
    attr($('#sign-out'), 'hidden', '');
    text($('#signin-why'), REASONS[reason ?? ''] ?? FIRST_TIME);
    this.#token.focus();
  }

  /** @param {Door} door */
  #submit(door) {
    const token = this.#token.value.trim().replace(/^Bearer\s+/i, '');
    const problem = !token ? 'Paste a token first.' : token.split('.').length !== 3 ? 'That does not look like a token: it has three parts with dots between them.' : null;
    text($('#signin-problem'), problem ?? '');
    attr($('#signin-problem'), 'hidden', problem ? null : '');
    attr(this.#token, 'aria-invalid', problem ? 'true' : null);
    if (problem) return this.#token.focus();
    this.#token.value = '';
    door.signIn(token);
  }
}
