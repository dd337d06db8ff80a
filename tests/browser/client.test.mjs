/** The client's promises, against a scripted socket and a clock that the test turns. */

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { HubError, ProgressHub } from '../../static/progress-hub.js';
import { FakeSocket, job, jwt } from './fake_socket.mjs';

const URL_OF_HUB = 'https://hub.test/';
const settle = () => new Promise(resolve => setImmediate(resolve));
let hubs = [];

beforeEach(() => {
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.UTC(2026, 10, 23, 10) });
  mock.method(Math, 'random', () => 1);
  FakeSocket.all = [];
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  globalThis.fetch = () => Promise.reject(new TypeError('no network in this test'));
});

afterEach(() => {
  for (const hub of hubs) hub.close();
  hubs = [];
  mock.timers.reset();
  mock.restoreAll();
  delete globalThis.document;
});

function hubOf(token = 'a.b.c') {
  const hub = new ProgressHub({ url: URL_OF_HUB, token, WebSocket: FakeSocket });
  hubs.push(hub);
  return hub;
}

/** A token function that counts. */
function tokens(expiresIn = 900_000) {
  const give = () => {
    give.calls += 1;
    return jwt(expiresIn, { n: give.calls });
  };
  give.calls = 0;
  return give;
}

async function tick(ms) {
  mock.timers.tick(ms);
  await settle();
}

/** The tab sleeps: the clock goes on, the timers do not. */
function sleep(ms) {
  mock.timers.setTime(Date.now() + ms);
}

async function live(hub, options) {
  await settle();
  FakeSocket.last.welcome(options);
  await settle();
  assert.equal(hub.state.name, 'live');
  return FakeSocket.last;
}

test('connects at the first watch, with the token as a subprotocol', async () => {
  const hub = hubOf();
  await settle();
  assert.equal(FakeSocket.all.length, 0);
  assert.equal(hub.state.name, 'closed');
  hub.watch('job_a', () => {});
  assert.equal(hub.state.name, 'connecting');
  await settle();
  assert.equal(FakeSocket.last.url, 'wss://hub.test/v1/ws');
  assert.deepEqual(FakeSocket.last.protocols, ['progress-hub.v1', 'bearer.a.b.c']);
});

test('a token that no subprotocol can carry is the first frame', async () => {
  const hub = hubOf('with/slash=');
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  assert.deepEqual(socket.protocols, ['progress-hub.v1']);
  assert.deepEqual(socket.sent[0], { type: 'auth', token: 'with/slash=' });
});

test('watchers of one job share a subscription, and a late one sees the newest at once', async () => {
  const hub = hubOf();
  const first = [];
  const late = [];
  hub.watch('job_a', seen => first.push(seen.version));
  hub.watch('job_a', seen => first.push(seen.version));
  const socket = await live(hub);
  assert.deepEqual(socket.frames('subscribe').map(frame => frame.jobs), [[{ job: 'job_a' }]]);
  socket.say({ type: 'job', job: job('job_a', 4) });
  hub.watch('job_a', seen => late.push(seen.version));
  await settle();
  assert.deepEqual([first, late], [[4, 4], [4]]);
  assert.equal(socket.frames('subscribe').length, 1);
});

test('the last watcher to go unsubscribes', async () => {
  const hub = hubOf();
  const stops = [hub.watch('job_a', () => {}), hub.watch('job_a', () => {})];
  const socket = await live(hub);
  stops[0]();
  await settle();
  assert.equal(socket.frames('unsubscribe').length, 0);
  stops[1]();
  await settle();
  assert.deepEqual(socket.frames('unsubscribe').map(frame => frame.jobs), [['job_a']]);
});

test('versions never go back and are never shown twice, across connections too', async () => {
  const hub = hubOf();
  const seen = [];
  hub.watch('job_a', one => seen.push(one.version));
  let socket = await live(hub);
  for (const version of [3, 3, 2, 5, 4]) socket.say({ type: 'job', job: job('job_a', version) });
  socket.drop(1006);
  await tick(30_000);
  await settle();
  socket = await live(hub);
  for (const version of [5, 1, 6]) socket.say({ type: 'job', job: job('job_a', version) });
  assert.deepEqual(seen, [3, 5, 6]);
});

