/** Why the hub did not do what it was asked, in words for people. Invariant: what the hub said is kept; only settings and times are put in plain words. */

import { HubError } from '../progress-hub.js';
import { dateAndClock, left } from './format.js';

const FIELDS = ['prompt', 'negative_prompt', 'image_url', 'duration', 'aspect_ratio', 'resolution', 'model', 'platform', 'provider', 'input', 'metadata'];
/** What the settings that a refusal begins with are to whoever placed the order. @type {[RegExp, string][]} */
const SETTINGS = [
  [/^budgets\.per_job: /, 'More than one job may cost: '],
  [/^budgets\.per_owner_day: /, 'Your budget for today: '],
  [/^providers\.([a-z0-9-]+)\.budget_per_day: /, 'The budget for $1 today: '],
  [/^limits\.submits_per_minute: /, ''],
];
const TIME = /\d{4}-\d\d-\d\dT[\d:.]+Z/g;

/** @param {unknown} error */
export function problemWords(error) {
  if (!(error instanceof HubError)) return 'That did not work.';
  if (error.code === 'unreachable') return 'The hub does not answer. Nothing was placed twice; try again.';
  if (error.status === 401) return 'You are signed out.';
  if (error.status === 403) return 'This token may look, but not place or cancel orders.';
  if (error.status >= 500) return 'The hub cannot do that right now.';
  const words = SETTINGS.reduce((message, [setting, plain]) => message.replace(setting, plain), error.message).replace(TIME, dateAndClock);
  return sentence(words.charAt(0).toUpperCase() + words.slice(1));
}

/** When it is worth another try. @param {unknown} error @param {number} [passed] milliseconds since it came */
export function retryWords(error, passed = 0) {
  if (!(error instanceof HubError) || error.code === 'unreachable') return '';
  if (error.retryAfter === null) return error.retryable ? 'Try again in a moment.' : '';
  const ms = error.retryAfter * 1000 - passed;
  return ms > 0 ? `Try again in ${left(ms)}.` : 'You can try again now.';
}

/** Why a job was not cancelled. @param {unknown} error */
export function cancelProblemWords(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'not_cancellable') return `Not cancelled: ${sentence(/** @type {HubError} */ (error).message)}`;
  if (code === 'provider_error') return 'The provider did not agree to cancel it, so it goes on. Try again in a moment.';
  if (code === 'unreachable') return 'The hub does not answer. Try again.';
  return `${problemWords(error)} ${retryWords(error)}`.trim();
}

/** Why a provider was not tried again. @param {unknown} error */
export function resumeProblemWords(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'unreachable') return 'The hub does not answer. Try again.';
  if (code === 'forbidden') return 'This token may not do that.';
  return `${problemWords(error)} ${retryWords(error)}`.trim();
}

/** The field of the order that a message is about: the one that it begins with, or the first that it speaks of. @param {string} message */
export function fieldIn(message) {
  const first = /^(\w+)\b[^:]*:/.exec(message)?.[1] ?? '';
  return FIELDS.includes(first) ? first : FIELDS.find(name => new RegExp(`\\b${name}\\b`, 'i').test(message));
}

/** @param {string} message */
export function sentence(message) {
  const trimmed = message.trim();
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}
