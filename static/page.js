/**
 * Entry point of the page. Creates the components and connects them.
 *
 * Invariant: the page shows only job documents that the hub sent, and versions that this tab received.
 *
 * @module
 */

import { Cancellable } from './page/cancellable.js';
import { connectionText, showConnection, showHubInfo } from './page/connection.js';
import { Destinations } from './page/destinations.js';
import { $ } from './page/dom.js';
import { isPendingSubmission, jobErrorText, jobStatus, jobTitle } from './page/labels.js';
import { JobList } from './page/list.js';
import { LiveRegion } from './page/live-region.js';
import { OlderJobs } from './page/older-jobs.js';
import { PendingCancels } from './page/pending-cancels.js';
import { Providers } from './page/providers.js';
import { SelectedJob } from './page/selected-job.js';
import { Session } from './page/session.js';
import { SignIn } from './page/signin.js';
import { SubmitForm } from './page/submit-form.js';
import { Timeline } from './page/timeline.js';
import { HubError } from './progress-hub.js';

/** @typedef {import('./progress-hub.js').Job} Job */
/** @typedef {import('./progress-hub.js').State} State */

/** How long to wait for the first job after connecting before the page shows that there are none. */
const EMPTY_STATE_DELAY_MS = 400;
const TICK_INTERVAL_MS = 1_000;
const MAX_ANNOUNCED_TITLE_LENGTH = 60;

/** Error kinds of a job that suspend its provider. */
const SUSPENDING_ERRORS = new Set(['quota', 'auth']);

const session = new Session({
  onStarted(demo) {
    form.prepare(demo);
    showHubInfo();
  },
  onSignedIn(owner, isOtherOwner) {
    if (isOtherOwner) {
      list.clear();
      older.clear();
    }
    cancellable.clear();
    providers.clear();
    destinations.clear();
    list.setLoaded(false);
    signIn.showSignedIn(owner, !session.demo);
    openLinkedJob();
  },
  onSignedOut() {
    list.clear();
    older.clear();
  },
  onState,
  onJob: job => list.show(job),
});

const cancels = new PendingCancels(async job => list.show(await hub().cancel(job.id)), id => list.refresh(id));

const cancellable = new Cancellable(id => hub().cancellable(id), id => list.refresh(id));

/** @type {OlderJobs} */
const older = new OlderJobs(query => hub().jobs(query), {
  onJob: job => list.show(job),
  onState: state => list.setOlder(state),
});

/** @type {JobList} */
const list = new JobList({
  timeline: new Timeline(),
  now: () => session.now(),
  isDemo: () => session.demo !== null,
  toggle: card => selectedJob.toggle(card),
  editAndResubmit: job => form.fill(job),
  cancels,
  cancellable,
  deliveries: {
    read: (job, limit) => (session.isReachable && session.permissions.mayRead(job) ? hub().deliveries({ job: job.id, limit }) : null),
    redeliver: id => hub().redeliver(id),
    mayRedeliver: job => session.permissions.mayWrite(job),
    now: () => session.now(),
  },
  readJob: id => hub().job(id),
  stateOf: job => ({ limitedProvider: isPendingSubmission(job) ? providers.limited(job.provider) : null, isCancelling: cancels.isPending(job) }),
}, {
  onCard: card => selectedJob.onCard(card),
  onMore: () => older.more(),
  onChange(job, before) {
    if (before.status === job.status && before.error?.kind === job.error?.kind) return;
    if (SUSPENDING_ERRORS.has(job.error?.kind ?? '')) providers.refresh();
    liveRegion.announce(job.id, `${jobTitle(job).slice(0, MAX_ANNOUNCED_TITLE_LENGTH)}: ${jobStatus(job).label}. ${job.error ? jobErrorText(job, session.now()) : ''}`);
  },
});

const form = new SubmitForm(async request => {
  const job = await hub().submit(request);
  list.show(job);
  list.reveal(job.id);
});

/** @type {Providers} */
const providers = new Providers({
  read: () => (session.state.name === 'live' ? hub().providers() : null),
  resume: name => hub().resume(name),
  now: () => session.now(),
  hasPendingJobs: () => list.hasPendingJobs,
  onChange: () => list.refreshPending(),
  announce: (name, message) => liveRegion.announce(`provider ${name}`, message),
});

const destinations = new Destinations({
  read: () => (session.isReachable && session.permissions.isAdmin ? hub().destinations() : null),
  test: name => hub().testDestination(name),
  enable: name => hub().enableDestination(name),
  disable: name => hub().disableDestination(name),
  now: () => session.now(),
  announce: (name, message) => liveRegion.announce(`destination ${name}`, message),
});

const selectedJob = new SelectedJob();
const signIn = new SignIn(session);
const liveRegion = new LiveRegion($('#live-region'));

/** @param {State} state @param {State} before */
function onState(state, before) {
  showConnection(state, session.hub !== null);
  if (state.name === 'signed_out') {
    providers.clear();
    destinations.clear();
    return signIn.showForm(state.reason);
  }
  // Without live updates, the jobs can still be read.
  if (state.reason === 'refused' && before.reason !== 'refused') readJobs();
  if (state.name === before.name) return;
  if (state.name === 'live') {
    showHubInfo();
    providers.tick();
    destinations.tick();
    readJobs();
  }
  if (before.name === 'live') liveRegion.announce('connection', `Connection: ${connectionText(state)}.`);
  else if (state.name === 'live' && before.name !== 'connecting') liveRegion.announce('connection', 'Connected again.');
}

function readJobs() {
  older.reload();
  setTimeout(() => list.setLoaded(true), EMPTY_STATE_DELAY_MS);
}

function openLinkedJob() {
  selectedJob.openFromAddress(session.hub, list, () => liveRegion.announce('address', 'Job not found.'));
}

function hub() {
  if (!session.hub) throw new HubError('signed_out', 'not signed in', { status: 401 });
  return session.hub;
}

addEventListener('hashchange', openLinkedJob);
$('#notice button').addEventListener('click', () => session.hub?.reconnect());
setInterval(() => {
  showConnection(session.state, session.hub !== null);
  providers.tick();
  destinations.tick();
  list.tick();
  form.tick();
}, TICK_INTERVAL_MS);
session.start();
