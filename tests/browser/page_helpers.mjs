/** Actions on the page, and waits for what it shows. */

import assert from 'node:assert/strict';

import { TEST_TIMEOUT_MS } from './harness.mjs';

/** Opens the page and waits until it is connected. */
export async function openPage(tab, url) {
  await tab.goto(url);
  await waitForState(tab, 'live');
}

/** Signs in with a token, and waits until the page is connected. @returns {Promise<import('playwright-core').Page>} the tab */
export async function signIn(tab, url, token) {
  await tab.goto(url);
  await tab.fill('#token', token);
  await tab.keyboard.press('Enter');
  await waitForState(tab, 'live');
  return tab;
}

/** Waits for a state of the connection. */
export function waitForState(tab, state) {
  return tab.locator(`body[data-state="${state}"]`).waitFor();
}

/** Submits the form. @returns {Promise<string>} the job's id */
export async function submitJob(tab, { scenario, prompt } = {}) {
  if (prompt) await tab.fill('#prompt', prompt);
  if (scenario) {
    if (!(await tab.locator('#scenarios').evaluate(details => details.open))) await tab.locator('#scenarios summary').click();
    await tab.locator(`[name=scenario][value="${scenario}"]`).check();
  }
  const responded = tab.waitForResponse(response => response.request().method() === 'POST' && response.url().endsWith('/v1/videos'));
  await tab.locator('#submit').click();
  const job = await (await responded).json();
  await card(tab, job.id).waitFor();
  return job.id;
}

export function card(tab, id) {
  return tab.locator(`[id="${id}"]`);
}

export function waitForStatus(tab, id, status) {
  return tab.locator(`[id="${id}"][data-status="${status}"]`).waitFor({ timeout: TEST_TIMEOUT_MS });
}

/** Waits until the video of a job plays. */
export async function waitForPlayback(tab, id) {
  await tab.waitForFunction(job => {
    const video = document.getElementById(job)?.querySelector('video');
    return video && video.videoWidth > 0 && video.currentTime > 0.1 && !video.paused;
  }, id);
}

export async function openDetails(tab, id) {
  await card(tab, id).locator('.title').click();
  await card(tab, id).locator('.detail').waitFor();
}

/** @param {string} when description of the page's state, for the failure message */
export async function assertNoHorizontalScroll(tab, when) {
  const { content, window } = await tab.evaluate(() => ({ content: document.documentElement.scrollWidth, window: innerWidth }));
  assert.ok(content <= window, `${when}: ${content} px wide in a window of ${window} px`);
}

/** Waits until the text of an element matches. */
export async function waitForText(locator, pattern) {
  const content = await locator.textContent();
  if (!pattern.test(content)) await locator.filter({ hasText: pattern }).waitFor();
}
