/** The page when the hub says what a demo hardly ever brings about: single answers are stood in for, all else is real. */

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';

import { closeBrowser, House, PATIENCE_MS } from './harness.mjs';
import { behindKey, document, finished, inSeconds, nextOrderIs, ordered, outputsAreServed, problem, providersAre, unwell } from './mocks.mjs';
import { arrive, card, comesTo, fitsItsWidth, open, plays, render } from './page_helpers.mjs';

let house;
let tab;
let url;

before(() => assert.ok(process.env.PROGRESS_HUB_BIN, 'PROGRESS_HUB_BIN names the binary to test'));
beforeEach(async () => {
  house = new House();
  ({ url } = await house.demo());
  tab = await house.tab();
});
afterEach(() => house.close());
after(closeBrowser);

/** The text of an element comes to be this. */
async function says(locator, pattern) {
  const words = await locator.textContent();
  if (!pattern.test(words)) await locator.filter({ hasText: pattern }).waitFor();
}

function note(id) {
  return card(tab, id).locator('.note');
}

describe('providers', () => {
  test('where all are well, nothing is said', async () => {
    const told = await providersAre(tab, [unwell('open', null, null)]);
    await arrive(tab, url);
    const id = await render(tab);
    await comesTo(tab, id, 'succeeded');
    assert.ok(told.asked > 0);
    assert.equal(await tab.locator('#providers').isVisible(), false);
    assert.deepEqual(tab.complaints, []);
  });

  test('each that is not well has a line, which counts down and goes', async () => {
    const told = await providersAre(tab, [
      unwell('paused', 'rate_limit', 30),
      unwell('stopped', 'quota', null, { name: 'fal', title: 'fal', balance: { amount: 0.02, unit: 'usd' } }),
      unwell('failing', 'technical', 8, { name: 'runway', title: 'Runway' }),
      unwell('open', null, null, { name: 'luma', title: 'Luma' }),
    ]);
    await arrive(tab, url);
    const lines = tab.locator('#providers li');
    await lines.nth(2).waitFor();
    assert.equal(await lines.count(), 3);
    await says(lines.nth(0).locator('span'), /^Kling is paused: too many requests; goes on in \d+ s$/);
    await says(lines.nth(1).locator('span'), /^fal is stopped: the account has no credit left$/);
    await says(lines.nth(1).locator('small'), /^since \d\d:\d\d, US\$ 0\.02 left$/);
    await says(lines.nth(2).locator('span'), /^Runway is failing: trying again (in \d+ s|now)$/);
    await tab.locator('#say', { hasText: 'Kling is paused: too many requests.' }).waitFor();
    const before = await lines.nth(0).textContent();
    await tab.waitForFunction(words => window.document.querySelector('#providers li').textContent !== words, before);
    told.providers = [unwell('open', null, null)];
    await tab.locator('#providers').waitFor({ state: 'hidden' });
    await tab.locator('#say', { hasText: 'Kling is open again.' }).waitFor();
  });

  test('only whoever may say that one is mended has the button, and a refusal is told', async () => {
    const told = await providersAre(tab, [unwell('stopped', 'quota', 800)]);
    await arrive(tab, url);
    const line = tab.locator('#providers li');
    await line.waitFor();
    const button = tab.getByRole('button', { name: 'Try Kling again now' });
    assert.equal(await button.count(), 0);
    told.providers = [unwell('stopped', 'quota', 800, { balance: null })];
    await tab.route('**/v1/providers/simulated/resume', route => route.fulfill(problem(403, 'forbidden', 'the scope admin is needed')), { times: 1 });
    await button.click();
    await says(line.locator('.problem'), /^This token may not do that\.$/);
    await says(line.locator('span'), /^Kling is stopped/);
    await tab.route('**/v1/providers/simulated/resume', route => route.fulfill({ json: unwell('open', null, null, { since: null, balance: null }) }), { times: 1 });
    await button.click();
    await says(line.locator('span'), /^Kling is open again/);
    assert.equal(await line.locator('.problem').isVisible(), false);
    // The hub has tried, and it is as it was.
    await says(line.locator('span'), /^Kling is stopped: the account has no credit left/);
    await tab.locator('#say', { hasText: 'Kling is stopped' }).waitFor();
    await button.waitFor();
  });

  test('two accounts at one provider are told apart', async () => {
    await providersAre(tab, [unwell('stopped', 'auth', null, { name: 'first' }), unwell('open', null, null, { name: 'second' })]);
    await arrive(tab, url);
    await tab.getByText("Kling (first) is stopped: it refuses the hub's key").waitFor();
  });

  test('a job that waits for one says so', async () => {
    const told = await providersAre(tab, [unwell('paused', 'rate_limit', 30)]);
    await arrive(tab, url);
    const id = await ordered(tab, document());
    const elsewhere = await ordered(tab, document({ provider: 'another' }));
    await says(note(id), /^waits for Kling: too many requests; goes on in \d+ s$/);
    assert.equal(await card(tab, id).locator('.word').textContent(), 'Waiting');
    assert.equal(await note(elsewhere).textContent(), 'next it goes to another');
    told.providers = [unwell('failing', 'technical', 8)];
    await says(note(id), /^waits for Kling: it is failing; trying again (in \d+ s|now)$/);
    told.providers = [unwell('open', null, null)];
    await says(note(id), /^next it goes to simulated$/);
  });

  test('a tab that nobody sees asks nothing', async () => {
    const told = await providersAre(tab, [unwell('paused', 'rate_limit', 30)]);
    await tab.clock.install();
    await arrive(tab, url);
    await tab.locator('#providers li').waitFor();
    const look = state => tab.evaluate(visible => {
      Object.defineProperty(window.document, 'visibilityState', { value: visible, configurable: true });
      window.document.dispatchEvent(new Event('visibilitychange'));
    }, state);
    await look('hidden');
    const before = told.asked;
    await tab.clock.runFor(20_000);
    assert.equal(told.asked, before);
    const asked = tab.waitForRequest('**/v1/providers');
    await look('visible');
    await asked;
  });
});

