/**
 * The signed-in user and the connection to the hub.
 *
 * Invariant: a token is stored only in this tab's session storage, and is removed when the hub rejects it or the user
 * signs out.
 *
 * @module
 */

import { ProgressHub, claimsOf } from '../progress-hub.js';
import { HUB_URL, hubUrl } from './address.js';
import { Permissions } from './permissions.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').State} State */
/** @typedef {{ name: string, title: string, expect: string }} Scenario */
/** @typedef {{ token: string, owner: string, provider: string, model: string, scenarios: Scenario[] }} Demo */
/**
 * @typedef {object} SessionEvents
 * @property {(demo: Demo | null) => void} onStarted called once the hub responded; null if it is not a demo
 * @property {(owner: string, isOtherOwner: boolean) => void} onSignedIn
 * @property {() => void} onSignedOut called when the user signs out, but not when the token expires
 * @property {(state: State, before: State) => void} onState
 * @property {(job: Job) => void} onJob
 */

const TOKEN_KEY = 'progress-hub.token';
const RETRY_BASE_MS = 500;
const MAX_RETRY_MS = 10_000;

export class Session {
  /** @type {ProgressHub | null} */ hub = null;
  /** @type {Demo | null} */ demo = null;
  /** @type {State} */ state = { name: 'connecting', attempt: 0, retryAt: null, since: Date.now(), reason: null };
  /** What the token allows. */
  permissions = new Permissions({});
  #events;
  #owner = '';

  /** @param {SessionEvents} events */
  constructor(events) {
    this.#events = events;
  }

  /** Returns the hub's current time in milliseconds. */
  now() {
    return this.hub?.now() ?? Date.now();
  }

  /** Whether requests to the hub can succeed. They can without live updates, too. */
  get isReachable() {
    return this.state.name === 'live' || this.state.reason === 'refused';
  }

  async start() {
    this.demo = await this.#waitForHub();
    this.#events.onStarted(this.demo);
    if (this.demo) {
      let initialToken = /** @type {string | null} */ (this.demo.token);
      // The first call uses the token that was just read. Every later call reads a new demo session.
      return this.#connect(async () => {
        const token = initialToken ?? (await readDemoSession())?.token ?? null;
        initialToken = null;
        return token;
      }, claimsOf(this.demo.token));
    }
    const token = sessionStorage.getItem(TOKEN_KEY);
    if (token) this.#connect(token, claimsOf(token));
    else this.#setState(signedOut());
  }

  /** @param {string} token */
  signIn(token) {
    sessionStorage.setItem(TOKEN_KEY, token);
    this.#connect(token, claimsOf(token));
  }

  signOut() {
    const { hub } = this;
    this.hub = null;
    hub?.close();
    this.#events.onSignedOut();
    this.#setState(signedOut());
  }

  /** Retries with backoff until the hub responds. @returns {Promise<Demo | null>} */
  async #waitForHub() {
    const since = Date.now();
    for (let attempt = 1; ; attempt++) {
      try {
        return await readDemoSession();
      } catch {
        const delayMs = Math.min(RETRY_BASE_MS * 2 ** attempt, MAX_RETRY_MS);
        this.#setState({ name: 'reconnecting', attempt, retryAt: Date.now() + delayMs, since, reason: 'unreachable' });
        await new Promise(resolve => setTimeout(resolve, delayMs));
      }
    }
  }

  /** @param {import('../progress-hub.js').Token} token @param {Record<string, unknown>} claims of the token */
  #connect(token, claims) {
    const owner = String(claims.sub ?? '');
    this.permissions = new Permissions(claims);
    this.hub?.close();
    const hub = this.hub = new ProgressHub({ url: HUB_URL.href, token });
    this.#events.onSignedIn(owner, owner !== this.#owner);
    this.#owner = owner;
    hub.on('state', state => {
      if (this.hub === hub) this.#setState(state);
    });
    hub.watchMine(job => this.#events.onJob(job));
  }

  /** @param {State} state */
  #setState(state) {
    const before = this.state;
    this.state = state;
    if (state.name === 'signed_out') sessionStorage.removeItem(TOKEN_KEY);
    this.#events.onState(state, before);
  }
}

/** @returns {Promise<Demo | null>} null if this hub is not a demo; rejects if there is no valid response */
async function readDemoSession() {
  const response = await fetch(hubUrl('demo/session'), { cache: 'no-store' });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`GET /demo/session: HTTP ${response.status}`);
  return response.json();
}

/** @returns {State} */
function signedOut() {
  return { name: 'signed_out', attempt: 0, retryAt: null, since: Date.now(), reason: 'no_token' };
}
