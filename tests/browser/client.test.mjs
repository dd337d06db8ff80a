/** The browser client, tested against a fake socket with mocked timers. */

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { HubError, ProgressHub } from '../../static/progress-hub.js';
import { FakeSocket, job, jwt } from './fake_socket.mjs';

const HUB_URL = 'https://hub.test/';
/** Waits until all pending promise callbacks have run. */
const flushTasks = () => new Promise(resolve => setImmediate(resolve));
let hubs = [];

beforeEach(() => {
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.UTC(2026, 10, 23, 10) });
  mock.method(Math, 'random', () => 1);
  FakeSocket.all = [];
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  globalThis.fetch = () => Promise.reject(new TypeError('no network in tests'));
});

afterEach(() => {
  for (const hub of hubs) hub.close();
  hubs = [];
  mock.timers.reset();
  mock.restoreAll();
  delete globalThis.document;
});

function createHub(token = 'a.b.c') {
  const hub = new ProgressHub({ url: HUB_URL, token, WebSocket: FakeSocket });
  hubs.push(hub);
  return hub;
}

/** Returns a token function that counts its calls. `expiresIn`: lifetime of each token in milliseconds. */
function countingTokens(expiresIn = 900_000) {
  const getToken = () => {
    getToken.calls += 1;
    return jwt(expiresIn, { n: getToken.calls });
  };
  getToken.calls = 0;
  return getToken;
}

async function advance(ms) {
  mock.timers.tick(ms);
  await flushTasks();
}

/** Advances in steps, because all timers of one step see the clock at its end. */
async function advanceInSteps(ms) {
  for (let passed = 0; passed < ms; passed += 500) await advance(500);
}

/** Suspends the tab: the clock advances, but timers do not fire. */
function suspend(ms) {
  mock.timers.setTime(Date.now() + ms);
}

/** Accepts the newest socket and waits until the client is live. */
async function accept(hub, options) {
  await flushTasks();
  FakeSocket.last.accept(options);
  await flushTasks();
  assert.equal(hub.state.name, 'live');
  return FakeSocket.last;
}

test('first watch connects with the token as a subprotocol', async () => {
  const hub = createHub();
  await flushTasks();
  assert.equal(FakeSocket.all.length, 0);
  assert.equal(hub.state.name, 'closed');
  hub.watch('job_a', () => {});
  assert.equal(hub.state.name, 'connecting');
  await flushTasks();
  assert.equal(FakeSocket.last.url, 'wss://hub.test/v1/ws');
  assert.deepEqual(FakeSocket.last.protocols, ['progress-hub.v1', 'bearer.a.b.c']);
});

test('token that is no valid subprotocol is sent in an auth frame', async () => {
  const hub = createHub('with/slash=');
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  assert.deepEqual(socket.protocols, ['progress-hub.v1']);
  assert.deepEqual(socket.sent[0], { type: 'auth', token: 'with/slash=' });
});

test('watchers of one job share a subscription and a late watcher gets the newest version', async () => {
  const hub = createHub();
  const first = [];
  const late = [];
  hub.watch('job_a', seen => first.push(seen.version));
  hub.watch('job_a', seen => first.push(seen.version));
  const socket = await accept(hub);
  assert.deepEqual(socket.sentOf('subscribe').map(frame => frame.jobs), [[{ job: 'job_a' }]]);
  socket.sendToClient({ type: 'job', job: job('job_a', 4) });
  hub.watch('job_a', seen => late.push(seen.version));
  await flushTasks();
  assert.deepEqual([first, late], [[4, 4], [4]]);
  assert.equal(socket.sentOf('subscribe').length, 1);
});

test('stopping the last watcher unsubscribes', async () => {
  const hub = createHub();
  const stops = [hub.watch('job_a', () => {}), hub.watch('job_a', () => {})];
  const socket = await accept(hub);
  stops[0]();
  await flushTasks();
  assert.equal(socket.sentOf('unsubscribe').length, 0);
  stops[1]();
  await flushTasks();
  assert.deepEqual(socket.sentOf('unsubscribe').map(frame => frame.jobs), [['job_a']]);
});

test('versions are ascending and unique across reconnects', async () => {
  const hub = createHub();
  const seen = [];
  hub.watch('job_a', shown => seen.push(shown.version));
  let socket = await accept(hub);
  for (const version of [3, 3, 2, 5, 4]) socket.sendToClient({ type: 'job', job: job('job_a', version) });
  socket.closeByServer(1006);
  await advance(30_000);
  await flushTasks();
  socket = await accept(hub);
  for (const version of [5, 1, 6]) socket.sendToClient({ type: 'job', job: job('job_a', version) });
  assert.deepEqual(seen, [3, 5, 6]);
});