describe('results', () => {
  test('an output behind the key just plays, and the detail tells what there is to know', async () => {
    await outputsAreServed(tab);
    await arrive(tab, url);
    const id = await ordered(tab, finished([behindKey({ expires_at: inSeconds(3600), watermark_url: 'https://cdn.example.com/marked.mp4' })],
      { cost: { amount: 2.5, unit: 'unit' }, moderation: ['likeness: softened'] }));
    await plays(tab, id);
    assert.equal(await card(tab, id).locator('.cost').textContent(), '2.5 units');
    await open(tab, id);
    const about = card(tab, id).locator('.about');
    await about.getByText('likeness: softened').waitFor();
    await about.getByText(/^link works until /).waitFor();
    assert.equal(await about.getByRole('link', { name: 'video, 5 s' }).getAttribute('href'), new URL(behindKey().url, url).href);
    assert.equal(await about.getByRole('link', { name: 'with watermark' }).getAttribute('href'), 'https://cdn.example.com/marked.mp4');
    assert.deepEqual(tab.complaints, []);
  });

  test('costs are told in their own unit', async () => {
    await arrive(tab, url);
    for (const [cost, words] of [
      [{ amount: 0.25, unit: 'usd' }, 'US$ 0.25'], [{ amount: 0.0125, unit: 'usd' }, 'US$ 0.0125'], [{ amount: 0.1 + 0.2, unit: 'eur' }, '€ 0.30'],
      [{ amount: 1, unit: 'unit' }, '1 unit'], [{ amount: 12, unit: 'credits' }, '12 credits'], [null, ''],
    ]) {
      const id = await ordered(tab, finished([], { cost }));
      assert.equal(await card(tab, id).locator('.cost').textContent(), words);
    }
  });

  test('what is not safe for work is not even asked for before somebody wants to see it', async () => {
    const asked = await outputsAreServed(tab);
    await arrive(tab, url);
    const id = await ordered(tab, finished([behindKey({ nsfw: true })]));
    await says(note(id), /marked as not safe for work/);
    const seen = await ordered(tab, finished([behindKey()]));
    await plays(tab, seen);
    assert.equal(await card(tab, id).locator('video').count(), 0);
    asked.length = 0;
    await card(tab, id).getByRole('button', { name: 'Not safe for work Show' }).click();
    await plays(tab, id);
    assert.ok(asked.length > 0);
    assert.equal(await card(tab, id).locator('.cover').isVisible(), false);
  });

  test('a link says when its time is over', async () => {
    await outputsAreServed(tab);
    await arrive(tab, url);
    const id = await ordered(tab, finished([behindKey({ expires_at: inSeconds(6) })]));
    await card(tab, id).getByRole('link', { name: 'Open clip' }).waitFor();
    await open(tab, id);
    await says(card(tab, id).locator('.until'), /^link works until /);
    await says(card(tab, id).locator('.until'), /^its link has ended \(\d\d:\d\d\)$/);
    await says(note(id), /its link has ended/);
    assert.equal(await card(tab, id).getByRole('link', { name: 'Open clip' }).count(), 0);
  });

  test('360 px hold all of it', async () => {
    await tab.setViewportSize({ width: 360, height: 740 });
    await outputsAreServed(tab);
    await providersAre(tab, [unwell('stopped', 'quota', 800, { title: 'Videos (OpenRouter and gateways)', balance: { amount: 0.02, unit: 'usd' } })]);
    await tab.route('**/v1/providers/*/resume', route => route.fulfill(problem(403, 'forbidden', 'the scope admin is needed')));
    await arrive(tab, url);
    await ordered(tab, document());
    const id = await ordered(tab, finished([behindKey({ nsfw: true, expires_at: inSeconds(3600), watermark_url: `https://cdn.example.com/${'a'.repeat(300)}.mp4` })],
      { cost: { amount: 123456.789, unit: 'credits' }, moderation: ['x'.repeat(300)] }));
    await tab.getByRole('button', { name: /again now$/ }).click();
    await tab.locator('#providers .problem').waitFor();
    await fitsItsWidth(tab, 'list');
    await open(tab, id);
    await fitsItsWidth(tab, 'opened');
  });
});

