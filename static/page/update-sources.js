/** Sources of an update. Each has its own shape, so that color is not the only distinction. */

/** @typedef {import('../progress-hub.js').Source} Source */

/** In display order. @type {Source[]} */
export const SOURCES = ['webhook', 'poll', 'submit', 'push', 'api', 'deadline'];

/** @type {Record<Source, string>} */
export const SOURCE_LABELS = {
  webhook: 'Webhook from the provider',
  poll: 'Read from the provider when no webhook arrived',
  submit: "Provider's response to the submission",
  push: 'Reported by your worker',
  api: 'Created or cancelled through the API',
  deadline: 'Timed out',
};

/** Returns the SVG path of a source's shape, centered at `x` and `y`. @param {Source} source @param {number} x @param {number} y */
export function sourceShape(source, x, y) {
  /** @param {number} r */
  const circle = r => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
  switch (source) {
    case 'webhook': return circle(5);
    case 'poll': return `M${x - 4.5},${y - 4.5}h9v9h-9Z`;
    case 'submit': return `M${x},${y - 6}l5.5,10h-11Z`;
    case 'push': return `M${x},${y - 6.5}l6.5,6.5l-6.5,6.5l-6.5,-6.5Z`;
    case 'api': return circle(5) + circle(2);
    case 'deadline': return `M${x - 5},${y - 3}l2,-2l3,3l3,-3l2,2l-3,3l3,3l-2,2l-3,-3l-3,3l-2,-2l3,-3Z`;
  }
}
