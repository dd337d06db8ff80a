/** The page in states that the demo does not produce. Single responses are mocked, and all else is real. */

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';

import { closeBrowser, Harness, TEST_TIMEOUT_MS } from './harness.mjs';
import { jobDocument, mockNextSubmit, mockOutputs, mockProviders, problemResponse, providerState, proxiedOutput, submitMockedJob, succeededJob, timestampIn } from './mocks.mjs';
import { assertNoHorizontalScroll, card, openDetails, openPage, submitJob, waitForPlayback, waitForStatus, waitForText } from './page_helpers.mjs';

let harness;
let tab;
let url;

before(() => assert.ok(process.env.PROGRESS_HUB_BIN, 'PROGRESS_HUB_BIN must be the path of the binary under test'));
beforeEach(async () => {
  harness = new Harness();
  ({ url } = await harness.startDemo());
  tab = await harness.newTab();
});
afterEach(() => harness.close());
after(closeBrowser);

function note(id) {
  return card(tab, id).locator('.note');
}

describe('providers', () => {
  test('available providers are not shown', async () => {
    const mock = await mockProviders(tab, [providerState('available', null, null)]);
    await openPage(tab, url);
    const id = await submitJob(tab);
    await waitForStatus(tab, id, 'succeeded');
    assert.ok(mock.requestCount > 0);
    assert.equal(await tab.locator('#providers').isVisible(), false);
    assert.deepEqual(tab.consoleErrors, []);
  });

  test('each limited provider has a row with a countdown until it is available', async () => {
    const mock = await mockProviders(tab, [
      providerState('rate_limited', 'rate_limit', 30),
      providerState('suspended', 'quota', null, { name: 'fal', title: 'fal', balance: { amount: 0.02, unit: 'usd' } }),
      providerState('unavailable', 'technical', 8, { name: 'runway', title: 'Runway' }),
      providerState('available', null, null, { name: 'luma', title: 'Luma' }),
    ]);
    await openPage(tab, url);
    const rows = tab.locator('#providers li');
    await rows.nth(2).waitFor();
    assert.equal(await rows.count(), 3);
    await waitForText(rows.nth(0).locator('span'), /^Kling is rate limited\. Resumes in \d+s\.$/);
    await waitForText(rows.nth(1).locator('span'), /^fal is suspended: the account is out of credit\.$/);
    await waitForText(rows.nth(1).locator('small'), /^since \d\d:\d\d, \$0\.02 left$/);
    await waitForText(rows.nth(2).locator('span'), /^Runway is unavailable\. Retrying (in \d+s|now)\.$/);
    await tab.locator('#live-region', { hasText: 'Kling is rate limited.' }).waitFor();
    const before = await rows.nth(0).textContent();
    await tab.waitForFunction(content => window.document.querySelector('#providers li').textContent !== content, before);
    mock.providers = [providerState('available', null, null)];
    await tab.locator('#providers').waitFor({ state: 'hidden' });
    await tab.locator('#live-region', { hasText: 'Kling is available again.' }).waitFor();
  });

  test('only an admin can resume a provider and errors are shown', async () => {
    const mock = await mockProviders(tab, [providerState('suspended', 'quota', 800)]);
    await openPage(tab, url);
    const row = tab.locator('#providers li');
    await row.waitFor();
    const button = tab.getByRole('button', { name: 'Resume now: Kling' });
    assert.equal(await button.count(), 0);
    mock.providers = [providerState('suspended', 'quota', 800, { balance: null })];
    await tab.route('**/v1/providers/simulated/resume', route => route.fulfill(problemResponse(403, 'forbidden', 'scope admin is required')), { times: 1 });
    await button.click();
    await waitForText(row.locator('.error'), /^This token can't resume providers\. Use a token with the scope admin\.$/);
    await waitForText(row.locator('span'), /^Kling is suspended/);
    await tab.route('**/v1/providers/simulated/resume', route => route.fulfill({ json: providerState('available', null, null, { since: null, balance: null }) }), { times: 1 });
    await button.click();
    await waitForText(row.locator('span'), /^Kling is back\. Resuming queued jobs\.$/);
    assert.equal(await row.locator('.error').isVisible(), false);
    // The probe failed, so the provider is suspended again.
    await waitForText(row.locator('span'), /^Kling is suspended: the account is out of credit\./);
    await tab.locator('#live-region', { hasText: 'Kling is suspended' }).waitFor();
    await button.waitFor();
  });

  test('two accounts at one provider are distinguished by name', async () => {
    await mockProviders(tab, [providerState('suspended', 'auth', null, { name: 'first' }), providerState('available', null, null, { name: 'second' })]);
    await openPage(tab, url);
    await tab.getByText("Kling (first) is suspended: it rejected the hub's API key").waitFor();
  });

  test('waiting job shows the state of its provider', async () => {
    const mock = await mockProviders(tab, [providerState('rate_limited', 'rate_limit', 30)]);
    await openPage(tab, url);
    const id = await submitMockedJob(tab, jobDocument());
    const otherId = await submitMockedJob(tab, jobDocument({ provider: 'another' }));
    await waitForText(note(id), /^Kling is rate limited\. Resumes in \d+s\.$/);
    assert.equal(await card(tab, id).locator('.status').textContent(), 'Waiting');
    assert.equal(await note(otherId).textContent(), 'not yet submitted to another');
    mock.providers = [providerState('unavailable', 'technical', 8)];
    await waitForText(note(id), /^Kling is unavailable\. Retrying (in \d+s|now)\.$/);
    mock.providers = [providerState('available', null, null)];
    await waitForText(note(id), /^not yet submitted to simulated$/);
  });

  test('hidden tab does not poll the providers', async () => {
    const mock = await mockProviders(tab, [providerState('rate_limited', 'rate_limit', 30)]);
    await tab.clock.install();
    await openPage(tab, url);
    await tab.locator('#providers li').waitFor();
    const setVisibility = state => tab.evaluate(visibility => {
      Object.defineProperty(window.document, 'visibilityState', { value: visibility, configurable: true });
      window.document.dispatchEvent(new Event('visibilitychange'));
    }, state);
    await setVisibility('hidden');
    const before = mock.requestCount;
    await tab.clock.runFor(20_000);
    assert.equal(mock.requestCount, before);
    const request = tab.waitForRequest('**/v1/providers');
    await setVisibility('visible');
    await request;
  });
});

describe('outputs', () => {
  test('proxied output plays and the details show its links, cost and moderation', async () => {
    await mockOutputs(tab);
    await openPage(tab, url);
    const id = await submitMockedJob(tab, succeededJob([proxiedOutput({ expires_at: timestampIn(3600), watermark_url: 'https://cdn.example.com/watermarked.mp4' })],
      { cost: { amount: 2.5, unit: 'unit' }, moderation: ['likeness: softened'] }));
    await waitForPlayback(tab, id);
    assert.equal(await card(tab, id).locator('.cost').textContent(), '2.5 units');
    await openDetails(tab, id);
    const properties = card(tab, id).locator('.properties');
    await properties.getByText('likeness: softened').waitFor();
    await properties.getByText(/^link valid until /).waitFor();
    assert.equal(await properties.getByRole('link', { name: 'video, 5s' }).getAttribute('href'), new URL(proxiedOutput().url, url).href);
    assert.equal(await properties.getByRole('link', { name: 'with watermark' }).getAttribute('href'), 'https://cdn.example.com/watermarked.mp4');
    assert.deepEqual(tab.consoleErrors, []);
  });

  test('costs are shown in their own unit', async () => {
    await openPage(tab, url);
    for (const [cost, expected] of [
      [{ amount: 0.25, unit: 'usd' }, '$0.25'], [{ amount: 0.0125, unit: 'usd' }, '$0.0125'], [{ amount: 0.1 + 0.2, unit: 'eur' }, '€0.30'],
      [{ amount: 1, unit: 'unit' }, '1 unit'], [{ amount: 12, unit: 'credits' }, '12 credits'], [null, ''],
    ]) {
      const id = await submitMockedJob(tab, succeededJob([], { cost }));
      assert.equal(await card(tab, id).locator('.cost').textContent(), expected);
    }
  });

  test('output flagged as not safe for work is not requested before it is revealed', async () => {
    const requests = await mockOutputs(tab);
    await openPage(tab, url);
    const id = await submitMockedJob(tab, succeededJob([proxiedOutput({ nsfw: true })]));
    await waitForText(note(id), /flagged as not safe for work/);
    const unflagged = await submitMockedJob(tab, succeededJob([proxiedOutput()]));
    await waitForPlayback(tab, unflagged);
    assert.equal(await card(tab, id).locator('video').count(), 0);
    requests.length = 0;
    await card(tab, id).getByRole('button', { name: 'Not safe for work Show' }).click();
    await waitForPlayback(tab, id);
    assert.ok(requests.length > 0);
    assert.equal(await card(tab, id).locator('.cover').isVisible(), false);
  });

  test('expired link is marked and no longer offered', async () => {
    await mockOutputs(tab);
    await openPage(tab, url);
    const id = await submitMockedJob(tab, succeededJob([proxiedOutput({ expires_at: timestampIn(6) })]));
    await card(tab, id).getByRole('link', { name: 'Open clip' }).waitFor();
    await openDetails(tab, id);
    await waitForText(card(tab, id).locator('.validity'), /^link valid until /);
    await waitForText(card(tab, id).locator('.validity'), /^link expired \(\d\d:\d\d\)$/);
    await waitForText(note(id), /link expired/);
    assert.equal(await card(tab, id).getByRole('link', { name: 'Open clip' }).count(), 0);
  });

  test('360 px wide page with long values never scrolls horizontally', async () => {
    await tab.setViewportSize({ width: 360, height: 740 });
    await mockOutputs(tab);
    await mockProviders(tab, [providerState('suspended', 'quota', 800, { title: 'Videos (OpenRouter and gateways)', balance: { amount: 0.02, unit: 'usd' } })]);
    await tab.route('**/v1/providers/*/resume', route => route.fulfill(problemResponse(403, 'forbidden', 'scope admin is required')));
    await openPage(tab, url);
    await submitMockedJob(tab, jobDocument());
    const id = await submitMockedJob(tab, succeededJob([proxiedOutput({ nsfw: true, expires_at: timestampIn(3600), watermark_url: `https://cdn.example.com/${'a'.repeat(300)}.mp4` })],
      { cost: { amount: 123456.789, unit: 'credits' }, moderation: ['x'.repeat(300)] }));
    await tab.getByRole('button', { name: /^Resume now: / }).click();
    await tab.locator('#providers .error').waitFor();
    await assertNoHorizontalScroll(tab, 'list');
    await openDetails(tab, id);
    await assertNoHorizontalScroll(tab, 'details');
  });
});

describe('cancellation', () => {
  const runningJob = () => jobDocument({ status: 'running', version: 3, progress: 42, attempt: 1, source: 'webhook' });
  /** Mocks the response to cancellations. The job is cancellable. */
  const mockNextCancel = response =>
    tab.route('**/v1/jobs/*/cancel', route => route.fulfill(route.request().method() === 'POST' ? response : { json: { cancellable: true, reason: null } }));
  const pressCancel = () => tab.getByRole('button', { name: 'Cancel job' }).click();

  test('job waiting for submission is cancelled at once', async () => {
    await openPage(tab, url);
    // A suspended provider receives no job, so the next one waits until it is cancelled.
    await waitForStatus(tab, await submitJob(tab, { scenario: 'quota' }), 'failed');
    const id = await submitJob(tab, { scenario: 'normal' });
    await openDetails(tab, id);
    await card(tab, id).locator('.status', { hasText: /^(Waiting|Retrying)/ }).waitFor();
    await pressCancel();
    await waitForStatus(tab, id, 'cancelled');
    assert.equal(await card(tab, id).locator('.danger').isVisible(), false);
  });

  test('cancel is offered only while the job can be cancelled', async () => {
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'rate-limited' });
    await openDetails(tab, id);
    const button = tab.getByRole('button', { name: 'Cancel job' });
    await button.waitFor();
    // The simulated provider, Kling, does not support cancellation.
    await waitForStatus(tab, id, 'running');
    await button.waitFor({ state: 'hidden' });
    assert.equal(await card(tab, id).locator('.cancel').isVisible(), false);
  });

  test('requested cancellation is shown until the job is final, even after a reload', async () => {
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'slow' });
    await waitForStatus(tab, id, 'running');
    const { token } = await (await fetch(`${url}demo/session`)).json();
    const job = await (await fetch(`${url}v1/jobs/${id}`, { headers: { Authorization: `Bearer ${token}` } })).json();
    await mockNextCancel({ status: 202, json: job });
    await openDetails(tab, id);
    await pressCancel();
    const status = card(tab, id).locator('.status');
    await status.filter({ hasText: 'Cancelling…' }).waitFor();
    await tab.reload();
    await status.filter({ hasText: 'Cancelling…' }).waitFor();
    await waitForStatus(tab, id, 'succeeded');
    await status.filter({ hasText: 'Succeeded' }).waitFor();
    assert.ok(!(await tab.evaluate(() => sessionStorage.getItem('progress-hub.cancels'))).includes(id));
  });

  test('confirmed cancellation shows the job as cancelled', async () => {
    await openPage(tab, url);
    const job = runningJob();
    const id = await submitMockedJob(tab, job);
    await mockNextCancel({ status: 202, json: { ...job, version: 4, status: 'cancelled', final: true, progress: null, source: 'poll', finished_at: timestampIn(0) } });
    await openDetails(tab, id);
    await pressCancel();
    await waitForStatus(tab, id, 'cancelled');
    assert.equal(await card(tab, id).locator('.status').textContent(), 'Cancelled');
  });

  for (const [code, response, expected] of [
    ['not_cancellable', problemResponse(409, 'not_cancellable', 'the provider does not support cancellation'), 'Not cancelled: the provider does not support cancellation.'],
    ['provider_error', problemResponse(502, 'provider_error', 'the provider rejected the cancel request'), 'The provider did not accept the cancellation. The job continues. Try again in a moment.'],
  ]) {
    test(`${code} is shown and the job continues`, async () => {
      await openPage(tab, url);
      const id = await submitMockedJob(tab, runningJob());
      await mockNextCancel(response);
      await openDetails(tab, id);
      await pressCancel();
      const error = card(tab, id).locator('.cancel .error:not([hidden])');
      await error.waitFor();
      assert.equal(await error.textContent(), expected);
      assert.equal(await card(tab, id).locator('.status').textContent(), 'Running');
      await tab.getByRole('button', { name: 'Cancel job' }).waitFor();
    });
  }
});

