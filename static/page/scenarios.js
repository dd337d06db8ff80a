/** Scenarios of the demo's simulated provider, in groups. */

import { $, attr, h, text } from './dom.js';

/** @typedef {import('./session.js').Scenario} Scenario */

/** Group titles and the scenarios in each. @type {[string, string[]][]} */
const GROUPS = [
  ['Success', ['normal', 'slow']],
  ['Webhook failures', ['lost-webhooks', 'late-webhooks', 'duplicate-webhooks', 'reordered-webhooks', 'webhook-before-answer', 'unsigned', 'forged']],
  ['Provider errors', ['rate-limited', 'concurrency-limited', 'server-errors', 'lost-answer', 'lost-answer-silent']],
  ['Job failures', ['safety', 'safety-at-end', 'fails-at-end', 'thin-success', 'expired-result', 'quota', 'bad-key', 'silence']],
];
const OTHER_GROUP = 'Other';

/** Adds the scenarios to the form. Hides the section if there are none. @param {Scenario[]} scenarios */
export function renderScenarios(scenarios) {
  const details = /** @type {HTMLDetailsElement} */ ($('#scenarios'));
  attr(details, 'hidden', scenarios.length ? null : '');
  if (!scenarios.length) return;
  details.open = matchMedia('(min-width: 60rem) and (min-height: 48rem)').matches;
  const fieldset = $('fieldset', details);
  for (const [title, members] of grouped(scenarios)) fieldset.append(h('p', {}, title), ...members.map(option));
  const showSelected = () => {
    const selected = /** @type {HTMLInputElement | null} */ (details.querySelector('input:checked'));
    text($('#selected-scenario'), scenarios.find(scenario => scenario.name === selected?.value)?.title ?? '');
  };
  details.addEventListener('change', event => {
    showSelected();
    // Selecting an option expands its description, which may then be out of sight.
    if (details.open) /** @type {Element} */ (event.target).closest('label')?.scrollIntoView({ block: 'nearest' });
  });
  /** @type {HTMLInputElement} */ ($('input', details)).checked = true;
  showSelected();
}

/** Groups the scenarios. Those that no group lists are in the last group. @param {Scenario[]} scenarios @returns {[string, Scenario[]][]} */
function grouped(scenarios) {
  const listed = new Set(GROUPS.flatMap(([, names]) => names));
  /** @type {[string, Scenario[]][]} */
  const groups = GROUPS.map(([title, names]) => [title, names.flatMap(name => scenarios.filter(scenario => scenario.name === name))]);
  groups.push([OTHER_GROUP, scenarios.filter(scenario => !listed.has(scenario.name))]);
  return groups.filter(([, members]) => members.length);
}

/** @param {Scenario} scenario */
function option({ name, title, expect }) {
  return h('label', {}, h('input', { type: 'radio', name: 'scenario', value: name }), title, h('small', {}, expect));
}
