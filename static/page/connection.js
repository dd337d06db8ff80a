/** The pill, the notice and the facts about the hub. Invariant: the pill tells what the connection is now, never what it was meant to be. */

import { $, attr, text } from './dom.js';
import { clock, seconds } from './format.js';

/** @typedef {import('../progress-hub.js').State} State */

/** A hub gone for longer than this is worth a sentence. */
const GONE_AFTER_MS = 4_000;

/** @param {State} state */
export function connectionWords({ name, attempt, retryAt, since }) {
  switch (name) {
    case 'connecting': return 'connecting…';
    case 'live': return 'live';
    case 'reconnecting': {
      const left = retryAt === null ? 0 : seconds(retryAt - Date.now());
      return `reconnecting ${left ? `in ${left} s` : 'now'} (attempt ${attempt})`;
    }
    case 'degraded': return `store away since ${clock(since)}, showing the last known`;
    case 'signed_out': return 'signed out';
    case 'closed': return 'closed';
  }
}

/** @param {State} state @param {boolean} canRetry a person may hurry the next try */
export function showConnection(state, canRetry) {
  const words = connectionWords(state);
  const { name, since } = state;
  const gone = name === 'reconnecting' && Date.now() - since > GONE_AFTER_MS;
  const notice = gone
    ? `The hub has not answered since ${clock(since)}. This is the last known; news comes by itself once it is back.`
    : name === 'degraded' ? 'The store is away. This is the last known; nothing is lost, and new orders have to wait.'
      : name === 'closed' && canRetry ? 'The hub closed this connection. Load the page again.' : '';
  document.body.dataset.state = name;
  text($('#pill span'), words);
  attr($('#pill'), 'title', words);
  text($('#notice p'), notice);
  attr($('#notice'), 'hidden', notice ? null : '');
  attr($('#notice button'), 'hidden', gone && canRetry ? null : '');
}

export async function showFacts() {
  try {
    const health = await (await fetch('/v1/health', { cache: 'no-store' })).json();
    text($('#store'), String(health.store ?? '–'));
    text($('#version'), String(health.version ?? '–'));
    attr($('#facts'), 'hidden', null);
  } catch {
    // The pill already says that the hub is away.
  }
}
