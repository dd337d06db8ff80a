/** Words for a delivery: its event, its state, and each of its attempts. */

import { countdown, dateAndClock, dateAndSeconds, seconds, span } from './format.js';

/** @typedef {import('../progress-hub.js').Delivery} Delivery */
/** @typedef {import('../progress-hub.js').DeliveryAttempt} DeliveryAttempt */

/** @type {Record<string, string>} */
const EVENT_LABELS = {
  'job.created': 'Created',
  'job.updated': 'Updated',
  'job.succeeded': 'Succeeded',
  'job.failed': 'Failed',
  'job.cancelled': 'Cancelled',
};
/** @type {Record<Delivery['state'], string>} */
const STATE_LABELS = { waiting: 'Waiting', held: 'Held', delivered: 'Delivered', failed: 'Failed' };

/** An attempt that is overdue by more than this waits for its destination. */
const OVERDUE_AFTER_MS = 10_000;

/** Returns what is sent: `Succeeded`, `Updated to version 3`, or `Copy of output 1`. @param {Delivery} delivery */
export function eventText({ event, version }) {
  const output = /^output\.(\d+)$/.exec(event);
  if (output) return `Copy of output ${Number(output[1]) + 1}`;
  return event === 'job.updated' ? `${EVENT_LABELS[event]} to version ${version}` : EVENT_LABELS[event] ?? event;
}

/** @param {Delivery} delivery */
export function deliveryStateText({ state }) {
  return STATE_LABELS[state];
}

/** Returns what follows the state: when it ended, or what it waits for. @param {Delivery} delivery @param {number} now */
export function deliveryNote({ state, next_attempt_at, ended_at, address }, now) {
  switch (state) {
    case 'waiting': {
      const ms = next_attempt_at ? Date.parse(next_attempt_at) - now : 0;
      if (ms < -OVERDUE_AFTER_MS) return 'the destination is paused or busy';
      return seconds(ms) ? `next attempt in ${countdown(ms)}` : 'next attempt now';
    }
    case 'held': return address === null ? 'the destination is no longer configured' : 'the destination is disabled';
    case 'delivered':
    case 'failed': return ended_at ? dateAndClock(ended_at) : '';
  }
}

/** Returns the result of the last attempt, or an empty string if there was none. @param {Delivery} delivery */
export function lastResultText({ attempts }) {
  const last = attempts.at(-1);
  return last ? attemptResultText(last) : '';
}

/** Returns whether the delivery waits for an attempt, and the last one did not decide its state. @param {Delivery} delivery */
export function isPending({ state }) {
  return state === 'waiting' || state === 'held';
}

/** @param {DeliveryAttempt} attempt */
export function attemptResultText({ status, error }) {
  const statusText = status === null ? '' : `status ${status}`;
  if (error === null) return statusText || 'accepted';
  return !statusText || error.includes(String(status)) ? error : `${statusText}: ${error}`;
}

/** Returns the number of attempts. The hub keeps only the last ones, and some do not use up the schedule. @param {Delivery} delivery */
export function attemptCountText({ attempts, attempt_count }) {
  const count = Math.max(attempts.length, attempt_count);
  return `${count} ${count === 1 ? 'attempt' : 'attempts'}`;
}

/** Returns when an attempt was made and how long it took. @param {DeliveryAttempt} attempt */
export function attemptTimeText({ at, duration_ms }) {
  return `${dateAndSeconds(at)}, ${duration_ms < 1_000 ? `${duration_ms} ms` : span(duration_ms)}`;
}
