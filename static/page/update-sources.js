/** Who can have told the hub of a version, in words and in a shape of their own, so that colour is never the only word. */

/** @typedef {import('../progress-hub.js').Source} Source */

/** In the order in which they are listed. @type {Source[]} */
export const SOURCES = ['webhook', 'poll', 'submit', 'push', 'api', 'deadline'];

/** @type {Record<Source, string>} */
export const TELLERS = {
  webhook: 'The provider called the hub.',
  poll: 'The provider stayed silent, so the hub asked.',
  submit: "The provider's answer to the order itself.",
  push: 'A worker of yours said so.',
  api: 'You, by placing or cancelling it.',
  deadline: 'Nobody did in time, so the hub ended it.',
};

/** @param {Source} source @param {number} x @param {number} y */
export function shape(source, x, y) {
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