test('a reconnect names the versions it has, job by job and for the feed', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  hub.watch('job_done', () => {});
  hub.watchMine(() => {});
  let socket = await live(hub);
  socket.say({ type: 'job', job: job('job_a', 7) });
  socket.say({ type: 'job', job: job('job_done', 9, { status: 'succeeded' }) });
  socket.say({ type: 'job', job: job('job_mine', 2) });
  socket.drop(1006);
  await tick(30_000);
  await settle();
  socket = await live(hub);
  const [feed, jobs] = socket.frames('subscribe');
  assert.equal(feed.feed, 'mine');
  assert.deepEqual(new Map(feed.jobs.map(one => [one.job, one.version])).get('job_mine'), 2);
  assert.deepEqual(jobs.jobs, [{ job: 'job_a', version: 7 }], 'a final job needs no subscription');
});

test('watchMine shows what the feed brings, not what was watched for itself', async () => {
  const hub = hubOf(jwt(900_000));
  const mine = [];
  hub.watchMine(one => mine.push(`${one.id}:${one.version}`));
  hub.watch('job_other', () => {});
  const socket = await live(hub);
  socket.say({ type: 'job', job: job('job_other', 1, { owner: 'bob' }) });
  socket.say({ type: 'job', job: job('job_mine', 1) });
  assert.deepEqual(mine, ['job_mine:1']);
  hub.watchMine(one => mine.push(`late ${one.id}:${one.version}`));
  await settle();
  assert.deepEqual(mine, ['job_mine:1', 'late job_mine:1']);
});

test('a job watched for itself joins the feed when the hub counts it there', async () => {
  const hub = hubOf('opaque');
  const mine = [];
  hub.watch('job_a', () => {});
  hub.watchMine(one => mine.push(one.id));
  const socket = await live(hub);
  socket.say({ type: 'job', job: job('job_a', 1) });
  assert.deepEqual(mine, []);
  const feed = socket.frames('subscribe').find(frame => frame.feed);
  socket.say({ type: 'subscribed', id: feed.id, feed: 'mine', jobs: { job_a: 'sent' } });
  assert.deepEqual(mine, ['job_a']);
});

test('three hundred jobs go in few frames, and those beyond the bound wait for a place', async () => {
  const hub = hubOf();
  const ids = Array.from({ length: 300 }, (_, n) => `job_${n}`);
  for (const id of ids) hub.watch(id, () => {});
  const socket = await live(hub);
  const asked = () => socket.frames('subscribe').flatMap(frame => frame.jobs.map(one => one.job));
  assert.equal(socket.frames('subscribe').length, 2);
  assert.deepEqual(asked(), ids.slice(0, 256));
  socket.say({ type: 'job', job: job('job_0', 3, { status: 'failed' }) });
  socket.say({ type: 'job', job: job('job_1', 3, { status: 'succeeded' }) });
  await settle();
  assert.deepEqual(socket.frames('unsubscribe').map(frame => frame.jobs), [['job_0', 'job_1']]);
  assert.deepEqual(asked().slice(256), ['job_256', 'job_257']);
});

test('a hub with a lower bound is believed', async () => {
  const hub = hubOf();
  const problems = [];
  for (const id of ['job_a', 'job_b', 'job_c']) hub.watch(id, () => {}, problem => problems.push(problem));
  const socket = await live(hub);
  socket.say({ type: 'subscribed', id: socket.frames('subscribe')[0].id, jobs: { job_a: 'sent', job_b: 'sent', job_c: 'too_many' } });
  await settle();
  assert.equal(socket.frames('subscribe').length, 1);
  socket.say({ type: 'job', job: job('job_a', 1, { status: 'cancelled' }) });
  await settle();
  assert.deepEqual(socket.frames('subscribe')[1].jobs, [{ job: 'job_c' }]);
  assert.deepEqual(problems, []);
});

test('not_found is told to the watchers of that job alone', async () => {
  const hub = hubOf();
  const problems = [];
  hub.watch('job_a', () => {}, problem => problems.push(['a', problem.code]));
  hub.watch('job_gone', () => {}, problem => problems.push(['gone', problem.code]));
  const rejected = assert.rejects(hub.finished('job_gone'), { code: 'not_found' });
  const socket = await live(hub);
  socket.say({ type: 'subscribed', id: socket.frames('subscribe')[0].id, jobs: { job_a: 'sent', job_gone: 'not_found' } });
  await rejected;
  assert.deepEqual(problems, [['gone', 'not_found']]);
  socket.drop(1006);
  await tick(30_000);
  await settle();
  const again = await live(hub);
  assert.deepEqual(again.frames('subscribe')[0].jobs.map(one => one.job), ['job_a'], 'what is not there is not asked for again');
});

test('finished resolves with the final document, of a failed job too', async () => {
  const hub = hubOf();
  const finished = hub.finished('job_a');
  const socket = await live(hub);
  socket.say({ type: 'job', job: job('job_a', 3) });
  socket.say({ type: 'job', job: job('job_a', 8, { status: 'failed' }) });
  assert.equal((await finished).version, 8);
});

