/**
 * The page: shows what the hub says, in words for people. This file names the parts and ties them together.
 *
 * Invariant: whatever the page shows of a job is a document of the hub, or a version that this browser itself has seen.
 *
 * @module
 */

import { Cancels } from './page/pending-cancels.js';
import { connectionWords, showConnection, showFacts } from './page/connection.js';
import { $ } from './page/dom.js';
import { OrderForm } from './page/submit-form.js';
import { JobList } from './page/list.js';
import { News } from './page/live-region.js';
import { Opened } from './page/selected-job.js';
import { Providers } from './page/providers.js';
import { Session } from './page/session.js';
import { SignIn } from './page/signin.js';
import { Timeline } from './page/timeline.js';
import { isWaiting, statusOf, titleOf, wordsFor } from './page/labels.js';
import { HubError } from './progress-hub.js';

/** @typedef {import('./progress-hub.js').Job} Job */
/** @typedef {import('./progress-hub.js').State} State */

/** How long the hub may take to send the first job, before the page says that there is none. */
const SETTLED_AFTER_MS = 400;

/** What a job fails with when its provider stops. */
const STOPPING = new Set(['quota', 'auth']);

const session = new Session({
  onKnown(demo) {
    form.prepare(demo);
    showFacts();
  },
  onEntered(owner, isAnother) {
    if (isAnother) list.forget();
    providers.forget();
    list.settle(false);
    signIn.welcome(owner, !session.demo);
    followAddress();
  },
  onLeft: () => list.forget(),
  onState,
  onJob: job => list.show(job),
});

const cancels = new Cancels(async job => list.show(await hub().cancel(job.id)), id => list.refresh(id));

/** @type {JobList} */
const list = new JobList({
  timeline: new Timeline(),
  now: () => session.now(),
  isDemo: () => session.demo !== null,
  toggle: card => opened.toggle(card),
  orderAgain: job => form.fill(job),
  cancels,
  beside: job => ({ standing: isWaiting(job) ? providers.unwell(job.provider) : null, isCancelling: cancels.isUnderWay(job) }),
}, {
  onCard: card => opened.onCard(card),
  onChange(job, before) {
    if (before.status === job.status && before.error?.kind === job.error?.kind) return;
    if (STOPPING.has(job.error?.kind ?? '')) providers.askNow();
    news.say(job.id, `${titleOf(job).slice(0, 60)}: ${statusOf(job).word}. ${job.error ? wordsFor(job, session.now()) : ''}`);
  },
});

const form = new OrderForm(async order => {
  const job = await hub().submit(order);
  list.show(job);
  list.reveal(job.id);
});

/** @type {Providers} */
const providers = new Providers({
  read: () => (session.state.name === 'live' ? hub().providers() : null),
  resume: name => hub().resume(name),
  now: () => session.now(),
  isAwaited: () => list.isWaiting,
  onChange: () => list.refreshWaiting(),
  say: (name, words) => news.say(`provider ${name}`, words),
});

const opened = new Opened();
const signIn = new SignIn(session);
const news = new News($('#say'));

/** @param {State} state @param {State} before */
function onState(state, before) {
  showConnection(state, session.hub !== null);
  if (state.name === 'signed_out') {
    providers.forget();
    return signIn.ask(state.reason);
  }
  if (state.name === before.name) return;
  if (state.name === 'live') {
    showFacts();
    providers.tick();
    setTimeout(() => list.settle(true), SETTLED_AFTER_MS);
  }
  if (before.name === 'live') news.say('connection', `Connection: ${connectionWords(state)}.`);
  else if (state.name === 'live' && before.name !== 'connecting') news.say('connection', 'Live again.');
}

function followAddress() {
  opened.followAddress(session.hub, list, () => news.say('address', 'There is no such job to be seen.'));
}

function hub() {
  if (!session.hub) throw new HubError('signed_out', 'nobody is signed in', { status: 401 });
  return session.hub;
}

addEventListener('hashchange', followAddress);
$('#notice button').addEventListener('click', () => session.hub?.reconnect());
setInterval(() => {
  showConnection(session.state, session.hub !== null);
  providers.tick();
  list.tick();
  form.tick();
}, 1_000);
session.start();
