/** Descriptions of a provider's state: what limits it, and when the hub sends the next request. */

import { countdown, seconds } from './format.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */

/** @type {Record<Provider['state'], string>} */
const STATE_LABELS = {
  available: 'is available again',
  rate_limited: 'is rate limited',
  unavailable: 'is unavailable',
  suspended: 'is suspended',
};
/** Reasons that the state does not already imply. @type {Record<string, string>} */
const REASON_LABELS = {
  quota: 'the account is out of credit',
  auth: "it rejected the hub's API key",
};
/** What happens at `until`. @type {Record<Provider['state'], string>} */
const NEXT_LABELS = { available: '', rate_limited: 'Resumes', unavailable: 'Retrying', suspended: 'Next attempt' };

/** Returns the state with a countdown to the next request. @param {Provider} provider @param {number} now */
export function providerStatusText(provider, now) {
  return [providerStatusAria(provider), nextText(provider, now)].filter(Boolean).join(' ');
}

/** Returns the state without the countdown, since a screen reader announces it once. @param {Provider} provider */
export function providerStatusAria({ title, state, reason }) {
  const reasonLabel = REASON_LABELS[reason ?? ''];
  return `${title} ${STATE_LABELS[state]}${reasonLabel ? `: ${reasonLabel}` : ''}.`;
}

/** @param {Provider} provider */
export function resumedText({ title }) {
  return `${title} is back. Resuming queued jobs.`;
}

/** @param {Provider} provider @param {number} now */
function nextText({ state, until }, now) {
  if (!until || !NEXT_LABELS[state]) return '';
  const ms = Date.parse(until) - now;
  return `${NEXT_LABELS[state]} ${seconds(ms) ? `in ${countdown(ms)}` : 'now'}.`;
}