test('reconnect sends the known versions of jobs and feed', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  hub.watch('job_done', () => {});
  hub.watchMine(() => {});
  let socket = await accept(hub);
  socket.sendToClient({ type: 'job', job: job('job_a', 7) });
  socket.sendToClient({ type: 'job', job: job('job_done', 9, { status: 'succeeded' }) });
  socket.sendToClient({ type: 'job', job: job('job_mine', 2) });
  socket.closeByServer(1006);
  await advance(30_000);
  await flushTasks();
  socket = await accept(hub);
  const [feed, jobs] = socket.sentOf('subscribe');
  assert.equal(feed.feed, 'mine');
  assert.deepEqual(new Map(feed.jobs.map(entry => [entry.job, entry.version])).get('job_mine'), 2);
  assert.deepEqual(jobs.jobs, [{ job: 'job_a', version: 7 }], 'a final job is not subscribed again');
});

test('watchMine reports jobs of the feed only', async () => {
  const hub = createHub(jwt(900_000));
  const mine = [];
  hub.watchMine(shown => mine.push(`${shown.id}:${shown.version}`));
  hub.watch('job_other', () => {});
  const socket = await accept(hub);
  socket.sendToClient({ type: 'job', job: job('job_other', 1, { owner: 'bob' }) });
  socket.sendToClient({ type: 'job', job: job('job_mine', 1) });
  assert.deepEqual(mine, ['job_mine:1']);
  hub.watchMine(shown => mine.push(`late ${shown.id}:${shown.version}`));
  await flushTasks();
  assert.deepEqual(mine, ['job_mine:1', 'late job_mine:1']);
});

test('watched job joins the feed when the hub lists it there', async () => {
  const hub = createHub('opaque');
  const mine = [];
  hub.watch('job_a', () => {});
  hub.watchMine(shown => mine.push(shown.id));
  const socket = await accept(hub);
  socket.sendToClient({ type: 'job', job: job('job_a', 1) });
  assert.deepEqual(mine, []);
  const feed = socket.sentOf('subscribe').find(frame => frame.feed);
  socket.sendToClient({ type: 'subscribed', id: feed.id, feed: 'mine', jobs: { job_a: 'sent' } });
  assert.deepEqual(mine, ['job_a']);
});

test('300 jobs are subscribed in two frames and jobs above the limit wait', async () => {
  const hub = createHub();
  const ids = Array.from({ length: 300 }, (_, n) => `job_${n}`);
  for (const id of ids) hub.watch(id, () => {});
  const socket = await accept(hub);
  const subscribedJobs = () => socket.sentOf('subscribe').flatMap(frame => frame.jobs.map(entry => entry.job));
  assert.equal(socket.sentOf('subscribe').length, 2);
  assert.deepEqual(subscribedJobs(), ids.slice(0, 256));
  socket.sendToClient({ type: 'job', job: job('job_0', 3, { status: 'failed' }) });
  socket.sendToClient({ type: 'job', job: job('job_1', 3, { status: 'succeeded' }) });
  await flushTasks();
  assert.deepEqual(socket.sentOf('unsubscribe').map(frame => frame.jobs), [['job_0', 'job_1']]);
  assert.deepEqual(subscribedJobs().slice(256), ['job_256', 'job_257']);
});

test('too_many lowers the subscription limit', async () => {
  const hub = createHub();
  const errors = [];
  for (const id of ['job_a', 'job_b', 'job_c']) hub.watch(id, () => {}, error => errors.push(error));
  const socket = await accept(hub);
  socket.sendToClient({ type: 'subscribed', id: socket.sentOf('subscribe')[0].id, jobs: { job_a: 'sent', job_b: 'sent', job_c: 'too_many' } });
  await flushTasks();
  assert.equal(socket.sentOf('subscribe').length, 1);
  socket.sendToClient({ type: 'job', job: job('job_a', 1, { status: 'cancelled' }) });
  await flushTasks();
  assert.deepEqual(socket.sentOf('subscribe')[1].jobs, [{ job: 'job_c' }]);
  assert.deepEqual(errors, []);
});

