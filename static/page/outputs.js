/** What a job made, a line for each output. Invariant: how long a link works is what its document says, by the hub's clock. */

import { h, safeUrl } from './dom.js';
import { dateAndClock } from './format.js';

/** @typedef {import('../progress-hub.js').Output} Output */

/** @param {Output} output @param {number} now */
export function isOver(output, now) {
  return Boolean(output.expires_at) && Date.parse(/** @type {string} */ (output.expires_at)) <= now;
}

/** @param {Output} output @param {number} now */
export function validityWords(output, now) {
  if (!output.expires_at) return '';
  const until = dateAndClock(output.expires_at);
  return isOver(output, now) ? `its link has ended (${until})` : `link works until ${until}`;
}

/** The links of an output; `.until` is for its validity. @param {Output} output */
export function outputLine(output) {
  const label = `${output.type}${output.duration ? `, ${output.duration} s` : ''}`;
  return h('span', { class: 'output' }, linkTo(output.url, label), ...(output.watermark_url ? [linkTo(output.watermark_url, 'with watermark')] : []),
    ...(output.nsfw ? [h('b', {}, 'not safe for work')] : []), h('span', { class: 'until' }));
}

/** @param {string} address @param {string} label */
function linkTo(address, label) {
  const url = safeUrl(address);
  return url ? h('a', { href: url, target: '_blank', rel: 'noopener noreferrer' }, label) : h('span', {}, label);
}
