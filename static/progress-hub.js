/**
 * The browser's side of a progress hub: one socket for all that a page watches, and the HTTP calls beside it.
 *
 *     import { ProgressHub } from '/progress-hub.js';
 *     const hub = new ProgressHub({ token: () => fetch('/my/hub-token').then(r => r.text()) });
 *     const stop = hub.watch('job_01K…', job => bar.value = job.progress ?? 0);
 *
 * Invariant: the document of a job is shown in rising versions only, whatever the network does in between.
 *
 * @module
 */

/** @typedef {'accepted' | 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'} Status */
/** @typedef {'api' | 'submit' | 'webhook' | 'poll' | 'push' | 'deadline'} Source */
/** @typedef {'safety' | 'invalid_input' | 'quota' | 'rate_limit' | 'auth' | 'technical' | 'timeout' | 'submission_unknown' | 'result_expired'} ErrorKind */
/** @typedef {{ type: string, url: string, duration?: number | null, expires_at?: string | null, watermark_url?: string, nsfw?: boolean }} Output `url` may be relative to the hub's address */
/** @typedef {{ kind: ErrorKind, message: string, provider_code?: string | null, retryable: boolean }} JobError */
/** @typedef {{ amount: number, unit: string }} Cost `unit`: a currency in lower case, or the provider's own word */
/**
 * The document of a job, as the hub stores and sends it. Times are RFC 3339.
 * @typedef {object} Job
 * @property {string} id
 * @property {number} version rises by one with every change
 * @property {Status} status
 * @property {boolean} final nothing changes any more
 * @property {number | null} progress percent, null where the provider tells none
 * @property {number | null} queue_position
 * @property {string | null} stage
 * @property {string} owner
 * @property {string | null} provider null for a worker's own job
 * @property {string | null} provider_task_id
 * @property {string | null} model
 * @property {Source} source who told the hub of this version
 * @property {string} created_at
 * @property {string} updated_at
 * @property {string | null} started_at
 * @property {string | null} finished_at
 * @property {string | null} deadline_at
 * @property {number | null} eta_seconds
 * @property {Output[]} outputs
 * @property {JobError | null} error
 * @property {number} attempt 0 before the first try
 * @property {string | null} next_attempt_at
 * @property {Cost | null} cost what the provider charged, where it tells
 * @property {string[]} moderation what the provider's moderation remarked, in its own words
 * @property {Record<string, unknown>} metadata
 */
/**
 * How a provider is: `open`, or left alone for a `reason`, from `since` on, with the next request at `until`.
 * @typedef {object} Provider
 * @property {string} name
 * @property {string} title
 * @property {'open' | 'paused' | 'stopped' | 'failing'} state
 * @property {ErrorKind | null} reason
 * @property {string | null} since
 * @property {string | null} until
 * @property {{ amount: number, unit: string | null } | null} [balance] what is left on the account; only admins are told it, null where the provider does not tell
 */
/**
 * How the connection is. `since`, `retryAt`: milliseconds of this machine's clock.
 * `closed` with the reason `idle`: nothing is watched, so nothing is connected.
 * @typedef {object} State
 * @property {'connecting' | 'live' | 'reconnecting' | 'degraded' | 'signed_out' | 'closed'} name
 * @property {number} attempt how many tries since the last connection that held
 * @property {number | null} retryAt when the next try starts; null while one is under way
 * @property {number} since
 * @property {string | null} reason
 */
/** @typedef {(job: Job) => void} Show */
/** @typedef {(problem: HubError) => void} Problem */
/** @typedef {string | (() => string | null | Promise<string | null>)} Token a function is called anew for each fresh token; null: nobody is signed in */
/** @typedef {{ show: Show, problem?: Problem, ready: boolean }} Watcher */
/** @typedef {typeof TIMERS_OF_A_SOCKET[number]} TimerName */
/** @typedef {{ job: Job | null, watchers: Set<Watcher>, mine: boolean, refused: boolean }} Topic */