test('not_found is reported only to the watchers of that job', async () => {
  const hub = createHub();
  const errors = [];
  hub.watch('job_a', () => {}, error => errors.push(['a', error.code]));
  hub.watch('job_gone', () => {}, error => errors.push(['gone', error.code]));
  const rejected = assert.rejects(hub.finished('job_gone'), { code: 'not_found' });
  const socket = await accept(hub);
  socket.sendToClient({ type: 'subscribed', id: socket.sentOf('subscribe')[0].id, jobs: { job_a: 'sent', job_gone: 'not_found' } });
  await rejected;
  assert.deepEqual(errors, [['gone', 'not_found']]);
  socket.closeByServer(1006);
  await advance(30_000);
  await flushTasks();
  const again = await accept(hub);
  assert.deepEqual(again.sentOf('subscribe')[0].jobs.map(entry => entry.job), ['job_a'], 'a missing job is not subscribed again');
});

test('finished resolves with the final document of a failed job', async () => {
  const hub = createHub();
  const finished = hub.finished('job_a');
  const socket = await accept(hub);
  socket.sendToClient({ type: 'job', job: job('job_a', 3) });
  socket.sendToClient({ type: 'job', job: job('job_a', 8, { status: 'failed' }) });
  assert.equal((await finished).version, 8);
});

test('listener that throws does not affect other listeners', async () => {
  const hub = createHub();
  const seen = [];
  const thrown = [];
  const queue = queueMicrotask;
  mock.method(globalThis, 'queueMicrotask', task => queue(() => {
    try {
      task();
    } catch (error) {
      thrown.push(error.message);
    }
  }));
  hub.watch('job_a', () => {
    throw new Error('listener error');
  });
  hub.watch('job_a', shown => seen.push(shown.version));
  const socket = await accept(hub);
  socket.sendToClient({ type: 'job', job: job('job_a', 1) });
  await flushTasks();
  assert.deepEqual([seen, thrown], [[1], ['listener error']]);
});

test('backoff doubles up to 30 s with full jitter', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const waits = [];
  for (let attempt = 1; attempt <= 9; attempt++) {
    await flushTasks();
    FakeSocket.last.closeByServer(1006);
    await flushTasks();
    assert.equal(hub.state.attempt, attempt);
    waits.push(hub.state.retryAt - Date.now());
    await advance(waits.at(-1));
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  mock.method(Math, 'random', () => 0.25);
  FakeSocket.last.closeByServer(1006);
  await flushTasks();
  assert.equal(hub.state.retryAt - Date.now(), 7_500);
});

test('only a stable connection resets the backoff', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  await flushTasks();
  for (const expected of [1, 2, 3]) {
    FakeSocket.last.accept();
    FakeSocket.last.closeByServer(1006);
    await flushTasks();
    assert.equal(hub.state.attempt, expected);
    await advance(30_000);
  }
  FakeSocket.last.accept();
  await advance(10_000);
  FakeSocket.last.closeByServer(1006);
  assert.equal(hub.state.attempt, 1);
});

test('bye sets the time of the reconnect and a wake-up does not change it', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  socket.sendToClient({ type: 'bye', code: 1012, reason: 'restart', retry_after_ms: 1_730 });
  assert.deepEqual([hub.state.name, hub.state.retryAt - Date.now(), hub.state.reason], ['reconnecting', 1_730, 'restart']);
  assert.ok(socket.isClosedByClient);
  document.dispatchEvent(new Event('visibilitychange'));
  await advance(1_729);
  assert.equal(FakeSocket.all.length, 1);
  await advance(1);
  assert.equal(FakeSocket.all.length, 2);
});

test('reconnect() connects at once', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  (await accept(hub)).sendToClient({ type: 'bye', code: 1012, reason: 'restart', retry_after_ms: 60_000 });
  hub.reconnect();
  await flushTasks();
  assert.equal(FakeSocket.all.length, 2);
});

test('tab wake-up reconnects without waiting for the backoff', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  (await accept(hub)).closeByServer(1006);
  document.dispatchEvent(new Event('visibilitychange'));
  await flushTasks();
  assert.equal(FakeSocket.all.length, 2);
});