test('a watcher that throws costs the others nothing', async () => {
  const hub = hubOf();
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
    throw new Error('mistake');
  });
  hub.watch('job_a', one => seen.push(one.version));
  const socket = await live(hub);
  socket.say({ type: 'job', job: job('job_a', 1) });
  await settle();
  assert.deepEqual([seen, thrown], [[1], ['mistake']]);
});

test('backs off twice as long each time up to 30 s, with full jitter', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  const waits = [];
  for (let attempt = 1; attempt <= 9; attempt++) {
    await settle();
    FakeSocket.last.drop(1006);
    await settle();
    assert.equal(hub.state.attempt, attempt);
    waits.push(hub.state.retryAt - Date.now());
    await tick(waits.at(-1));
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  mock.method(Math, 'random', () => 0.25);
  FakeSocket.last.drop(1006);
  await settle();
  assert.equal(hub.state.retryAt - Date.now(), 7_500);
});

test('only a connection that held forgives the failures before it', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  await settle();
  for (const expected of [1, 2, 3]) {
    FakeSocket.last.welcome();
    FakeSocket.last.drop(1006);
    await settle();
    assert.equal(hub.state.attempt, expected);
    await tick(30_000);
  }
  FakeSocket.last.welcome();
  await tick(10_000);
  FakeSocket.last.drop(1006);
  assert.equal(hub.state.attempt, 1);
});

test('comes back exactly when bye says, whatever wakes the tab meanwhile', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  socket.say({ type: 'bye', code: 1012, reason: 'restart', retry_after_ms: 1_730 });
  assert.deepEqual([hub.state.name, hub.state.retryAt - Date.now(), hub.state.reason], ['reconnecting', 1_730, 'restart']);
  assert.ok(socket.isLetGo);
  document.dispatchEvent(new Event('visibilitychange'));
  await tick(1_729);
  assert.equal(FakeSocket.all.length, 1);
  await tick(1);
  assert.equal(FakeSocket.all.length, 2);
});

test('a person may try at once', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  (await live(hub)).say({ type: 'bye', code: 1012, reason: 'restart', retry_after_ms: 60_000 });
  hub.reconnect();
  await settle();
  assert.equal(FakeSocket.all.length, 2);
});

test('a woken tab does not wait for its backoff', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  (await live(hub)).drop(1006);
  document.dispatchEvent(new Event('visibilitychange'));
  await settle();
  assert.equal(FakeSocket.all.length, 2);
});

for (const code of [4001, 4002, 4003]) {
  test(`${code} asks a token function once for a fresh token, then gives up`, async () => {
    const token = tokens();
    const hub = hubOf(token);
    const finished = assert.rejects(hub.finished('job_a'), { code: 'signed_out' });
    await settle();
    assert.equal(token.calls, 1);
    FakeSocket.last.drop(code);
    await tick(0);
    assert.equal(token.calls, 2);
    assert.notEqual(FakeSocket.all[0].protocols[1], FakeSocket.all[1].protocols[1]);
    FakeSocket.last.drop(code);
    await tick(60_000);
    assert.equal(hub.state.name, 'signed_out');
    assert.equal(FakeSocket.all.length, 2);
    await finished;
  });

  test(`${code} signs a fixed token out`, async () => {
    const hub = hubOf();
    hub.watch('job_a', () => {});
    (await live(hub)).drop(code);
    await tick(60_000);
    assert.equal(hub.state.name, 'signed_out');
    assert.equal(FakeSocket.all.length, 1);
  });
}

test('a client the hub does not understand stays away', async () => {
  const hub = hubOf();
  const problems = [];
  hub.watch('job_a', () => {}, problem => problems.push(problem.code));
  (await live(hub)).drop(4008, 'too_many_bad_messages');
  await tick(60_000);
  assert.deepEqual([hub.state.name, hub.state.reason, problems], ['closed', 'too_many_bad_messages', ['closed']]);
  assert.equal(FakeSocket.all.length, 1);
});

test('4100 backs off, 4200 comes back at once but not in a circle', async () => {
  const full = hubOf();
  full.watch('job_a', () => {});
  (await live(full)).drop(4100, 'over_capacity');
  assert.equal(full.state.retryAt - Date.now(), 500);
  full.close();
  const moved = hubOf();
  moved.watch('job_a', () => {});
  (await live(moved)).drop(4200, 'moved');
  assert.equal(moved.state.retryAt - Date.now(), 0);
  await tick(0);
  (await live(moved)).drop(4200, 'moved');
  assert.equal(moved.state.retryAt - Date.now(), 1_000);
});