describe('rejected submission', () => {
  /** Submits the form, responds with an error, and returns the message that the form shows. */
  const submitRejected = async response => {
    await mockNextSubmit(tab, response);
    await tab.locator('#submit').click();
    await tab.locator('#submit-error').waitFor();
    return tab.locator('#submit-error').textContent();
  };

  test('budget error shows the remaining budget in local time', async () => {
    await openPage(tab, url);
    const message = await submitRejected(problemResponse(402, 'budget_exceeded', 'budgets.per_owner_day: 0.1 usd left until 2036-11-25T00:00:00.000Z, this job would cost 0.35 usd'));
    assert.match(message, /^Your daily budget: 0\.1 usd left until [^Z]*\d\d:\d\d, this job would cost 0\.35 usd\.$/);
    assert.equal(await tab.locator('#submit-retry').isVisible(), false);
    await tab.fill('#prompt', 'another');
    assert.equal(await tab.locator('#submit-error').isVisible(), false);
  });

  test('rate limit error counts down to the next permitted submission', async () => {
    await openPage(tab, url);
    const response = problemResponse(429, 'rate_limited', 'limits.submits_per_minute: limit of 30 submissions per minute exceeded', { 'Retry-After': '4' });
    assert.equal(await submitRejected(response), 'Limit of 30 submissions per minute exceeded.');
    await waitForText(tab.locator('#submit-retry'), /^Try again in \ds\.$/);
    await tab.locator('#submit-retry', { hasText: 'You can try again now.' }).waitFor({ timeout: TEST_TIMEOUT_MS });
  });

  test('invalid field is marked and focused', async () => {
    await openPage(tab, url);
    assert.equal(await submitRejected(problemResponse(400, 'invalid_request', 'prompt: must not name a model')), 'Prompt: must not name a model.');
    assert.equal(await tab.locator('#prompt').getAttribute('aria-invalid'), 'true');
    await submitRejected(problemResponse(400, 'invalid_request', 'platform: must be one of tiktok, youtube, instagram'));
    assert.equal(await tab.locator('.presets').getAttribute('aria-invalid'), 'true');
    assert.equal(await tab.locator('#prompt').getAttribute('aria-invalid'), null);
    assert.equal(await tab.evaluate(() => window.document.activeElement.name), 'platform');
  });
});
