/** What the demo's provider can be made to do, grouped so that a newcomer finds a story instead of a list. */

import { $, attr, h, text } from './dom.js';

/** @typedef {import('./session.js').Scenario} Scenario */

/** @type {[string, string[]][]} */
const GROUPS = [
  ['Without a hitch', ['normal', 'slow']],
  ['Webhooks go astray', ['lost-webhooks', 'late-webhooks', 'duplicate-webhooks', 'reordered-webhooks', 'webhook-before-answer', 'unsigned', 'forged']],
  ['The provider stumbles', ['rate-limited', 'concurrency-limited', 'server-errors', 'lost-answer', 'lost-answer-silent']],
  ['It ends badly', ['safety', 'safety-at-end', 'fails-at-end', 'thin-success', 'expired-result', 'quota', 'bad-key', 'silence']],
];
const OTHERS = 'Others';

/** Offers them in the form. @param {Scenario[]} scenarios */
export function offerScenarios(scenarios) {
  const details = /** @type {HTMLDetailsElement} */ ($('#scenarios'));
  attr(details, 'hidden', scenarios.length ? null : '');
  if (!scenarios.length) return;
  details.open = matchMedia('(min-width: 60rem) and (min-height: 48rem)').matches;
  const options = $('fieldset', details);
  for (const [title, members] of grouped(scenarios)) options.append(h('p', {}, title), ...members.map(option));
  const showChosen = () => {
    const chosen = /** @type {HTMLInputElement | null} */ (details.querySelector('input:checked'));
    text($('#scenario-now'), scenarios.find(one => one.name === chosen?.value)?.title ?? '');
  };
  details.addEventListener('change', event => {
    showChosen();
    // Choosing one unfolds what to expect of it.
    if (details.open) /** @type {Element} */ (event.target).closest('label')?.scrollIntoView({ block: 'nearest' });
  });
  /** @type {HTMLInputElement} */ ($('input', details)).checked = true;
  showChosen();
}

/** @param {Scenario[]} scenarios @returns {[string, Scenario[]][]} none is left out, even one that no group knows */
function grouped(scenarios) {
  const known = new Set(GROUPS.flatMap(([, names]) => names));
  /** @type {[string, Scenario[]][]} */
  const groups = GROUPS.map(([title, names]) => [title, names.flatMap(name => scenarios.filter(one => one.name === name))]);
  groups.push([OTHERS, scenarios.filter(one => !known.has(one.name))]);
  return groups.filter(([, members]) => members.length);
}

/** @param {Scenario} scenario */
function option({ name, title, expect }) {
  return h('label', {}, h('input', { type: 'radio', name: 'scenario', value: name }), title, h('small', {}, expect));
}
