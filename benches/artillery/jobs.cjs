// What each virtual user of jobs.yml does: registers a job, watches it, updates it, and sees its end.
//
// Counters and times are Artillery's own (`hub.…` in its report); the checks are on the versions.

'use strict';

const { randomInt } = require('node:crypto');
const { once, EventEmitter } = require('node:events');

const hub = process.env.HUB;

// How long a document may take to arrive, in milliseconds.
const PATIENCE = 10_000;

async function post(path, body) {
  const answer = await fetch(`${hub}${path}`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${process.env.WORKER}`, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

async function register(context, events) {
  // An expression of `ensure` needs each of them to be there.
  for (const name of ['versions_backwards', 'ends_missing', 'updates_failed', 'deliveries']) {
    events.emit('counter', `hub.${name}`, 0);
  }
  const { id } = await post('/v1/jobs', { owner: 'load' });
  Object.assign(context.vars, { job: id, turn: 0 });
}

async function watch(context, events) {
  const { job } = context.vars;
  const ends = new EventEmitter();
  let version = 0;
  context.vars.ended = once(ends, 'end', { signal: AbortSignal.timeout(60_000 + PATIENCE) });
  // Whoever waits for it handles it; until then it must not end the process.
  context.vars.ended.catch(() => {});
  const subscribed = once(ends, 'subscribed', { signal: AbortSignal.timeout(PATIENCE) });
  context.ws.on('message', (data) => {
    const message = JSON.parse(data);
    if (message.type === 'subscribed') ends.emit('subscribed');
    if (message.type !== 'job') return;
    const { job: document } = message;
    if (document.version <= version) events.emit('counter', 'hub.versions_backwards', 1);
    version = document.version;
    // The stage carries when the update was sent.
    const sent = Number(document.stage);
    if (sent > 0 && !document.final) {
      events.emit('counter', 'hub.deliveries', 1);
      events.emit('histogram', 'hub.update_to_socket', performance.now() - sent);
    }
    if (document.final) ends.emit('end');
  });
  context.ws.send(JSON.stringify({ type: 'subscribe', id: randomInt(1e9), jobs: [{ job }] }));
  await subscribed;
}

async function push(context, events, news) {
  const begun = performance.now();
  try {
    await post(`/v1/jobs/${context.vars.job}/updates`, news);
    events.emit('histogram', 'hub.update_to_answer', performance.now() - begun);
  } catch (error) {
    events.emit('counter', 'hub.updates_failed', 1);
    throw error;
  }
}

async function update(context, events) {
  context.vars.turn += 1;
  const progress = 100 * (1 - 1 / (1 + context.vars.turn / 10));
  await push(context, events, { progress, stage: String(performance.now()) });
}

async function end(context, events) {
  await push(context, events, { status: 'succeeded' });
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(new Error('the end never came')), PATIENCE).unref();
  });
  try {
    await Promise.race([context.vars.ended, late]);
  } catch (error) {
    events.emit('counter', 'hub.ends_missing', 1);
    throw error;
  }
}

module.exports = { register, watch, update, end };
