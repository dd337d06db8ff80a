/** Deliveries and destinations on the page: first against a real hub and endpoint, then in states that these do not produce. */

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';

import { closeBrowser, Harness } from './harness.mjs';
import { attempt, deliveryOf, destinationState, jobDocument, mockDeliveries, mockDestinations, problemResponse, proxiedOutput, submitMockedJob, succeededJob, timestampIn } from './mocks.mjs';
import { assertNoHorizontalScroll, card, openDetails, openPage, signIn, waitForStatus, waitForText } from './page_helpers.mjs';

let harness;

before(() => assert.ok(process.env.PROGRESS_HUB_BIN, 'PROGRESS_HUB_BIN must be the path of the binary under test'));
beforeEach(() => (harness = new Harness()));
afterEach(() => harness.close());
after(closeBrowser);

/** Returns the configuration of endpoints at the simulator. @param {Record<string, string>} queries query strings by endpoint name */
function endpoints(queries, retries = '["3s"]') {
  return simulator => `
[deliveries]
retries = ${retries}
[webhook_defaults]
allow = ["127.0.0.0/8"]
${Object.entries(queries).map(([name, query]) => `
[[webhooks]]
name = "${name}"
url = "${simulator}/receiver/${name}?${query}"
secrets = ["whsec_b3V0Ym91bmQgc2VjcmV0IG9mIHRoZSB0ZXN0cw=="]
`).join('')}`;
}

/** Returns the row of a delivery or destination. @param {import('playwright-core').Locator} root @param {string} name */
function row(root, name) {
  return root.locator('li[data-state]').filter({ hasText: name });
}

function deliveries(tab, id) {
  return card(tab, id).locator('.deliveries');
}

/** Opens the panel of the destinations. @returns {Promise<import('playwright-core').Locator>} */
async function openDestinations(tab) {
  const panel = tab.locator('#destinations');
  await panel.locator('summary').click();
  return panel;
}

/** Records the requests of the page whose path contains a text. @returns {string[]} updated with each request */
function recordRequests(tab, path) {
  const urls = [];
  tab.on('request', request => {
    if (new URL(request.url()).pathname.includes(path)) urls.push(request.url());
  });
  return urls;
}

