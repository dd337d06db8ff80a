/** Words for a destination: what it is, whether it accepts deliveries, and the result of a test. */

import { ago, countdown, dateAndClock, seconds, span } from './format.js';

/** @typedef {import('../progress-hub.js').Destination} Destination */

/** @type {Record<string, string>} */
const KIND_LABELS = { webhook: 'Webhook', host: 'Webhooks of submissions', email: 'Email', archive: 'Archive' };
/** @type {Record<string, string>} */
const DISABLED_REASONS = {
  gone: 'the endpoint responded that it no longer exists',
  failing: 'no attempt succeeded for too long',
  manual: 'by an administrator',
};
/** In the order of a summary: those that need attention first. @type {Record<Destination['state'], string>} */
const STATE_LABELS = { disabled: 'Disabled', paused: 'Paused', unconfigured: 'Not configured', active: 'Active' };

/** Returns the kind and the address. @param {Destination} destination */
export function destinationKindText({ kind, address }) {
  return [KIND_LABELS[kind ?? ''] ?? kind, address].filter(Boolean).join(' · ');
}

/** @param {Destination} destination */
export function destinationStateText({ state }) {
  return STATE_LABELS[state];
}

/** Returns since when and why a destination is disabled, or an empty string. @param {Destination} destination */
export function destinationReasonText({ state, disabled }) {
  if (state === 'unconfigured') return 'its deliveries are held';
  return disabled ? `since ${dateAndClock(disabled.at)}: ${DISABLED_REASONS[disabled.reason] ?? disabled.reason}` : '';
}

/** Returns when the next attempt is made, or an empty string if nothing delays it. @param {Destination} destination @param {number} now */
function destinationNextText({ state, paused_until, disabled }, now) {
  if (state === 'paused') {
    const ms = paused_until ? Date.parse(paused_until) - now : 0;
    return seconds(ms) ? `next attempt in ${countdown(ms)}` : 'one attempt at a time until one succeeds';
  }
  return disabled?.recheck_at ? `next attempt at ${dateAndClock(disabled.recheck_at)}` : '';
}

/** Returns what follows the state: its reason, what waits, and how the last attempts ended. @param {Destination} destination @param {number} now */
export function destinationNote(destination, now) {
  const { waiting, last_success_at, last_error } = destination;
  return [
    destinationReasonText(destination),
    destinationNextText(destination, now),
    `${waiting} waiting`,
    last_success_at ? `last success ${ago(now - Date.parse(last_success_at))}` : 'no success yet',
    last_error ? `last error: ${last_error}` : '',
  ].filter(Boolean).join(' · ');
}

/** @param {import('../progress-hub.js').TestResult} result */
export function testResultText({ delivered, status, duration_ms, error }) {
  const details = [status === null ? '' : `status ${status}`, span(duration_ms)].filter(Boolean).join(', ');
  if (delivered) return `Test delivered (${details}).`;
  return `Test failed: ${error ?? 'not accepted'} (${error?.includes(String(status)) ? span(duration_ms) : details}).`;
}

/** Returns how many destinations are in each state, as `1 paused, 2 active`. @param {readonly Destination[]} destinations */
export function destinationsSummary(destinations) {
  return Object.entries(STATE_LABELS).flatMap(([state, label]) => {
    const count = destinations.filter(destination => destination.state === state).length;
    return count ? [`${count} ${label.toLowerCase()}`] : [];
  }).join(', ');
}