for (const code of [4001, 4002, 4003]) {
  test(`${code} calls the token function once more, then signs out`, async () => {
    const token = countingTokens();
    const hub = createHub(token);
    const finished = assert.rejects(hub.finished('job_a'), { code: 'signed_out' });
    await flushTasks();
    assert.equal(token.calls, 1);
    FakeSocket.last.closeByServer(code);
    await advance(0);
    assert.equal(token.calls, 2);
    assert.notEqual(FakeSocket.all[0].protocols[1], FakeSocket.all[1].protocols[1]);
    FakeSocket.last.closeByServer(code);
    await advance(60_000);
    assert.equal(hub.state.name, 'signed_out');
    assert.equal(FakeSocket.all.length, 2);
    await finished;
  });

  test(`${code} with a fixed token signs out`, async () => {
    const hub = createHub();
    hub.watch('job_a', () => {});
    (await accept(hub)).closeByServer(code);
    await advance(60_000);
    assert.equal(hub.state.name, 'signed_out');
    assert.equal(FakeSocket.all.length, 1);
  });
}

test('close code 4008 closes the client for good', async () => {
  const hub = createHub();
  const errors = [];
  hub.watch('job_a', () => {}, error => errors.push(error.code));
  (await accept(hub)).closeByServer(4008, 'too_many_bad_messages');
  await advance(60_000);
  assert.deepEqual([hub.state.name, hub.state.reason, errors], ['closed', 'too_many_bad_messages', ['closed']]);
  assert.equal(FakeSocket.all.length, 1);
});

test('4100 backs off, 4200 reconnects at once but only the first time', async () => {
  const full = createHub();
  full.watch('job_a', () => {});
  (await accept(full)).closeByServer(4100, 'over_capacity');
  assert.equal(full.state.retryAt - Date.now(), 500);
  full.close();
  const moved = createHub();
  moved.watch('job_a', () => {});
  (await accept(moved)).closeByServer(4200, 'moved');
  assert.equal(moved.state.retryAt - Date.now(), 0);
  await advance(0);
  (await accept(moved)).closeByServer(4200, 'moved');
  assert.equal(moved.state.retryAt - Date.now(), 1_000);
});

test('failed handshake is probed over HTTP and a 401 signs out', async () => {
  const token = countingTokens();
  const requests = [];
  globalThis.fetch = (url, { headers }) => {
    requests.push([url.href, headers.Authorization.slice(0, 7)]);
    return Promise.resolve(new Response('{}', { status: 401 }));
  };
  const hub = createHub(token);
  hub.watch('job_a', () => {});
  await flushTasks();
  FakeSocket.last.closeByServer(1006);
  await flushTasks();
  await advance(0);
  assert.equal(token.calls, 2);
  FakeSocket.last.closeByServer(1006);
  await flushTasks();
  assert.deepEqual([hub.state.name, hub.state.reason], ['signed_out', 'unauthorized']);
  assert.deepEqual(requests, Array(2).fill(['https://hub.test/v1/jobs?limit=1', 'Bearer ']));
});

test('hub that hides its responses from this origin is distinguished from one that is down', async () => {
  const warnings = [];
  mock.method(console, 'warn', text => warnings.push(text));
  let isUp = true;
  globalThis.fetch = (url, { method, headers }) => {
    // A browser hides responses without CORS headers. Only the client's file has them for every origin.
    const isReadable = isUp && url.pathname === '/progress-hub.js' && method === 'HEAD' && !headers;
    return isReadable ? Promise.resolve(new Response(null, { status: 200 })) : Promise.reject(new TypeError('Failed to fetch'));
  };
  const hub = createHub();
  hub.watch('job_a', () => {});
  for (const reason of ['origin_refused', 'origin_refused', 'unreachable']) {
    isUp = reason !== 'unreachable';
    await flushTasks();
    FakeSocket.last.closeByServer(1006);
    await flushTasks();
    assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', reason]);
    await advance(30_000);
  }
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /server\.allowed_origins/);
});

test('failing token function is retried and a null token signs out', async () => {
  let getToken = () => Promise.reject(new Error('token endpoint unavailable'));
  const hub = createHub(() => getToken());
  hub.watch('job_a', () => {});
  await flushTasks();
  assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', 'token_unavailable']);
  getToken = () => null;
  await advance(500);
  assert.equal(hub.state.name, 'signed_out');
});

test('token is renewed when a fifth of its lifetime is left, after each hello', async () => {
  const token = countingTokens(100_000);
  const hub = createHub(token);
  hub.watch('job_a', () => {});
  const socket = await accept(hub, { expires_in: 100_000 });
  await advance(79_000);
  assert.equal(socket.sentOf('auth').length, 0);
  await advance(1_000);
  assert.equal(socket.sentOf('auth').length, 1);
  socket.sendHello({ expires_in: 100_000 });
  await advance(79_000);
  assert.equal(socket.sentOf('auth').length, 1);
  await advance(1_000);
  assert.equal(socket.sentOf('auth').length, 2);
  assert.equal(FakeSocket.all.length, 1);
});

