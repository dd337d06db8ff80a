/** Starts real hubs and a real browser for the tests. Invariant: `close` stops everything that was started. */

import { spawn, execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { startProxy } from './proxy.mjs';

const BIN = process.env.PROGRESS_HUB_BIN;
const STARTUP_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 3_000;
/** Time limit for each wait on the page. */
export const TEST_TIMEOUT_MS = 40_000;

const CHROMIUM_FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** A child process and its output. */
class Process {
  #child;
  #output = '';
  #exited;

  constructor(file, args, env = {}) {
    this.#child = spawn(file, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#exited = new Promise(resolve => this.#child.once('exit', resolve));
    for (const stream of [this.#child.stdout, this.#child.stderr]) stream.on('data', data => (this.#output += data));
  }

  /** Waits until the output matches. Rejects on a timeout and when the process exits. @param {RegExp} pattern @returns {Promise<RegExpExecArray>} */
  waitForOutput(pattern) {
    return new Promise((resolve, reject) => {
      const check = () => {
        const match = pattern.exec(this.#output);
        if (match) finish(() => resolve(match));
      };
      const fail = reason => finish(() => reject(new Error(`${reason}; output:\n${this.#output}`)));
      const timer = setTimeout(() => fail(`no output matched ${pattern} within ${STARTUP_TIMEOUT_MS} ms`), STARTUP_TIMEOUT_MS);
      const onExit = () => fail('the process exited');
      const finish = settle => {
        clearTimeout(timer);
        this.#child.stdout.off('data', check);
        this.#child.stderr.off('data', check);
        this.#child.off('exit', onExit);
        settle();
      };
      this.#child.stdout.on('data', check);
      this.#child.stderr.on('data', check);
      this.#child.once('exit', onExit);
      check();
    });
  }

  /** Suspends the process with SIGSTOP. Its connections stay open. */
  freeze() {
    this.#child.kill('SIGSTOP');
  }

  thaw() {
    this.#child.kill('SIGCONT');
  }

  /** Stops the process. Sends SIGKILL if it does not exit in time. */
  async stop(signal = 'SIGTERM') {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill(signal);
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#exited;
    clearTimeout(timer);
  }
}

async function freePort() {
  const server = createServer();
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise(resolve => server.close(resolve));
  return port;
}

let browser = null;

/** Closes the browser that all tests share. */
export async function closeBrowser() {
  await browser?.close();
  browser = null;
}

/** The hubs and tabs of one test. */
export class Harness {
  #closers = [];

  /** Starts the demo. @returns {Promise<{ url: string, process: Process }>} */
  async startDemo() {
    const demo = this.#register(new Process(BIN, ['demo', '--bind', '127.0.0.1:0']));
    const [url] = await demo.waitForOutput(/http:\/\/127\.0\.0\.1:\d+\//);
    return { url, process: demo };
  }

  /**
   * Starts a configured hub with the simulator as its provider.
   * @param {{ store?: string, server?: string, socket?: string, sections?: (simulator: string) => string }} [options] `store`: store
   *   URL, by default a new SQLite file; `server`, `socket`: further lines of these sections; `sections`: further sections, from
   *   the URL of the simulator
   */
  async startHub({ store, server = '', socket = '', sections = () => '' } = {}) {
    const folder = await mkdtemp(join(tmpdir(), 'progress-hub-'));
    this.#closers.push(() => rm(folder, { recursive: true, force: true }));
    const secret = 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=';
    const simulator = this.#register(new Process(BIN, ['simulator', '--bind', '127.0.0.1:0', '--api-key', 'simulator-api-key', '--webhook-secret', secret]));
    const [provider] = await simulator.waitForOutput(/http:\/\/127\.0\.0\.1:\d+/);
    const port = await freePort();
    const config = join(folder, 'hub.toml');
    await writeFile(config, `
[server]
bind = "127.0.0.1:${port}"
${server.includes('public_url') ? '' : `public_url = "http://127.0.0.1:${port}"`}
${server}
[socket]
${socket}
[auth]
hs256_secrets = ["browser-tests-signing-secret-0123456789abcdef"]
[store]
url = "${store ?? `sqlite://${join(folder, 'hub.db')}`}"
[callback]
secret = "browser-tests-callback-secret-0123456789abcdef"
[defaults]
provider = "kling"
[providers.kling]
spec = "kling"
base_url = "${provider}"
api_key = "simulator-api-key"
webhook_secrets = ["${secret}"]
poll_after = "3s"
poll_every = "1s"
${sections(provider)}
`);
    const hub = new HubProcess(config, `http://127.0.0.1:${port}/`);
    this.#closers.push(() => hub.process?.stop());
    await hub.start();
    return hub;
  }

  /**
   * Opens a tab in a new browser profile. `tab.consoleErrors` collects uncaught exceptions and console errors.
   * @param {import('playwright-core').BrowserContextOptions} [options]
   */
  async newTab(options = {}) {
    browser ??= await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: CHROMIUM_FLAGS });
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    this.#closers.push(() => context.close());
    context.setDefaultTimeout(TEST_TIMEOUT_MS);
    const tab = await context.newPage();
    tab.consoleErrors = [];
    tab.on('pageerror', error => tab.consoleErrors.push(String(error.stack)));
    tab.on('console', message => {
      if (message.type() === 'error') tab.consoleErrors.push(`${message.text()} ${message.location().url}`);
    });
    return tab;
  }

  /** Starts a reverse proxy. @param {string} target @param {Parameters<typeof startProxy>[1]} [options] @returns {Promise<string>} its URL */
  async startProxy(target, options) {
    const proxy = await startProxy(target, options);
    this.#closers.push(proxy.close);
    return proxy.url;
  }

  /** Serves one HTML page on a loopback port of its own. @param {string} html @returns {Promise<string>} its URL */
  async servePage(html) {
    const server = createHttpServer((_, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end(html));
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
    this.#closers.push(() => new Promise(resolve => {
      server.close(resolve);
      server.closeAllConnections();
    }));
    return `http://127.0.0.1:${server.address().port}/`;
  }

  async close() {
    for (const close of this.#closers.reverse()) await close();
  }

  #register(child) {
    this.#closers.push(() => child.stop());
    return child;
  }
}

/** A configured hub that can be killed and restarted with the same port and store. */
class HubProcess {
  constructor(config, url) {
    this.config = config;
    this.url = url;
    this.process = null;
  }

  async start() {
    this.process = new Process(BIN, ['serve', '--config', this.config]);
    await this.process.waitForOutput(/http:\/\/127\.0\.0\.1:\d+/);
  }

  async kill() {
    await this.process.stop('SIGKILL');
  }

  /** Sends an update of a worker job. @param {string} id @param {object} update */
  async pushUpdate(id, update) {
    const headers = { Authorization: `Bearer ${await this.token('15m', 'jobs:publish')}`, 'Content-Type': 'application/json' };
    const response = await fetch(`${this.url}v1/jobs/${id}/updates`, { method: 'POST', headers, body: JSON.stringify(update) });
    if (!response.ok) throw new Error(`POST /v1/jobs/${id}/updates: HTTP ${response.status} ${await response.text()}`);
  }

  /** Creates a token for the subject `alice`. @returns {Promise<string>} */
  async token(ttl = '15m', scope = 'jobs:read jobs:write') {
    const args = ['token', '--config', this.config, '--sub', 'alice', '--scope', scope, '--ttl', ttl];
    const { stdout } = await promisify(execFile)(BIN, args);
    return stdout.trim();
  }

  /** Runs a shell command in the folder of the configuration file. @param {string} command @param {Record<string, string>} [env] */
  async runCommand(command, env = {}) {
    const path = `${dirname(resolve(BIN))}:${process.env.PATH}`;
    const { stdout } = await promisify(execFile)('sh', ['-c', command], { cwd: dirname(this.config), env: { ...process.env, PATH: path, ...env } });
    return stdout.trim();
  }

  /** Registers worker jobs of `alice`, without a provider. @param {number} count @param {(n: number) => object} fields @returns {Promise<string[]>} ids */
  async registerJobs(count, fields = () => ({})) {
    const token = await this.token('15m', 'jobs:publish');
    const ids = [];
    for (let n = 0; n < count; n++) {
      const response = await fetch(`${this.url}v1/jobs`, {
        method: 'POST',
        headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
        body: JSON.stringify({ owner: 'alice', ...fields(n) }),
      });
      if (response.status !== 201) throw new Error(`POST /v1/jobs: HTTP ${response.status} ${await response.text()}`);
      ids.push((await response.json()).id);
    }
    return ids;
  }

  /** Submits a job over HTTP. @param {string} token @param {object} request */
  async submit(token, request) {
    const response = await fetch(`${this.url}v1/videos`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json', 'Idempotency-Key': crypto.randomUUID() },
      body: JSON.stringify({ model: 'kling-2.6', duration: 5, ...request }),
    });
    if (response.status !== 202) throw new Error(`POST /v1/videos: HTTP ${response.status} ${await response.text()}`);
    return response.json();
  }
}
