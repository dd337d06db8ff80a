/** How a provider is, in words for people: what keeps it, and when it goes on. */

import { left, seconds } from './format.js';

/** @typedef {import('../progress-hub.js').Provider} Provider */

/** @type {Record<string, string>} */
const REASONS = {
  rate_limit: 'too many requests',
  quota: 'the account has no credit left',
  auth: "it refuses the hub's key",
};
const NEXT = { open: '', paused: 'goes on', stopped: 'next try', failing: 'trying again' };

/** @param {Provider} provider @param {number} now */
export function standingWords(provider, now) {
  return sentenceOf(stateWords(provider), REASONS[provider.reason ?? ''], nextWords(provider, now));
}

/** Right after somebody said that it is mended. @param {Provider} provider */
export function resumedWords(provider) {
  return `${stateWords(provider)}: what waits for it is sent, one job at first`;
}

/** Without what changes every second: to be said aloud once. @param {Provider} provider */
export function spokenStanding(provider) {
  return sentenceOf(stateWords(provider), REASONS[provider.reason ?? '']);
}

/** What a job waits for. @param {Provider} provider @param {number} now */
export function waitWords(provider, now) {
  const why = REASONS[provider.reason ?? ''] ?? `it is ${provider.state}`;
  return sentenceOf(`waits for ${provider.title}`, why, nextWords(provider, now));
}

/** @param {Provider} provider */
function stateWords({ title, state }) {
  return state === 'open' ? `${title} is open again` : `${title} is ${state}`;
}

/** @param {Provider} provider @param {number} now */
function nextWords({ state, until }, now) {
  if (!until || !NEXT[state]) return '';
  const ms = Date.parse(until) - now;
  return `${NEXT[state]} ${seconds(ms) ? `in ${left(ms)}` : 'now'}`;
}

/** @param {string} what @param {(string | undefined)[]} more */
function sentenceOf(what, ...more) {
  const rest = more.filter(Boolean).join('; ');
  return rest ? `${what}: ${rest}` : what;
}