test('token_expiring renews the token and a failed renewal is retried', async () => {
  let fails = false;
  const hub = createHub(() => (fails ? Promise.reject(new Error('token endpoint unavailable')) : jwt(900_000)));
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  fails = true;
  socket.sendToClient({ type: 'token_expiring', in_ms: 30_000 });
  await flushTasks();
  assert.equal(socket.sentOf('auth').length, 0);
  fails = false;
  await advance(5_000);
  assert.equal(socket.sentOf('auth').length, 1);
});

test('suspended tab renews its token and checks its socket on wake-up', async () => {
  const hub = createHub(countingTokens());
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  suspend(850_000);
  document.dispatchEvent(new Event('visibilitychange'));
  await flushTasks();
  assert.equal(socket.sentOf('auth').length, 1);
  assert.equal(socket.sentOf('ping').length, 1);
  await advance(5_000);
  assert.equal(hub.state.name, 'reconnecting');
  assert.ok(socket.isClosedByClient);
});

test('socket that responds after a suspension is kept', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  suspend(40_000);
  await advance(1);
  assert.equal(socket.sentOf('ping').length, 1, 'a late timer detects the suspension');
  socket.sendToClient({ type: 'pong', id: socket.sentOf('ping')[0].id });
  await advance(6_000);
  assert.equal(hub.state.name, 'live');
});

test('missing heartbeat is followed by a ping, and no answer ends the connection', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const socket = await accept(hub, { heartbeat_ms: 25_000 });
  for (let n = 0; n < 5; n++) {
    await advanceInSteps(25_000);
    socket.sendToClient({ type: 'heartbeat', now: new Date().toISOString() });
  }
  assert.deepEqual([hub.state.name, socket.sentOf('ping').length], ['live', 0]);
  await advanceInSteps(26_000);
  assert.deepEqual([hub.state.name, socket.sentOf('ping').length], ['live', 1]);
  await advanceInSteps(5_000);
  assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', 'silent']);
});

test('answered ping keeps a socket whose heartbeats are late', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const socket = await accept(hub, { heartbeat_ms: 25_000 });
  for (let n = 1; n <= 3; n++) {
    await advanceInSteps(26_000);
    assert.equal(socket.sentOf('ping').length, n);
    socket.sendToClient({ type: 'pong', id: socket.sentOf('ping').at(-1).id });
  }
  await advanceInSteps(5_000);
  assert.equal(hub.state.name, 'live');
});

test('socket is checked at once when the browser goes offline', async () => {
  const events = new EventTarget();
  globalThis.addEventListener = events.addEventListener.bind(events);
  globalThis.removeEventListener = events.removeEventListener.bind(events);
  try {
    const hub = createHub();
    hub.watch('job_a', () => {});
    const socket = await accept(hub);
    events.dispatchEvent(new Event('offline'));
    assert.equal(socket.sentOf('ping').length, 1);
    await advance(5_000);
    assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', 'silent']);
    hub.close();
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});

test('socket without hello is closed after a timeout', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  await flushTasks();
  await advance(15_000);
  await flushTasks();
  assert.equal(hub.state.name, 'reconnecting');
  assert.ok(FakeSocket.all[0].isClosedByClient);
});

test('degraded state reports its start by the local clock', async () => {
  const hub = createHub();
  const states = [];
  hub.on('state', state => states.push(state.name));
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  socket.sendToClient({ type: 'heartbeat', now: new Date(Date.now() + 60_000).toISOString() });
  assert.equal(hub.now() - Date.now(), 60_000);
  socket.sendToClient({ type: 'degraded', since: new Date(Date.now() + 60_000 - 5_000).toISOString() });
  assert.equal(hub.state.since, Date.now() - 5_000);
  socket.sendToClient({ type: 'restored' });
  assert.deepEqual(states, ['connecting', 'live', 'degraded', 'live']);
});

test('subscribe that failed temporarily is retried', async () => {
  const hub = createHub();
  hub.watch('job_a', () => {});
  const socket = await accept(hub);
  socket.sendToClient({ type: 'error', id: socket.sentOf('subscribe')[0].id, code: 'store_unavailable', message: 'store unavailable' });
  await advance(3_000);
  assert.equal(socket.sentOf('subscribe').length, 2);
  assert.deepEqual(socket.sentOf('subscribe')[1].jobs, [{ job: 'job_a' }]);
});