test('a refused upgrade is asked for its reason over HTTP', async () => {
  const token = tokens();
  const asked = [];
  globalThis.fetch = (url, { headers }) => {
    asked.push([url.href, headers.Authorization.slice(0, 7)]);
    return Promise.resolve(new Response('{}', { status: 401 }));
  };
  const hub = hubOf(token);
  hub.watch('job_a', () => {});
  await settle();
  FakeSocket.last.drop(1006);
  await settle();
  await tick(0);
  assert.equal(token.calls, 2);
  FakeSocket.last.drop(1006);
  await settle();
  assert.deepEqual([hub.state.name, hub.state.reason], ['signed_out', 'unauthorized']);
  assert.deepEqual(asked, Array(2).fill(['https://hub.test/v1/jobs?limit=1', 'Bearer ']));
});

test('a token function that fails is tried again; one that gives none signs out', async () => {
  let give = () => Promise.reject(new Error('away'));
  const hub = hubOf(() => give());
  hub.watch('job_a', () => {});
  await settle();
  assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', 'token_unavailable']);
  give = () => null;
  await tick(500);
  assert.equal(hub.state.name, 'signed_out');
});

test('renews in place when a fifth of the token is left, again after each hello', async () => {
  const token = tokens(100_000);
  const hub = hubOf(token);
  hub.watch('job_a', () => {});
  const socket = await live(hub, { expires_in: 100_000 });
  await tick(79_000);
  assert.equal(socket.frames('auth').length, 0);
  await tick(1_000);
  assert.equal(socket.frames('auth').length, 1);
  socket.hello({ expires_in: 100_000 });
  await tick(79_000);
  assert.equal(socket.frames('auth').length, 1);
  await tick(1_000);
  assert.equal(socket.frames('auth').length, 2);
  assert.equal(FakeSocket.all.length, 1);
});

test('renews when told that the token is expiring, and tries again when no token comes', async () => {
  let fails = false;
  const hub = hubOf(() => (fails ? Promise.reject(new Error('away')) : jwt(900_000)));
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  fails = true;
  socket.say({ type: 'token_expiring', in_ms: 30_000 });
  await settle();
  assert.equal(socket.frames('auth').length, 0);
  fails = false;
  await tick(5_000);
  assert.equal(socket.frames('auth').length, 1);
});

test('after a sleep the token is renewed and the socket has to prove itself', async () => {
  const hub = hubOf(tokens());
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  sleep(850_000);
  document.dispatchEvent(new Event('visibilitychange'));
  await settle();
  assert.equal(socket.frames('auth').length, 1);
  assert.equal(socket.frames('ping').length, 1);
  await tick(5_000);
  assert.equal(hub.state.name, 'reconnecting');
  assert.ok(socket.isLetGo);
});

test('a socket that answers after a sleep is kept', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  sleep(40_000);
  await tick(1);
  assert.equal(socket.frames('ping').length, 1, 'a late timer is enough to notice');
  socket.say({ type: 'pong', id: socket.frames('ping')[0].id });
  await tick(6_000);
  assert.equal(hub.state.name, 'live');
});

test('two heartbeats of silence end a connection', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  const socket = await live(hub, { heartbeat_ms: 4_000 });
  for (let n = 0; n < 5; n++) {
    await tick(4_000);
    socket.say({ type: 'heartbeat', now: new Date().toISOString() });
  }
  assert.equal(hub.state.name, 'live');
  for (let n = 0; n < 4; n++) await tick(2_000);
  assert.deepEqual([hub.state.name, hub.state.reason], ['reconnecting', 'silent']);
});

test('a socket that never says hello is given up', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  await settle();
  await tick(15_000);
  await settle();
  assert.equal(hub.state.name, 'reconnecting');
  assert.ok(FakeSocket.all[0].isLetGo);
});

test('the state tells of the store, since when, on this clock', async () => {
  const hub = hubOf();
  const states = [];
  hub.on('state', state => states.push(state.name));
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  socket.say({ type: 'heartbeat', now: new Date(Date.now() + 60_000).toISOString() });
  assert.equal(hub.now() - Date.now(), 60_000);
  socket.say({ type: 'degraded', since: new Date(Date.now() + 60_000 - 5_000).toISOString() });
  assert.equal(hub.state.since, Date.now() - 5_000);
  socket.say({ type: 'restored' });
  assert.deepEqual(states, ['connecting', 'live', 'degraded', 'live']);
});