const SUBPROTOCOL = 'progress-hub.v1';
const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 30_000;
/** A connection that held this long forgives the failures before it. */
const STABLE_AFTER_MS = 10_000;
/** From the first byte to `hello`. */
const WELCOME_WITHIN_MS = 15_000;
/** After a sleep: how long an old socket has to prove that it is alive. */
const PROOF_WITHIN_MS = 5_000;
/** A timer this late means that the tab slept. */
const SLEPT_MS = 3_000;
const RENEW_RETRY_MS = 5_000;
/** A token is renewed when a fifth of its life is left, at most this long before its end. */
const RENEW_LEAD_MS = 120_000;
const TIMER_MAX_MS = 2 ** 31 - 1;
const TIMERS_OF_A_SOCKET = /** @type {const} */ (['retry', 'welcome', 'stable', 'pulse', 'proof', 'renew', 'resubscribe']);
/** The hub's default bound on explicit subscriptions of one socket; further ones wait for a place. A hub with a lower bound says so. */
const MAX_SUBSCRIPTIONS = 256;
/** Keeps a frame well under the hub's 16 KiB. */
const IDS_PER_FRAME = 128;
/** With nothing watched, the socket is given back after this time. */
const IDLE_MS = 30_000;

/** What a call or a subscription failed with; `code` is the hub's stable word, or `unreachable`, `signed_out`, `closed`. */
export class HubError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ status?: number, retryable?: boolean, retryAfter?: number | null }} [more]
   */
  constructor(code, message, { status = 0, retryable = false, retryAfter = null } = {}) {
    super(message);
    this.name = 'HubError';
    this.code = code;
    /** HTTP status, 0 where there is none. */
    this.status = status;
    this.retryable = retryable;
    /** Seconds, null where the hub named none. */
    this.retryAfter = retryAfter;
  }
}

export class ProgressHub {
  /** @type {URL} */ #base;
  /** @type {Token} */ #token;
  /** @type {typeof WebSocket} */ #WebSocket;

  /** @type {Map<string, Topic>} */ #topics = new Map();
  /** @type {Set<Watcher>} */ #mine = new Set();
  /** @type {Set<(state: State) => void>} */ #listeners = new Set();
  /** @type {State} */ #state = { name: 'closed', attempt: 0, retryAt: null, since: Date.now(), reason: 'idle' };

  /** @type {WebSocket | null} */ #socket = null;
  /** Rises with every socket, so that late callbacks of an older one are void. */
  #generation = 0;
  #welcomed = false;
  #attempt = 0;
  /** The hub itself named the time of the next try: nothing else hurries it. */
  #held = false;
  #freshTried = false;
  #ended = false;
  #nextId = 1;
  /** Hub's clock minus this machine's. */
  #clockOffset = 0;
  #heartbeat = 25_000;
  #lastFrame = 0;

  /** Ids to subscribe when there is a socket and a place. @type {Set<string>} */ #wanted = new Set();
  /** Ids subscribed on this socket. @type {Set<string>} */ #subscribed = new Set();
  /** Ids to give back. @type {Set<string>} */ #leaving = new Set();
  #feedSubscribed = false;
  #places = MAX_SUBSCRIPTIONS;
  /** Subscribes without an answer yet. @type {Map<number, string[] | 'mine'>} */ #asked = new Map();
  #flushing = false;

  /** @type {string | null} */ #cached = null;
  /** @type {Promise<string | null> | null} */ #fetching = null;
  /** When the token of this socket ends, by this machine's clock. @type {number | null} */ #expiresAt = null;
  #renewAt = 0;
  #renewing = false;

  /** @type {Partial<Record<TimerName | 'idle', ReturnType<typeof setTimeout>>>} */ #timers = {};

