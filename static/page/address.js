/** URLs of the hub. Relative to this module, so that they keep the path prefix of a proxy. */

/** The hub's URL; ends with a slash. */
export const HUB_URL = new URL('..', import.meta.url);

/** @param {string} path path without a leading slash */
export function hubUrl(path) {
  return new URL(path, HUB_URL);
}