test('a subscribe that failed for a moment is asked again', async () => {
  const hub = hubOf();
  hub.watch('job_a', () => {});
  const socket = await live(hub);
  socket.say({ type: 'error', id: socket.frames('subscribe')[0].id, code: 'store_unavailable', message: 'away' });
  await tick(3_000);
  assert.equal(socket.frames('subscribe').length, 2);
  assert.deepEqual(socket.frames('subscribe')[1].jobs, [{ job: 'job_a' }]);
});

test('with nothing watched the socket is given back, and the next watch opens one', async () => {
  const hub = hubOf();
  const stop = hub.watch('job_a', () => {});
  const socket = await live(hub);
  stop();
  await tick(29_000);
  assert.equal(hub.state.name, 'live');
  await tick(1_000);
  assert.deepEqual([hub.state.name, hub.state.reason, socket.isLetGo], ['closed', 'idle', true]);
  hub.watch('job_b', () => {});
  assert.deepEqual((await live(hub)).frames('subscribe')[0].jobs, [{ job: 'job_b' }]);
});

test('close ends what waits', async () => {
  const hub = hubOf();
  const finished = assert.rejects(hub.finished('job_a'), { code: 'closed' });
  const socket = await live(hub);
  hub.close();
  await finished;
  await tick(60_000);
  assert.deepEqual([hub.state.name, socket.isLetGo, FakeSocket.all.length], ['closed', true, 1]);
});

test('submit sends the token and the key, and shows the answer to those who watch', async () => {
  let request;
  globalThis.fetch = (url, init) => {
    request = { url: url.href, ...init };
    return Promise.resolve(Response.json(job('job_new', 1, { status: 'accepted' }), { status: 202 }));
  };
  const hub = hubOf();
  const mine = [];
  hub.watchMine(one => mine.push(one.id));
  await live(hub);
  const submitted = await hub.submit({ model: 'm', prompt: 'p' }, { idempotencyKey: 'k1' });
  assert.equal(submitted.id, 'job_new');
  assert.deepEqual(mine, ['job_new']);
  assert.equal(request.url, 'https://hub.test/v1/videos');
  assert.equal(request.headers['Idempotency-Key'], 'k1');
  assert.equal(request.headers.Authorization, 'Bearer a.b.c');
  assert.deepEqual(JSON.parse(request.body), { model: 'm', prompt: 'p' });
});

test('a problem becomes an error with all that the hub said', async () => {
  globalThis.fetch = () => Promise.resolve(Response.json(
    { title: 'Service Unavailable', status: 503, code: 'store_unavailable', detail: 'the store is away', retryable: true },
    { status: 503, headers: { 'Retry-After': '2', 'Content-Type': 'application/problem+json' } }));
  await assert.rejects(hubOf().job('job_a'), error => {
    assert.ok(error instanceof HubError);
    assert.deepEqual([error.code, error.status, error.retryable, error.retryAfter, error.message], ['store_unavailable', 503, true, 2, 'the store is away']);
    return true;
  });
  globalThis.fetch = () => Promise.reject(new TypeError('refused'));
  await assert.rejects(hubOf().cancel('job_a'), { code: 'unreachable', status: 0, retryable: true });
});

test('tells how each provider is', async () => {
  const providers = [{ name: 'kling', title: 'Kling', state: 'open', reason: null, since: null, until: null }];
  globalThis.fetch = url => Promise.resolve(Response.json(url.href === 'https://hub.test/v1/providers' ? { providers } : {}));
  assert.deepEqual(await hubOf().providers(), providers);
});

test('tells the hub that a provider is mended', async () => {
  const provider = { name: 'kling', title: 'Kling', state: 'open', reason: null, since: null, until: null, balance: null };
  const calls = [];
  globalThis.fetch = (url, { method }) => {
    calls.push(`${method} ${url.href}`);
    return Promise.resolve(Response.json(provider));
  };
  assert.deepEqual(await hubOf().resume('kling'), provider);
  assert.deepEqual(calls, ['POST https://hub.test/v1/providers/kling/resume']);
});

test('a call with an old token is made again with a fresh one', async () => {
  const token = tokens();
  const used = [];
  globalThis.fetch = (url, { headers }) => {
    used.push(headers.Authorization);
    return Promise.resolve(used.length === 1 ? Response.json({ code: 'unauthorized' }, { status: 401 }) : Response.json({ jobs: [], next_cursor: null }));
  };
  assert.deepEqual(await hubOf(token).jobs({ limit: 5, status: 'running' }), { jobs: [], next_cursor: null });
  assert.equal(new Set(used).size, 2);
  assert.equal(token.calls, 2);
});