describe('deliveries to a real endpoint', () => {
  test('failed attempt is repeated after a countdown, and a delivery can be sent again', async () => {
    const hub = await harness.startHub({ sections: endpoints({ app: 'status=503&times=1' }, '["4s"]') });
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    const [id] = await hub.registerJobs(1);
    await openDetails(tab, id);
    assert.equal(await deliveries(tab, id).isVisible(), false, 'nothing is shown before the job has deliveries');
    await hub.pushUpdate(id, { status: 'succeeded' });
    const app = row(deliveries(tab, id), 'to app');
    await waitForText(app.locator('.delivery-name'), /^Succeeded to app · http:\/\/127\.0\.0\.1:\d+\/…$/);
    await waitForText(app.locator('.delivery-state'), /^Waiting next attempt (in \ds|now) last attempt: status 503$/);
    const before = await app.locator('.note').textContent();
    await tab.waitForFunction(note => document.querySelector('.deliveries .note').textContent !== note, before);
    await waitForText(app.locator('.delivery-state'), /^Delivered (.*)\d\d:\d\d status 200$/);
    assert.equal(await app.getAttribute('data-state'), 'delivered');
    await waitForText(app.locator('summary'), /^2 attempts$/);
    assert.equal(await app.locator('ol').isVisible(), false);
    await app.locator('summary').focus();
    await tab.keyboard.press('Enter');
    const attempts = await app.locator('ol li').allTextContents();
    assert.match(attempts[0], /^\d\d:\d\d:\d\d, \d+ ms status 200$/);
    assert.match(attempts[1], /^\d\d:\d\d:\d\d, \d+ ms status 503$/);

    await tab.getByRole('button', { name: 'Send again: Succeeded to app' }).press('Enter');
    await waitForText(app.locator('.result'), /^Delivered\.$/);
    await waitForText(app.locator('summary'), /^3 attempts$/);
    assert.deepEqual(tab.consoleErrors.filter(error => !error.includes('demo/session')), []);
  });

  test('delivery that failed for good shows why, and so does sending it again', async () => {
    const hub = await harness.startHub({ sections: endpoints({ down: 'status=500' }, '["100ms"]') });
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    const [id] = await hub.registerJobs(1);
    await hub.pushUpdate(id, { status: 'failed', error: { kind: 'technical', message: 'broken' } });
    await waitForStatus(tab, id, 'failed');
    await openDetails(tab, id);
    const down = row(deliveries(tab, id), 'to down');
    await waitForText(down.locator('.delivery-state'), /^Failed (.*)\d\d:\d\d status 500$/);
    assert.match(await down.locator('.delivery-name').textContent(), /^Failed to down/);
    await tab.getByRole('button', { name: 'Send again: Failed to down' }).click();
    await waitForText(down.locator('.result'), /^Not delivered: status 500\.$/);
    assert.equal(await down.getAttribute('data-state'), 'failed');
  });

  test('read-only token sees deliveries and no button', async () => {
    const hub = await harness.startHub({ sections: endpoints({ app: '' }) });
    const tab = await harness.newTab();
    const requests = recordRequests(tab, '/v1/destinations');
    await signIn(tab, hub.url, await hub.token('15m', 'jobs:read'));
    const [id] = await hub.registerJobs(1);
    await hub.pushUpdate(id, { status: 'succeeded' });
    await waitForStatus(tab, id, 'succeeded');
    await openDetails(tab, id);
    const app = row(deliveries(tab, id), 'to app');
    await app.and(tab.locator('[data-state="delivered"]')).waitFor();
    assert.equal(await app.getByRole('button').count(), 0);
    assert.equal(await tab.locator('#destinations').isVisible(), false);
    assert.deepEqual(requests, [], 'only administrators ask for the destinations');
  });

  test('administrator tests, disables and enables a destination', async () => {
    const hub = await harness.startHub({ sections: endpoints({ app: 'status=503&times=1' }) });
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token('15m', 'jobs:read jobs:write admin'));
    const panel = tab.locator('#destinations');
    await waitForText(panel.locator('summary'), /Destinations 1 active$/);
    await openDestinations(tab);
    const app = row(panel, 'app');
    await waitForText(app.locator('.destination-name'), /^app Webhook · http:\/\/127\.0\.0\.1:\d+\/…$/);
    await waitForText(app.locator('.destination-state'), /^Active 0 waiting · no success yet$/);
    const testButton = tab.getByRole('button', { name: 'Test: app' });
    await testButton.click();
    await waitForText(app.locator('.result'), /^Test failed: status 503 \(.+\)\.$/);
    await testButton.click();
    await waitForText(app.locator('.result'), /^Test delivered \(status 200, .+\)\.$/);

    await tab.getByRole('button', { name: 'Disable: app' }).press('Enter');
    await waitForText(app.locator('.destination-state'), /^Disabled since (.*)\d\d:\d\d: by an administrator · 0 waiting/);
    await waitForText(panel.locator('summary b'), /^1 disabled$/);
    await tab.locator('#live-region', { hasText: 'app: Disabled since' }).waitFor();
    const [id] = await hub.registerJobs(1);
    await hub.pushUpdate(id, { status: 'succeeded' });
    await waitForText(app.locator('.destination-state'), / · 1 waiting/);
    await openDetails(tab, id);
    const held = row(deliveries(tab, id), 'to app');
    await waitForText(held.locator('.delivery-state'), /^Held the destination is disabled/);
    assert.equal(await held.getByRole('button').count(), 0, 'an attempt would not be made');

    await tab.getByRole('button', { name: 'Enable: app' }).press('Enter');
    await waitForText(app.locator('.destination-state'), /^Active 0 waiting · last success (just now|\d+s ago)$/);
    assert.deepEqual(tab.consoleErrors.filter(error => !error.includes('demo/session')), []);
  });
});

