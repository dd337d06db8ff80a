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
/** The state in a summary, as `2 active`. @type {[Destination['state'], string][]} */
const SUMMARY_LABELS = [['disabled', 'disabled'], ['paused', 'paused'], ['unconfigured', 'not configured'], ['active', 'active']];

/** Returns the kind and the address. @param {Destination} destination */
export function destinationKindText({ kind, address }) {
  return [KIND_LABELS[kind ?? ''] ?? kind, address].filter(Boolean).join(' · ');
}

/** Returns the state with its reason, without the countdown, since a screen reader announces it once. @param {Destination} destination */
export function destinationStateText({ state, disabled }) {
  switch (state) {
    case 'active': return 'Active';
    case 'paused': return 'Paused';
    case 'disabled': return disabled ? `Disabled since ${dateAndClock(disabled.at)}: ${DISABLED_REASONS[disabled.reason] ?? disabled.reason}` : 'Disabled';
    case 'unconfigured': return 'Not configured: its deliveries are held';
  }
}

/** Returns what happens next, or an empty string. @param {Destination} destination @param {number} now */
export function destinationNextText({ state, paused_until, disabled }, now) {
  if (state === 'paused') {
    const ms = paused_until ? Date.parse(paused_until) - now : 0;
    return seconds(ms) ? `next attempt in ${countdown(ms)}` : 'one attempt at a time until one succeeds';
  }
  return state === 'disabled' && disabled?.recheck_at ? `next attempt at ${dateAndClock(disabled.recheck_at)}` : '';
}

/** Returns what waits, and how the last attempts ended. @param {Destination} destination @param {number} now */
export function destinationFactsText({ waiting, last_success_at, last_error }, now) {
  return [
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

/** Returns how many destinations are in each state, those that need attention first. @param {readonly Destination[]} destinations */
export function destinationsSummary(destinations) {
  return SUMMARY_LABELS.flatMap(([state, label]) => {
    const count = destinations.filter(destination => destination.state === state).length;
    return count ? [`${count} ${label}`] : [];
  }).join(', ');
}
