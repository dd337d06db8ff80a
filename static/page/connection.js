/** Connection state, the outage notice, and the facts about the hub in the header. */

import { hubUrl } from './address.js';
import { $, attr, text } from './dom.js';
import { clock, seconds } from './format.js';

/** @typedef {import('../progress-hub.js').State} State */

/** A shorter interruption shows no notice. */
const UNREACHABLE_NOTICE_DELAY_MS = 4_000;
/** Notice while HTTP requests succeed and the WebSocket handshake fails. */
const REFUSED = "Live updates are refused. Check the proxy's WebSocket upgrade and Host header, and server.public_url.";

/** @param {State} state */
export function connectionText({ name, attempt, retryAt, since }) {
  switch (name) {
    case 'connecting': return 'Connecting…';
    case 'live': return 'Live';
    case 'reconnecting': {
      const left = retryAt === null ? 0 : seconds(retryAt - Date.now());
      return `Reconnecting ${left ? `in ${left}s` : 'now'} (attempt ${attempt})`;
    }
    case 'degraded': return `Storage unavailable since ${clock(since)}`;
    case 'signed_out': return 'Signed out';
    case 'closed': return 'Disconnected';
  }
}

/** @param {State} state @param {boolean} canReconnect whether to offer the button that reconnects at once */
export function showConnection(state, canReconnect) {
  const label = connectionText(state);
  const { name, since, reason } = state;
  const isUnreachable = name === 'reconnecting' && Date.now() - since > UNREACHABLE_NOTICE_DELAY_MS;
  const notice = isUnreachable
    ? `${reason === 'refused' ? REFUSED : "Can't reach the server."} Showing data as of ${clock(since)}; reconnecting…`
    : name === 'degraded' ? `Storage unavailable. Showing data as of ${clock(since)}. Nothing is lost, but new jobs can't be submitted until storage recovers.`
      : name === 'closed' && canReconnect ? 'The server closed this connection. Reload the page.' : '';
  document.body.dataset.state = name;
  text($('#connection span'), label);
  attr($('#connection'), 'title', label);
  text($('#notice p'), notice);
  attr($('#notice'), 'hidden', notice ? null : '');
  attr($('#notice button'), 'hidden', isUnreachable && canReconnect ? null : '');
}

export async function showHubInfo() {
  try {
    const health = await (await fetch(hubUrl('v1/health'), { cache: 'no-store' })).json();
    text($('#store'), String(health.store ?? '–'));
    text($('#version'), String(health.version ?? '–'));
    attr($('#hub-info'), 'hidden', null);
  } catch {
    // The connection state already shows that the hub is unreachable.
  }
}
