/** The sign-in form, the sign-out button, and the signed-in user in the header. */

import { $, attr, copyFrom, text } from './dom.js';

/** @typedef {{ signIn(token: string): void, signOut(): void }} Authenticator */

/** By reason of the state `signed_out`. @type {Record<string, string>} */
const MESSAGES = {
  token_expired: 'Your token has expired. Paste a new one to continue. The data on this page may be out of date.',
  unauthorized: 'The hub rejected this token. It may have expired, or another hub issued it. Paste a different one.',
};
const DEFAULT_MESSAGE = 'You see the jobs that your token gives access to. Paste a token to continue.';

export class SignIn {
  #token = /** @type {HTMLInputElement} */ ($('#token'));

  /** @param {Authenticator} authenticator */
  constructor(authenticator) {
    $('#sign-out').addEventListener('click', () => authenticator.signOut());
    $('#signin-form').addEventListener('submit', event => {
      event.preventDefault();
      this.#submit(authenticator);
    });
    $('.token-help .copy').addEventListener('click', event => copyFrom(/** @type {HTMLButtonElement} */ (event.currentTarget)));
  }

  /** @param {string} owner @param {boolean} canSignOut */
  showSignedIn(owner, canSignOut) {
    document.body.dataset.view = 'app';
    text($('#user dd'), owner);
    attr($('#user'), 'hidden', owner ? null : '');
    attr($('#sign-out'), 'hidden', canSignOut ? null : '');
  }

  /** @param {string | null} reason */
  showForm(reason) {
    document.body.dataset.view = 'signed-out';
    attr($('#user'), 'hidden', '');
    attr($('#sign-out'), 'hidden', '');
    text($('#signin-message'), MESSAGES[reason ?? ''] ?? DEFAULT_MESSAGE);
    this.#token.focus();
  }

  /** @param {Authenticator} authenticator */
  #submit(authenticator) {
    const token = this.#token.value.trim().replace(/^Bearer\s+/i, '');
    const error = !token ? 'Enter a token.' : token.split('.').length !== 3 ? 'Not a valid token. A JWT has three parts separated by dots.' : null;
    text($('#signin-error'), error ?? '');
    attr($('#signin-error'), 'hidden', error ? null : '');
    attr(this.#token, 'aria-invalid', error ? 'true' : null);
    if (error) return this.#token.focus();
    this.#token.value = '';
    authenticator.signIn(token);
  }
}