describe('cancelling', () => {
  const running = () => document({ status: 'running', version: 3, progress: 42, attempt: 1, source: 'webhook' });
  const answers = answer => tab.route('**/v1/jobs/*/cancel', route => route.fulfill(answer), { times: 1 });
  const press = () => tab.getByRole('button', { name: 'Cancel this job' }).click();

  test('a job that still waits is cancelled at once', async () => {
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'rate-limited' });
    await open(tab, id);
    await card(tab, id).locator('.word', { hasText: /^Waiting/ }).waitFor();
    await press();
    await comesTo(tab, id, 'cancelled');
    assert.equal(await card(tab, id).locator('.danger').isVisible(), false);
  });

  test('while the provider is asked the row says so, a reload included, until the job has an end', async () => {
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'slow' });
    await comesTo(tab, id, 'running');
    await open(tab, id);
    const { token } = await (await fetch(`${url}demo/session`)).json();
    const job = await (await fetch(`${url}v1/jobs/${id}`, { headers: { Authorization: `Bearer ${token}` } })).json();
    await answers({ status: 202, json: job });
    await press();
    const word = card(tab, id).locator('.word');
    await word.filter({ hasText: 'Cancelling…' }).waitFor();
    await tab.reload();
    await word.filter({ hasText: 'Cancelling…' }).waitFor();
    await comesTo(tab, id, 'succeeded');
    await word.filter({ hasText: 'Finished' }).waitFor();
    assert.ok(!(await tab.evaluate(() => sessionStorage.getItem('progress-hub.cancels'))).includes(id));
  });

  test('a cancel confirmed is a cancelled job', async () => {
    await arrive(tab, url);
    const job = running();
    const id = await ordered(tab, job);
    await open(tab, id);
    await answers({ status: 202, json: { ...job, version: 4, status: 'cancelled', final: true, progress: null, source: 'poll', finished_at: inSeconds(0) } });
    await press();
    await comesTo(tab, id, 'cancelled');
    assert.equal(await card(tab, id).locator('.word').textContent(), 'Cancelled');
  });

  for (const [why, answer, words] of [
    ['cannot', problem(409, 'not_cancellable', "its provider can't cancel a job"), "Not cancelled: its provider can't cancel a job."],
    ['does not', problem(502, 'provider_error', 'the provider did not cancel the job'), 'The provider did not agree to cancel it, so it goes on. Try again in a moment.'],
  ]) {
    test(`a provider that ${why} is told, and the job goes on`, async () => {
      await arrive(tab, url);
      const id = await ordered(tab, running());
      await open(tab, id);
      await answers(answer);
      await press();
      const said = card(tab, id).locator('.do .problem:not([hidden])');
      await said.waitFor();
      assert.equal(await said.textContent(), words);
      assert.equal(await card(tab, id).locator('.word').textContent(), 'Running');
      await tab.getByRole('button', { name: 'Cancel this job' }).waitFor();
    });
  }
});

describe('an order that is not taken', () => {
  const refused = async answer => {
    await nextOrderIs(tab, answer);
    await tab.locator('#submit').click();
    await tab.locator('#submit-problem').waitFor();
    return tab.locator('#submit-problem').textContent();
  };

  test('a budget says what is left', async () => {
    await arrive(tab, url);
    const words = await refused(problem(402, 'budget_exceeded', 'budgets.per_owner_day: 0.1 usd are left until 2036-11-25T00:00:00.000Z, and this job would cost 0.35 usd'));
    assert.match(words, /^Your budget for today: 0\.1 usd are left until [^Z]*\d\d:\d\d, and this job would cost 0\.35 usd\.$/);
    assert.equal(await tab.locator('#submit-retry').isVisible(), false);
    await tab.fill('#prompt', 'another');
    assert.equal(await tab.locator('#submit-problem').isVisible(), false);
  });

  test('too many counts down to when the next is taken', async () => {
    await arrive(tab, url);
    assert.equal(await refused(problem(429, 'rate_limited', 'limits.submits_per_minute: an owner may submit 30 jobs in a minute', { 'Retry-After': '4' })), 'An owner may submit 30 jobs in a minute.');
    await says(tab.locator('#submit-retry'), /^Try again in \d s\.$/);
    await tab.locator('#submit-retry', { hasText: 'You can try again now.' }).waitFor({ timeout: PATIENCE_MS });
  });

  test('a field is marked and has the focus', async () => {
    await arrive(tab, url);
    assert.equal(await refused(problem(400, 'invalid_request', 'prompt: must name no model')), 'Prompt: must name no model.');
    assert.equal(await tab.locator('#prompt').getAttribute('aria-invalid'), 'true');
    await refused(problem(400, 'invalid_request', 'platform: must be one of tiktok, youtube, instagram'));
    assert.equal(await tab.locator('.presets').getAttribute('aria-invalid'), 'true');
    assert.equal(await tab.locator('#prompt').getAttribute('aria-invalid'), null);
    assert.equal(await tab.evaluate(() => window.document.activeElement.name), 'platform');
  });
});
