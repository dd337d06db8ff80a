/**
 * Messages for errors that the hub returned.
 *
 * Invariant: the hub's own message is kept. Only configuration keys and timestamps in it are replaced.
 *
 * @module
 */

import { HubError } from '../progress-hub.js';
import { countdown, dateAndClock } from './format.js';

const REQUEST_FIELDS = ['prompt', 'negative_prompt', 'image_url', 'duration', 'aspect_ratio', 'resolution', 'model', 'platform', 'provider', 'input', 'metadata'];
/** Configuration keys that start a message, and what they mean to the user. @type {[RegExp, string][]} */
const CONFIG_KEYS = [
  [/^budgets\.per_job: /, 'Budget per job: '],
  [/^budgets\.per_owner_day: /, 'Your daily budget: '],
  [/^providers\.([a-z0-9-]+)\.budget_per_day: /, 'Daily budget for $1: '],
  [/^limits\.submits_per_minute: /, ''],
];
const TIMESTAMP = /\d{4}-\d\d-\d\dT[\d:.]+Z/g;
const UNREACHABLE = "Can't reach the server.";

/** Returns the message for an error of any call. @param {unknown} error */
export function errorText(error) {
  if (!(error instanceof HubError)) return 'Something went wrong. Reload the page and try again.';
  if (error.code === 'unreachable') return `${UNREACHABLE} Try again; the job won't be submitted twice.`;
  if (error.status === 401) return 'You are signed out.';
  if (error.status === 403) return 'This token is read-only.';
  if (error.status >= 500) return "The hub can't process this request right now.";
  const message = CONFIG_KEYS.reduce((result, [key, label]) => result.replace(key, label), error.message).replace(TIMESTAMP, dateAndClock);
  return toSentence(message.charAt(0).toUpperCase() + message.slice(1));
}

/** Returns when to retry, or an empty string if a retry does not help. @param {unknown} error @param {number} [elapsedMs] time since the error */
export function retryText(error, elapsedMs = 0) {
  if (!(error instanceof HubError) || error.code === 'unreachable') return '';
  if (error.retryAfter === null) return error.retryable ? 'Try again in a moment.' : '';
  const ms = error.retryAfter * 1000 - elapsedMs;
  return ms > 0 ? `Try again in ${countdown(ms)}.` : 'You can try again now.';
}

/** Returns why a job was not cancelled. @param {unknown} error */
export function cancelErrorText(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'not_cancellable') return `Not cancelled: ${toSentence(/** @type {HubError} */ (error).message)}`;
  if (code === 'provider_error') return 'The provider did not accept the cancellation. The job continues. Try again in a moment.';
  if (code === 'unreachable') return `${UNREACHABLE} Try again.`;
  return `${errorText(error)} ${retryText(error)}`.trim();
}

/** Returns why a provider was not resumed. @param {unknown} error */
export function resumeErrorText(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'unreachable') return `${UNREACHABLE} Try again.`;
  if (code === 'forbidden') return "This token can't resume providers. Use a token with the scope admin.";
  return `${errorText(error)} ${retryText(error)}`.trim();
}

/** Returns why deliveries were not read, or one was not sent again. @param {unknown} error */
export function deliveryErrorText(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'unreachable') return `${UNREACHABLE} Try again.`;
  if (code === 'forbidden') return 'This token has no right to do that.';
  return `${errorText(error)} ${retryText(error)}`.trim();
}

/** Returns why a destination was not tested or changed. @param {unknown} error */
export function destinationErrorText(error) {
  const code = error instanceof HubError ? error.code : '';
  if (code === 'unreachable') return `${UNREACHABLE} Try again.`;
  if (code === 'forbidden') return "This token can't manage destinations. Use a token with the scope admin.";
  return `${errorText(error)} ${retryText(error)}`.trim();
}

/** Returns the request field that a message is about: the one that starts it, else the first one that it mentions. @param {string} message */
export function fieldNamedIn(message) {
  const first = /^(\w+)\b[^:]*:/.exec(message)?.[1] ?? '';
  return REQUEST_FIELDS.includes(first) ? first : REQUEST_FIELDS.find(name => new RegExp(`\\b${name}\\b`, 'i').test(message));
}

/** Ends a message with a period if it has no final punctuation. @param {string} message */
export function toSentence(message) {
  const trimmed = message.trim();
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}