test('idle socket is closed and the next watch opens a new one', async () => {
  const hub = createHub();
  const stop = hub.watch('job_a', () => {});
  const socket = await accept(hub);
  stop();
  await advance(29_000);
  assert.equal(hub.state.name, 'live');
  await advance(1_000);
  assert.deepEqual([hub.state.name, hub.state.reason, socket.isClosedByClient], ['closed', 'idle', true]);
  hub.watch('job_b', () => {});
  assert.deepEqual((await accept(hub)).sentOf('subscribe')[0].jobs, [{ job: 'job_b' }]);
});

test('close rejects pending promises', async () => {
  const hub = createHub();
  const finished = assert.rejects(hub.finished('job_a'), { code: 'closed' });
  const socket = await accept(hub);
  hub.close();
  await finished;
  await advance(60_000);
  assert.deepEqual([hub.state.name, socket.isClosedByClient, FakeSocket.all.length], ['closed', true, 1]);
});

test('submit sends token and idempotency key and reports the job to watchers', async () => {
  let request;
  globalThis.fetch = (url, init) => {
    request = { url: url.href, ...init };
    return Promise.resolve(Response.json(job('job_new', 1, { status: 'accepted' }), { status: 202 }));
  };
  const hub = createHub();
  const mine = [];
  hub.watchMine(shown => mine.push(shown.id));
  await accept(hub);
  const submitted = await hub.submit({ model: 'm', prompt: 'p' }, { idempotencyKey: 'k1' });
  assert.equal(submitted.id, 'job_new');
  assert.deepEqual(mine, ['job_new']);
  assert.equal(request.url, 'https://hub.test/v1/videos');
  assert.equal(request.headers['Idempotency-Key'], 'k1');
  assert.equal(request.headers.Authorization, 'Bearer a.b.c');
  assert.deepEqual(JSON.parse(request.body), { model: 'm', prompt: 'p' });
});

test('error response becomes a HubError with all its fields', async () => {
  globalThis.fetch = () => Promise.resolve(Response.json(
    { title: 'Service Unavailable', status: 503, code: 'store_unavailable', detail: 'store unavailable', retryable: true },
    { status: 503, headers: { 'Retry-After': '2', 'Content-Type': 'application/problem+json' } }));
  await assert.rejects(createHub().job('job_a'), error => {
    assert.ok(error instanceof HubError);
    assert.deepEqual([error.code, error.status, error.retryable, error.retryAfter, error.message], ['store_unavailable', 503, true, 2, 'store unavailable']);
    return true;
  });
  globalThis.fetch = () => Promise.reject(new TypeError('connection refused'));
  await assert.rejects(createHub().cancel('job_a'), { code: 'unreachable', status: 0, retryable: true });
});

test('providers returns the state of each provider', async () => {
  const providers = [{ name: 'kling', title: 'Kling', state: 'available', reason: null, since: null, until: null }];
  globalThis.fetch = url => Promise.resolve(Response.json(url.href === 'https://hub.test/v1/providers' ? { providers } : {}));
  assert.deepEqual(await createHub().providers(), providers);
});

test('resume posts to the provider and returns its state', async () => {
  const provider = { name: 'kling', title: 'Kling', state: 'available', reason: null, since: null, until: null, balance: null };
  const calls = [];
  globalThis.fetch = (url, { method }) => {
    calls.push(`${method} ${url.href}`);
    return Promise.resolve(Response.json(provider));
  };
  assert.deepEqual(await createHub().resume('kling'), provider);
  assert.deepEqual(calls, ['POST https://hub.test/v1/providers/kling/resume']);
});

test('call rejected with 401 is retried once with a fresh token', async () => {
  const token = countingTokens();
  const used = [];
  globalThis.fetch = (url, { headers }) => {
    used.push(headers.Authorization);
    return Promise.resolve(used.length === 1 ? Response.json({ code: 'unauthorized' }, { status: 401 }) : Response.json({ jobs: [], next_cursor: null }));
  };
  assert.deepEqual(await createHub(token).jobs({ limit: 5, status: 'running' }), { jobs: [], next_cursor: null });
  assert.equal(new Set(used).size, 2);
  assert.equal(token.calls, 2);
});