  /**
   * Nothing is connected before the first watch.
   * @param {{ url?: string, token: Token, WebSocket?: typeof WebSocket }} options `url`: where the hub is; by default where the page is
   */
  constructor({ url = '/', token, WebSocket: Socket = globalThis.WebSocket }) {
    const base = new URL(url, globalThis.location?.href);
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    this.#base = base;
    this.#token = token;
    this.#WebSocket = Socket;
    globalThis.addEventListener?.('online', this.#wake);
    globalThis.addEventListener?.('pageshow', this.#wake);
    globalThis.document?.addEventListener('visibilitychange', this.#wake);
  }

  // ---- what a page uses

  /** How the connection is now. */
  get state() {
    return this.#state;
  }

  /** The hub's clock, in milliseconds: for ages and countdowns that a wrong local clock can't spoil. */
  now() {
    return Date.now() + this.#clockOffset;
  }

  /**
   * Shows the newest document of a job, now and whenever it changes.
   * @param {string} jobId
   * @param {Show} show
   * @param {Problem} [problem] told when the hub refuses this job (`not_found`) or lets nobody in
   * @returns {() => void} ends it
   */
  watch(jobId, show, problem) {
    const topic = this.#topic(jobId);
    /** @type {Watcher} */
    const watcher = { show, problem, ready: false };
    topic.watchers.add(watcher);
    topic.refused = false;
    if (!topic.job?.final && !this.#subscribed.has(jobId)) this.#wanted.add(jobId);
    this.#leaving.delete(jobId);
    queueMicrotask(() => {
      if (!topic.watchers.has(watcher)) return;
      watcher.ready = true;
      if (topic.job) call(show, topic.job);
    });
    this.#attend(watcher);
    return () => {
      if (!topic.watchers.delete(watcher) || topic.watchers.size) return;
      this.#leave(jobId);
      if (!topic.mine || !this.#mine.size) this.#topics.delete(jobId);
      this.#settle();
    };
  }

  /**
   * Shows all jobs of whoever the token names, those to come too.
   * @param {Show} show
   * @param {Problem} [problem]
   * @returns {() => void} ends it
   */
  watchMine(show, problem) {
    /** @type {Watcher} */
    const watcher = { show, problem, ready: false };
    this.#mine.add(watcher);
    queueMicrotask(() => {
      if (!this.#mine.has(watcher)) return;
      watcher.ready = true;
      for (const { job, mine } of [...this.#topics.values()]) if (mine && job) call(show, job);
    });
    this.#attend(watcher);
    return () => {
      if (!this.#mine.delete(watcher) || this.#mine.size) return;
      if (this.#feedSubscribed) this.#send({ type: 'unsubscribe', id: this.#nextId++, feed: 'mine' });
      this.#feedSubscribed = false;
      for (const [id, topic] of this.#topics) {
        topic.mine = false;
        if (!topic.watchers.size) this.#topics.delete(id);
      }
      this.#settle();
    };
  }

  /**
   * The final document of a job, however it ended.
   * @param {string} jobId
   * @returns {Promise<Job>} rejects with a {@link HubError} when the job is not to be seen, or nobody is signed in
   */
  finished(jobId) {
    return new Promise((resolve, reject) => {
      const stop = this.watch(jobId, job => {
        if (!job.final) return;
        stop();
        resolve(job);
      }, problem => {
        stop();
        reject(problem);
      });
    });
  }

  /**
   * Submits a job through the hub.
   * @param {Record<string, unknown>} body of `POST /v1/videos`
   * @param {{ idempotencyKey?: string }} [options] the same key again gives the same job again
   * @returns {Promise<Job>}
   */
  async submit(body, { idempotencyKey = idempotencyKeyOf() } = {}) {
    return this.#learned(await this.#http('POST', 'v1/videos', { body, headers: { 'Idempotency-Key': idempotencyKey } }));
  }

  /**
   * Asks the provider to cancel.
   * @param {string} jobId
   * @returns {Promise<Job>}
   */
  async cancel(jobId) {
    return this.#learned(await this.#http('POST', `v1/jobs/${encodeURIComponent(jobId)}/cancel`));
  }

  /**
   * The newest document, read once.
   * @param {string} jobId
   * @returns {Promise<Job>}
   */
  async job(jobId) {
    return this.#learned(await this.#http('GET', `v1/jobs/${encodeURIComponent(jobId)}`));
  }

  /**
   * The caller's jobs, newest first, a page at a time.
   * @param {{ limit?: number, cursor?: string, status?: Status }} [query]
   * @returns {Promise<{ jobs: Job[], next_cursor: string | null }>}
   */
  async jobs(query = {}) {
    const search = new URLSearchParams();
    for (const [key, value] of Object.entries(query)) if (value != null) search.set(key, String(value));
    return this.#http('GET', `v1/jobs?${search}`);
  }

  /**
   * How each provider is, read once.
   * @returns {Promise<Provider[]>}
   */
  async providers() {
    const answer = await this.#http('GET', 'v1/providers');
    return answer.providers;
  }

  /**
   * Tells the hub that a provider is mended: what waits for it is sent, one at first. For admins.
   * @param {string} name
   * @returns {Promise<Provider>} how it is now
   */
  async resume(name) {
    return this.#http('POST', `v1/providers/${encodeURIComponent(name)}/resume`);
  }

  /**
   * Calls back with every state from now on.
   * @param {'state'} _event
   * @param {(state: State) => void} listener
   * @returns {() => void} ends it
   */
  on(_event, listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Tries now instead of at the planned time: for a person who presses a button. */
  reconnect() {
    if (this.#state.name === 'reconnecting' && this.#timers.retry !== undefined) this.#connect();
  }

  /** Ends everything; promises still open reject with `closed`. */
  close() {
    globalThis.removeEventListener?.('online', this.#wake);
    globalThis.removeEventListener?.('pageshow', this.#wake);
    globalThis.document?.removeEventListener('visibilitychange', this.#wake);
    this.#end('closed', 'closed');
  }

  // ---- topics

  /** @param {string} jobId @returns {Topic} */
  #topic(jobId) {
    let topic = this.#topics.get(jobId);
    if (!topic) this.#topics.set(jobId, topic = { job: null, watchers: new Set(), mine: false, refused: false });
    return topic;
  }

  /** @param {Watcher} watcher */
  #attend(watcher) {
    if (this.#ended) {
      const { name } = this.#state;
      queueMicrotask(() => watcher.problem && call(watcher.problem, endOf(name)));
      return;
    }
    clearTimeout(this.#timers.idle);
    if (this.#state.name === 'closed') this.#connect();
    else this.#flush();
  }

  /** Gives the socket back when nobody has watched for a while. */
  #settle() {
    this.#flush();
    if (this.#ended || this.#mine.size || [...this.#topics.values()].some(topic => topic.watchers.size)) return;
    clearTimeout(this.#timers.idle);
    this.#timers.idle = setTimeout(() => {
      this.#drop();
      this.#attempt = 0;
      this.#enter('closed', { reason: 'idle' });
    }, IDLE_MS);
  }

  /** @param {string} jobId */
  #leave(jobId) {
    this.#wanted.delete(jobId);
    if (this.#subscribed.has(jobId)) this.#leaving.add(jobId);
  }

  /**
   * The one place where a document comes in, from whichever side.
   * @param {Job} job
   */
  #learn(job) {
    if (!this.#mine.size && !this.#topics.has(job.id)) return;
    const topic = this.#topic(job.id);
    if (topic.job && job.version <= topic.job.version) return;
    topic.job = job;
    // A document that no explicit subscription asked for can only be the feed's.
    if (this.#mine.size) topic.mine ||= !this.#subscribed.has(job.id) || job.owner === claimsOf(this.#cached).sub;
    if (job.final) {
      this.#leave(job.id);
      this.#flush();
    }
    const watchers = topic.mine ? [...topic.watchers, ...this.#mine] : [...topic.watchers];
    for (const watcher of watchers) if (watcher.ready) call(watcher.show, job);
  }

  /** @param {Job} job */
  #learned(job) {
    this.#learn(job);
    return job;
  }

  /** @param {string} jobId @param {string} code @param {string} [message] */
  #refuse(jobId, code, message) {
    this.#subscribed.delete(jobId);
    this.#wanted.delete(jobId);
    const topic = this.#topics.get(jobId);
    if (!topic) return;
    topic.refused = true;
    const problem = new HubError(code, message ?? (code === 'not_found' ? `no job ${jobId} to be seen` : `${jobId} refused: ${code}`));
    for (const watcher of [...topic.watchers]) if (watcher.problem) call(watcher.problem, problem);
  }

  // ---- subscriptions of this socket

  /** Collects what one turn of the event loop asks for into as few frames as possible. */
  #flush() {
    if (this.#flushing || !this.#welcomed) return;
    this.#flushing = true;
    queueMicrotask(() => {
      this.#flushing = false;
      if (!this.#welcomed) return;
      if (this.#leaving.size) {
        const jobs = [...this.#leaving];
        this.#leaving.clear();
        for (const id of jobs) this.#subscribed.delete(id);
        for (const some of chunks(jobs)) this.#send({ type: 'unsubscribe', id: this.#nextId++, jobs: some });
      }
      if (this.#mine.size && !this.#feedSubscribed) {
        this.#feedSubscribed = true;
        this.#ask('mine', { feed: 'mine', jobs: this.#newestKnown() });
      }
      const jobs = [...this.#wanted].slice(0, Math.max(0, this.#places - this.#subscribed.size));
      for (const id of jobs) {
        this.#wanted.delete(id);
        this.#subscribed.add(id);
      }
      for (const some of chunks(jobs)) this.#ask(some, { jobs: some.map(id => position(id, this.#topics.get(id)?.job)) });
    });
  }

  /** The versions that the feed need not send again; more than fit a frame are absorbed on arrival. */
  #newestKnown() {
    return [...this.#topics.values()]
      .flatMap(({ job, mine }) => (job && mine ? [job] : []))
      .sort((a, b) => (a.updated_at < b.updated_at ? 1 : -1))
      .slice(0, IDS_PER_FRAME)
      .map(job => position(job.id, job));
  }

  /** @param {string[] | 'mine'} what @param {object} fields */
  #ask(what, fields) {
    const id = this.#nextId++;
    this.#asked.set(id, what);
    this.#send({ type: 'subscribe', id, ...fields });
  }

  /** @param {{ id: number, jobs?: Record<string, string>, feed?: string }} frame */
  #onSubscribed({ id, jobs = {}, feed }) {
    this.#asked.delete(id);
    const excess = Object.keys(jobs).filter(jobId => jobs[jobId] === 'too_many' && this.#subscribed.delete(jobId));
    if (excess.length) this.#places = this.#subscribed.size;
    for (const jobId of excess) this.#wanted.add(jobId);
    for (const [jobId, answer] of Object.entries(jobs)) {
      if (feed === 'mine') {
        const topic = this.#topics.get(jobId);
        if (!topic || topic.mine) continue;
        topic.mine = true;
        if (topic.job) for (const watcher of this.#mine) if (watcher.ready) call(watcher.show, topic.job);
      } else if (answer !== 'current' && answer !== 'sent' && answer !== 'too_many') this.#refuse(jobId, answer);
    }
    this.#flush();
  }

  /** A subscribe that failed as a whole is asked again, unless the hub says that asking is no use. @param {{ id?: number, code?: string, message?: string, retryable?: boolean }} frame */
  #onError({ id, code = 'error', message, retryable }) {
    const what = id === undefined ? undefined : this.#asked.get(id);
    if (id === undefined || what === undefined) return;
    this.#asked.delete(id);
    const useless = retryable === false || code === 'forbidden' || code === 'not_found' || code === 'bad_message' || code.startsWith('too_many');
    if (what === 'mine') {
      if (useless) for (const { problem } of [...this.#mine]) problem && call(problem, new HubError(code, message ?? code));
      else this.#feedSubscribed = false;
    } else {
      for (const jobId of what) {
        this.#subscribed.delete(jobId);
        if (useless) this.#refuse(jobId, code, message);
        else if (this.#topics.get(jobId)?.watchers.size) this.#wanted.add(jobId);
      }
    }
    if (useless) return;
    clearTimeout(this.#timers.resubscribe);
    this.#timers.resubscribe = setTimeout(() => this.#flush(), 1_000 + Math.random() * 2_000);
  }

  // ---- the socket

  async #connect() {
    const generation = ++this.#generation;
    this.#drop();
    this.#held = false;
    this.#enter(this.#attempt ? 'reconnecting' : 'connecting', { attempt: this.#attempt, retryAt: null, reason: this.#attempt ? this.#state.reason : null });
    let token;
    try {
      token = await this.#currentToken();
    } catch {
      if (generation === this.#generation) this.#backOff('token_unavailable');
      return;
    }
    if (generation !== this.#generation || this.#ended) return;
    if (!token) return this.#end('signed_out', 'no_token');

    const url = new URL('v1/ws', this.#base);
    url.protocol = url.protocol.replace('http', 'ws');
    const carried = isSubprotocol(token);
    const socket = new this.#WebSocket(url.href, carried ? [SUBPROTOCOL, `bearer.${token}`] : [SUBPROTOCOL]);
    this.#socket = socket;
    this.#expiresAt = expiryOf(token);
    socket.onopen = () => {
      if (!carried) socket.send(JSON.stringify({ type: 'auth', token }));
    };
    socket.onmessage = event => {
      if (this.#socket === socket) this.#onFrame(event.data);
    };
    socket.onclose = event => {
      if (this.#socket === socket) this.#lost(event.code, event.reason || null);
    };
    this.#timers.welcome = setTimeout(() => this.#lost(1006, 'no_welcome'), WELCOME_WITHIN_MS);
  }

  /** @param {unknown} data */
  #onFrame(data) {
    this.#lastFrame = Date.now();
    clearTimeout(this.#timers.proof);
    this.#timers.proof = undefined;
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return;
    }
    switch (frame.type) {
      case 'hello': return this.#onHello(frame);
      case 'job': return this.#learn(frame.job);
      case 'subscribed': return this.#onSubscribed(frame);
      case 'error': return this.#onError(frame);
      case 'heartbeat': return this.#setClock(frame.now);
      case 'degraded': return this.#enter('degraded', { since: this.#local(frame.since) ?? Date.now(), reason: 'store_away' });
      case 'restored':
        this.#enter('live');
        return this.#flush();
      case 'token_expiring': return void this.#renew();
      case 'bye': return this.#lost(frame.code, frame.reason ?? null, frame.retry_after_ms);
    }
  }

  /** @param {{ heartbeat_ms?: number, expires_at?: string, now?: string }} frame */
  #onHello(frame) {
    this.#setClock(frame.now);
    this.#heartbeat = frame.heartbeat_ms ?? this.#heartbeat;
    this.#expiresAt = this.#local(frame.expires_at) ?? this.#expiresAt;
    this.#planRenewal();
    if (this.#welcomed) return;
    this.#welcomed = true;
    clearTimeout(this.#timers.welcome);
    this.#timers.stable = setTimeout(() => {
      this.#attempt = 0;
      this.#freshTried = false;
    }, STABLE_AFTER_MS);
    this.#pulse();
    for (const [id, topic] of this.#topics) if (topic.watchers.size && !topic.job?.final && !topic.refused) this.#wanted.add(id);
    this.#enter('live');
    this.#flush();
  }

  /**
   * The socket is gone, or as good as gone.
   * @param {number} code
   * @param {string | null} reason
   * @param {number} [retryAfter] milliseconds, as the hub asked
   */
  #lost(code, reason, retryAfter) {
    const welcomed = this.#welcomed;
    this.#generation += 1;
    this.#drop();
    if (code >= 4000 && code <= 4099) {
      if (code !== 4001 && code !== 4002 && code !== 4003) return this.#end('closed', reason ?? `code_${code}`);
      return this.#freshTokenOrOut(code === 4002 ? 'token_expired' : code === 4003 ? 'auth_timeout' : 'unauthorized');
    }
    if (retryAfter !== undefined) return this.#retry(retryAfter, reason, true);
    if (code >= 4200 && code <= 4299 && welcomed && !this.#attempt) return this.#retry(0, reason ?? 'moved');
    if (!welcomed && code === 1006) return void this.#askWhy();
    this.#backOff(reason ?? (code === 1012 ? 'restart' : 'connection_lost'));
  }

  /** A refused upgrade looks like a dead network to a browser; a plain request tells them apart. */
  async #askWhy() {
    const generation = this.#generation;
    this.#enter('reconnecting', { attempt: this.#attempt || 1, retryAt: null, reason: 'connection_lost' });
    let status = 0;
    try {
      const signal = AbortSignal.timeout(WELCOME_WITHIN_MS);
      ({ status } = await fetch(new URL('v1/jobs?limit=1', this.#base), { headers: { Authorization: `Bearer ${this.#cached}` }, cache: 'no-store', signal }));
    } catch {
      // No answer at all: the network or the hub, not the token.
    }
    if (generation !== this.#generation || this.#ended) return;
    if (status === 401) return this.#freshTokenOrOut('unauthorized');
    this.#backOff(status ? 'refused' : 'unreachable');
  }

  /** @param {string} reason */
  #freshTokenOrOut(reason) {
    this.#cached = null;
    if (typeof this.#token !== 'function' || this.#freshTried) return this.#end('signed_out', reason);
    this.#freshTried = true;
    this.#retry(0, reason);
  }

  /** @param {string} reason */
  #backOff(reason) {
    this.#retry(Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.#attempt), reason);
  }

  /** @param {number} delay @param {string | null} reason @param {boolean} [held] */
  #retry(delay, reason, held = false) {
    clearTimeout(this.#timers.retry);
    this.#attempt += 1;
    this.#held = held;
    this.#enter('reconnecting', { attempt: this.#attempt, retryAt: Date.now() + delay, reason });
    this.#timers.retry = setTimeout(() => this.#connect(), delay);
  }

  /** Lets go of the socket and of all that belonged to it. */
  #drop() {
    for (const name of TIMERS_OF_A_SOCKET) {
      clearTimeout(this.#timers[name]);
      this.#timers[name] = undefined;
    }
    const socket = this.#socket;
    this.#socket = null;
    this.#welcomed = false;
    this.#feedSubscribed = false;
    this.#places = MAX_SUBSCRIPTIONS;
    this.#subscribed.clear();
    this.#leaving.clear();
    this.#asked.clear();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000);
    } catch {
      // Already closing.
    }
  }

  /** Nothing more is tried; everyone who waits is told. @param {'signed_out' | 'closed'} name @param {string} reason */
  #end(name, reason) {
    if (this.#ended) return;
    this.#ended = true;
    this.#generation += 1;
    clearTimeout(this.#timers.idle);
    this.#drop();
    this.#enter(name, { reason });
    const problem = endOf(name);
    const all = [...this.#mine, ...[...this.#topics.values()].flatMap(topic => [...topic.watchers])];
    for (const watcher of all) if (watcher.problem) call(watcher.problem, problem);
  }

  /** @param {object} frame */
  #send(frame) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** @param {State['name']} name @param {Partial<State>} [more] */
  #enter(name, { attempt = 0, retryAt = null, since, reason = null } = {}) {
    const before = this.#state;
    this.#state = { name, attempt, retryAt, since: since ?? (before.name === name ? before.since : Date.now()), reason };
    for (const listener of [...this.#listeners]) call(listener, this.#state);
  }

  // ---- alive or not

  /** Two heartbeats without a frame: the other side is gone, whatever the socket believes. */
  #pulse() {
    const every = Math.max(250, this.#heartbeat / 2);
    const due = Date.now() + every;
    this.#timers.pulse = setTimeout(() => {
      if (Date.now() - due > SLEPT_MS) this.#wake();
      else if (Date.now() - this.#lastFrame >= 2 * this.#heartbeat) return this.#lost(1006, 'silent');
      this.#pulse();
    }, every);
  }

  /** The tab or the network came back: timers were late, so look at everything they would have looked at. */
  #wake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (!this.#held) this.reconnect();
    if (!this.#welcomed) return;
    if (this.#renewAt && Date.now() >= this.#renewAt) this.#renew();
    if (this.#timers.proof !== undefined) return;
    this.#send({ type: 'ping', id: this.#nextId++ });
    this.#timers.proof = setTimeout(() => this.#lost(1006, 'silent'), PROOF_WITHIN_MS);
  };

  /** @param {string | undefined} now */
  #setClock(now) {
    const hub = Date.parse(now ?? '');
    if (!Number.isNaN(hub)) this.#clockOffset = hub - Date.now();
  }

  /** A time of the hub on this machine's clock. @param {string | null | undefined} time */
  #local(time) {
    const hub = Date.parse(time ?? '');
    return Number.isNaN(hub) ? null : hub - this.#clockOffset;
  }

  // ---- the token

  /** @returns {Promise<string | null>} */
  async #currentToken() {
    if (typeof this.#token !== 'function') return (this.#cached = this.#token || null);
    const expiry = expiryOf(this.#cached);
    if (this.#cached && expiry && expiry - this.now() > 5_000) return this.#cached;
    return this.#freshToken();
  }

  /** One call at a time, whoever asks. @returns {Promise<string | null>} */
  #freshToken() {
    const give = this.#token;
    if (typeof give !== 'function') return Promise.resolve(give || null);
    this.#fetching ??= (async () => give())()
      .then(token => (this.#cached = token || null))
      .finally(() => (this.#fetching = null));
    return this.#fetching;
  }

  #planRenewal() {
    clearTimeout(this.#timers.renew);
    this.#renewAt = 0;
    if (typeof this.#token !== 'function' || this.#expiresAt === null) return;
    const left = this.#expiresAt - Date.now();
    this.#renewAt = Date.now() + Math.max(0, left - Math.min(left / 5, RENEW_LEAD_MS));
    this.#renewLater(this.#renewAt - Date.now());
  }

  /** @param {number} delay */
  #renewLater(delay) {
    clearTimeout(this.#timers.renew);
    this.#timers.renew = setTimeout(() => {
      if (Date.now() < this.#renewAt) this.#renewLater(this.#renewAt - Date.now());
      else this.#renew();
    }, Math.min(delay, TIMER_MAX_MS));
  }

  /** Renews in place: the socket stays, only its end moves. */
  async #renew() {
    if (typeof this.#token !== 'function' || this.#renewing) return;
    this.#renewing = true;
    const generation = this.#generation;
    try {
      const token = await this.#freshToken();
      if (generation !== this.#generation || !token) return;
      this.#send({ type: 'auth', token });
      const expiry = expiryOf(token);
      if (expiry !== null) this.#expiresAt = expiry - this.#clockOffset;
      this.#planRenewal();
    } catch {
      if (generation !== this.#generation || !this.#welcomed) return;
      this.#renewAt = Date.now() + RENEW_RETRY_MS;
      this.#renewLater(RENEW_RETRY_MS);
    } finally {
      this.#renewing = false;
    }
  }

  // ---- HTTP

  /**
   * @param {string} method
   * @param {string} path
   * @param {{ body?: unknown, headers?: Record<string, string> }} [options]
   * @returns {Promise<any>}
   */
  async #http(method, path, { body, headers = {} } = {}) {
    for (let again = false; ; again = true) {
      const token = again ? await this.#freshToken() : await this.#currentToken();
      if (!token) throw endOf('signed_out');
      let answer;
      try {
        answer = await fetch(new URL(path, this.#base), {
          method,
          headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
          body: body === undefined ? undefined : JSON.stringify(body),
          cache: 'no-store',
        });
      } catch {
        throw new HubError('unreachable', 'the hub does not answer', { retryable: true });
      }
      if (answer.ok) return answer.json();
      if (answer.status !== 401 || again || typeof this.#token !== 'function') throw await problemOf(answer);
    }
  }
}

/** A key for one press of a button; works on plain http too, where `randomUUID` is missing. */
export function idempotencyKeyOf() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * The claims of a JWT, unproven: good for a name on the screen or a timer, never for a decision.
 * @param {string | null} token
 * @returns {Record<string, unknown>}
 */
export function claimsOf(token) {
  try {
    const bytes = Uint8Array.from(atob((token ?? '').split('.')[1].replaceAll('-', '+').replaceAll('_', '/')), char => char.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}

/** @param {string | null} token @returns {number | null} milliseconds of the issuer's clock */
function expiryOf(token) {
  const { exp } = claimsOf(token);
  return typeof exp === 'number' ? exp * 1000 : null;
}

/** RFC 9110 `token` characters, all that a subprotocol may hold. @param {string} token */
function isSubprotocol(token) {
  return /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(token);
}

/** @param {string} job @param {Job | null | undefined} known */
function position(job, known) {
  return known ? { job, version: known.version } : { job };
}

/** @param {string[]} ids */
function chunks(ids) {
  const all = [];
  for (let at = 0; at < ids.length; at += IDS_PER_FRAME) all.push(ids.slice(at, at + IDS_PER_FRAME));
  return all;
}

/** @param {State['name']} name */
function endOf(name) {
  return name === 'signed_out' ? new HubError('signed_out', 'nobody is signed in', { status: 401 }) : new HubError('closed', 'the hub client is closed');
}

/** @param {Response} answer */
async function problemOf(answer) {
  /** @type {{ code?: string, detail?: string, title?: string, retryable?: boolean }} */
  const problem = await answer.json().catch(() => ({}));
  const header = answer.headers.get('Retry-After');
  const seconds = header === null ? NaN : /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return new HubError(problem.code ?? `http_${answer.status}`, problem.detail ?? problem.title ?? answer.statusText, {
    status: answer.status,
    retryable: problem.retryable ?? false,
    retryAfter: Number.isNaN(seconds) ? null : Math.max(0, seconds),
  });
}

/**
 * A watcher's own mistake must not cost the others their news.
 * @template T
 * @param {(value: T) => void} callback
 * @param {T} value
 */
function call(callback, value) {
  try {
    callback(value);
  } catch (mistake) {
    queueMicrotask(() => {
      throw mistake;
    });
  }
}