describe('deliveries', () => {
  let tab;
  let url;

  beforeEach(async () => {
    ({ url } = await harness.startDemo());
    tab = await harness.newTab();
  });

  /** Opens the details of a job that succeeded, with these deliveries. @param {(id: string) => object[]} create */
  async function openJob(create, job = succeededJob([])) {
    const mock = await mockDeliveries(tab, create(job.id));
    await openPage(tab, url);
    const id = await submitMockedJob(tab, job);
    await openDetails(tab, id);
    return { id, mock };
  }

  test('job without deliveries has no section and is asked for once', async () => {
    await tab.clock.install();
    const { id, mock } = await openJob(() => []);
    await tab.clock.runFor(60_000);
    assert.equal(await deliveries(tab, id).isVisible(), false);
    assert.equal(mock.requests.length, 1);
    assert.equal(new URL(mock.requests[0]).searchParams.get('job'), id);
  });

  test('each state has its words', async () => {
    const { id } = await openJob(job => [
      deliveryOf(job, { state: 'waiting', next_attempt_at: timestampIn(300), ended_at: null, attempts: [attempt(500, 'status 500')] }),
      deliveryOf(job, { destination: 'paused', state: 'waiting', next_attempt_at: timestampIn(-60), ended_at: null, attempts: [], attempt_count: 0 }),
      deliveryOf(job, { destination: 'off', state: 'held', next_attempt_at: timestampIn(-60), ended_at: null, attempts: [attempt(410, 'status 410')] }),
      deliveryOf(job, { destination: 'gone', address: null, state: 'held', ended_at: null, attempts: [] }),
      deliveryOf(job, { destination: 'email', event: 'job.failed', address: '…@example.com', attempts: [attempt(250)] }),
      deliveryOf(job, { destination: 'slow', event: 'job.updated', version: 3, state: 'failed', attempt_count: 10, attempts: [attempt(null, 'no response within 15 s', { duration_ms: 15_000 })] }),
    ]);
    const rows = await deliveries(tab, id).locator('li[data-state]').evaluateAll(elements => elements.map(element => [
      element.querySelector('.delivery-name').textContent, element.querySelector('.delivery-state').textContent.replace(/\d\d:\d\d/, 'TIME').trim(),
      element.querySelector('details').hidden ? '' : element.querySelector('summary').textContent, element.querySelector('button').hidden ? '' : element.querySelector('button').textContent,
    ]));
    assert.deepEqual(rows, [
      ['Succeeded to app · https://app.example.com/…', 'Waiting next attempt in 5 min last attempt: status 500', '1 attempt', 'Send now'],
      ['Succeeded to paused · https://app.example.com/…', 'Waiting the destination is paused or busy', '', 'Send now'],
      ['Succeeded to off · https://app.example.com/…', 'Held the destination is disabled last attempt: status 410', '1 attempt', ''],
      ['Succeeded to gone', 'Held the destination is no longer configured', '', ''],
      ['Failed to email · …@example.com', 'Delivered TIME status 250', '1 attempt', 'Send again'],
      ['Updated to version 3 to slow · https://app.example.com/…', 'Failed TIME no response within 15 s', '10 attempts', 'Send again'],
    ]);
  });

  test('deliveries are read when the job becomes final, and not while it runs', async () => {
    const mock = await mockDeliveries(tab);
    await openPage(tab, url);
    const running = jobDocument({ status: 'running', version: 3 });
    const id = await submitMockedJob(tab, running);
    await openDetails(tab, id);
    mock.deliveries = [deliveryOf(id)];
    assert.equal(await deliveries(tab, id).isVisible(), false);
    await submitMockedJob(tab, { ...running, status: 'succeeded', final: true, version: 4 });
    await row(deliveries(tab, id), 'to app').waitFor();
    assert.equal(mock.requests.length, 2);
  });

  test('hidden tab does not ask', async () => {
    await tab.clock.install();
    const { mock } = await openJob(job => [deliveryOf(job, { state: 'waiting', next_attempt_at: timestampIn(3), ended_at: null })]);
    await tab.locator('.deliveries li').first().waitFor();
    const setVisibility = state => tab.evaluate(visibility => {
      Object.defineProperty(window.document, 'visibilityState', { value: visibility, configurable: true });
    }, state);
    await setVisibility('hidden');
    const before = mock.requests.length;
    await tab.clock.runFor(10_000);
    await tab.evaluate(() => fetch('v1/health'));
    assert.equal(mock.requests.length, before);
    const asked = tab.waitForRequest('**/v1/deliveries?*');
    await setVisibility('visible');
    await tab.clock.runFor(2_000);
    await asked;
  });

  test('why deliveries were not read is shown, and they can be read again', async () => {
    const job = succeededJob([]);
    const mock = await mockDeliveries(tab, [deliveryOf(job.id)]);
    mock.response = problemResponse(503, 'store_unavailable', 'store unavailable', { 'Retry-After': '1' });
    await openPage(tab, url);
    const id = await submitMockedJob(tab, job);
    await openDetails(tab, id);
    await waitForText(deliveries(tab, id).locator('.load-error .error'), /^Deliveries can't be loaded\. The hub can't process this request right now\./);
    mock.response = null;
    await deliveries(tab, id).getByRole('button', { name: 'Try again' }).click();
    await row(deliveries(tab, id), 'to app').waitFor();
    assert.equal(await deliveries(tab, id).locator('.load-error').isVisible(), false);
  });

  test('why a delivery was not sent again is shown', async () => {
    const { id } = await openJob(job => [deliveryOf(job)]);
    const button = tab.getByRole('button', { name: 'Send again: Succeeded to app' });
    const error = deliveries(tab, id).locator('li .error');
    const respond = response => tab.route('**/v1/deliveries/*/redeliver', route => route.fulfill(response), { times: 1 });
    await respond(problemResponse(409, 'destination_not_configured', "destination 'app' is not configured"));
    await button.click();
    await waitForText(error, /^Destination 'app' is not configured\.$/);
    await respond(problemResponse(403, 'forbidden', 'scope jobs:write is required'));
    await button.click();
    await waitForText(error, /^This token has no right to do that\.$/);
    await tab.route('**/v1/deliveries/*/redeliver', route => route.abort(), { times: 1 });
    await button.click();
    await waitForText(error, /^Can't reach the server\. Try again\.$/);
    assert.equal(await deliveries(tab, id).locator('.result').textContent(), '');
  });

  test('only the newest deliveries are shown, and the page says so', async () => {
    const job = succeededJob([]);
    const mock = await mockDeliveries(tab, [deliveryOf(job.id)]);
    mock.next_cursor = '1.a';
    await openPage(tab, url);
    const id = await submitMockedJob(tab, job);
    await openDetails(tab, id);
    await deliveries(tab, id).getByText('Only the newest 100 deliveries are shown.').waitFor();
  });

  test('outputs show whether they are archived', async () => {
    const outputs = [proxiedOutput(), proxiedOutput(), proxiedOutput(), proxiedOutput()];
    const job = succeededJob(outputs);
    const states = [{ archived: true }, { archived: { bytes: 4_200_000 } }, { archived: false, archive_error: 'larger than archive.max_bytes' }, { archived: false }];
    await tab.route(`**/v1/jobs/${job.id}`, route => route.fulfill({ json: { ...job, outputs: outputs.map((output, n) => ({ ...output, ...states[n] })) } }));
    const { id } = await openJob(() => [deliveryOf(job.id, { destination: 'archive', event: 'output.0' })], job);
    await waitForText(row(deliveries(tab, id), 'to archive').locator('.delivery-name b'), /^Copy of output 1$/);
    await card(tab, id).locator('.archived').first().waitFor();
    assert.deepEqual(await card(tab, id).locator('.archived').allTextContents(), ['archived', 'archived, 4.2 MB', 'not archived: larger than archive.max_bytes', 'not archived yet']);
  });

  test('360 px wide page never scrolls horizontally', async () => {
    await tab.setViewportSize({ width: 360, height: 740 });
    await mockDestinations(tab, [destinationState('paused', { name: 'a'.repeat(63), paused_until: timestampIn(60), last_error: 'x'.repeat(200) })]);
    const { id } = await openJob(job => [deliveryOf(job, { destination: 'a'.repeat(63), state: 'failed', attempts: [attempt(500, 'e'.repeat(200))] })]);
    await deliveries(tab, id).locator('summary').click();
    await openDestinations(tab);
    await assertNoHorizontalScroll(tab, 'open');
  });
});

describe('destinations', () => {
  let tab;
  let url;

  beforeEach(async () => {
    ({ url } = await harness.startDemo());
    tab = await harness.newTab();
  });

  test('no panel without destinations', async () => {
    const mock = await mockDestinations(tab, []);
    await openPage(tab, url);
    await tab.waitForFunction(() => document.querySelector('#empty:not([hidden])'));
    assert.ok(mock.requestCount > 0);
    assert.equal(await tab.locator('#destinations').isVisible(), false);
  });

  test('each state has its words and its buttons', async () => {
    await mockDestinations(tab, [
      destinationState('active', { last_success_at: timestampIn(-300) }),
      destinationState('paused', { name: 'slow', waiting: 3, paused_until: timestampIn(42), last_error: 'status 503' }),
      destinationState('paused', { name: 'probed', paused_until: timestampIn(-1), last_success_at: null }),
      destinationState('disabled', { name: 'gone', disabled: { at: timestampIn(-60), reason: 'gone', recheck_at: timestampIn(600) } }),
      destinationState('disabled', { name: 'failing', disabled: { at: timestampIn(-60), reason: 'failing', recheck_at: null } }),
      destinationState('active', { name: 'hooks.example.com', kind: 'host', address: 'hooks.example.com' }),
      destinationState('unconfigured', { name: 'old', kind: null, address: null, waiting: 2 }),
      destinationState('active', { name: 'email', kind: 'email', address: 'smtp.example.com' }),
    ]);
    await openPage(tab, url);
    const panel = await openDestinations(tab);
    await waitForText(panel.locator('summary b'), /^2 disabled, 2 paused, 1 not configured, 3 active$/);
    const rows = await panel.locator('li').evaluateAll(elements => elements.map(element => [
      ...['.destination-name', '.destination-state'].map(part => element.querySelector(part).textContent.replace(/\d\d:\d\d/g, 'TIME').replace(/in \d+s/, 'in N s').trim()),
      [...element.querySelectorAll('button:not([hidden])')].map(button => button.textContent).join(),
    ]));
    assert.deepEqual(rows, [
      ['app Webhook · https://app.example.com/…', 'Active 0 waiting · last success 5 min ago', 'Test,Disable'],
      ['slow Webhook · https://app.example.com/…', 'Paused next attempt in N s · 3 waiting · last success 2 min ago · last error: status 503', 'Test,Resume now,Disable'],
      ['probed Webhook · https://app.example.com/…', 'Paused one attempt at a time until one succeeds · 0 waiting · no success yet', 'Test,Resume now,Disable'],
      ['gone Webhook · https://app.example.com/…', 'Disabled since TIME: the endpoint responded that it no longer exists · next attempt at TIME · 0 waiting · last success 2 min ago', 'Test,Enable'],
      ['failing Webhook · https://app.example.com/…', 'Disabled since TIME: no attempt succeeded for too long · 0 waiting · last success 2 min ago', 'Test,Enable'],
      ['hooks.example.com Webhooks of submissions · hooks.example.com', 'Active 0 waiting · last success 2 min ago', 'Disable'],
      ['old', 'Not configured its deliveries are held · 2 waiting · last success 2 min ago', ''],
      ['email Email · smtp.example.com', 'Active 0 waiting · last success 2 min ago', 'Test,Disable'],
    ]);
  });

  test('why a request failed is shown, and a pause can be ended', async () => {
    const paused = destinationState('paused', { paused_until: timestampIn(600) });
    const mock = await mockDestinations(tab, [paused]);
    await openPage(tab, url);
    const panel = await openDestinations(tab);
    const respond = (action, response) => tab.route(`**/v1/destinations/app/${action}`, route => route.fulfill(response), { times: 1 });
    await respond('test', problemResponse(503, 'store_unavailable', 'store unavailable'));
    await tab.getByRole('button', { name: 'Test: app' }).click();
    await waitForText(panel.locator('.error'), /^The hub can't process this request right now\.$/);
    assert.equal(await panel.locator('.result').isVisible(), false);
    await respond('enable', problemResponse(403, 'forbidden', 'scope admin is required'));
    await tab.getByRole('button', { name: 'Resume now: app' }).click();
    await waitForText(panel.locator('.error'), /^This token can't manage destinations\. Use a token with the scope admin\.$/);
    mock.destinations = [destinationState('active')];
    await respond('enable', { json: destinationState('active') });
    await tab.getByRole('button', { name: 'Resume now: app' }).press('Enter');
    await waitForText(panel.locator('.destination-state b'), /^Active$/);
    assert.equal(await panel.locator('.error').isVisible(), false);
    assert.equal(await tab.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Disable: app', 'the focus is not lost');
  });

  test('closed panel names the states that need attention', async () => {
    await mockDestinations(tab, [destinationState('active'), destinationState('disabled', { name: 'gone', disabled: { at: timestampIn(-60), reason: 'gone', recheck_at: null } })]);
    await openPage(tab, url);
    const panel = tab.locator('#destinations');
    await waitForText(panel.locator('summary b'), /^1 disabled, 1 active$/);
    assert.equal(await panel.locator('ul').isVisible(), false);
    assert.notEqual(await panel.getAttribute('data-attention'), null);
  });
});
