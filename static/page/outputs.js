/** Links to the outputs of a job and how long they are valid, by the hub's clock. */

import { h, safeUrl } from './dom.js';
import { bytes, dateAndClock } from './format.js';

/** @typedef {import('../progress-hub.js').Output} Output */

/** @param {Output} output @param {number} now */
export function isExpired(output, now) {
  return Boolean(output.expires_at) && Date.parse(/** @type {string} */ (output.expires_at)) <= now;
}

/** Returns until when the link is valid, or an empty string if no expiry is known. @param {Output} output @param {number} now */
export function validityText(output, now) {
  if (!output.expires_at) return '';
  const until = dateAndClock(output.expires_at);
  return isExpired(output, now) ? `link expired (${until})` : `link valid until ${until}`;
}

/** Returns whether the archive has a copy and why not, or an empty string if that is unknown. @param {Output} output */
export function archiveText({ archived, archive_error }) {
  if (archived === undefined) return '';
  if (!archived) return archive_error ? `not archived: ${archive_error}` : 'not archived yet';
  const size = archived === true ? undefined : archived.bytes;
  return size === undefined ? 'archived' : `archived, ${bytes(size)}`;
}

/**
 * Creates the links of an output. The caller fills the `.validity` element.
 * @param {Output} output
 * @param {string} archive as {@link archiveText}
 */
export function outputLinks(output, archive) {
  const label = `${output.type}${output.duration ? `, ${Number(output.duration.toFixed(1))}s` : ''}`;
  return h('span', { class: 'output' }, link(output.url, label), ...(output.watermark_url ? [link(output.watermark_url, 'with watermark')] : []),
    ...(output.nsfw ? [h('b', {}, 'not safe for work')] : []), ...(archive ? [h('span', { class: 'archived' }, archive)] : []), h('span', { class: 'validity' }));
}

/** @param {string} address @param {string} label */
function link(address, label) {
  const url = safeUrl(address);
  return url ? h('a', { href: url, target: '_blank', rel: 'noopener noreferrer' }, label) : h('span', {}, label);
}
