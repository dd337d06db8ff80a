/**
 * Browser client for progress-hub.
 *
 * One WebSocket carries the updates of every job that a page watches. Submitting, cancelling and listing jobs use HTTP.
 *
 *     import { ProgressHub } from '/progress-hub.js';
 *     const hub = new ProgressHub({ token: () => fetch('/my/hub-token').then(r => r.text()) });
 *     const stop = hub.watch('job_01K…', job => bar.value = job.progress ?? 0);
 *
 * Invariant: a listener receives the versions of a job in ascending order and never receives the same version twice,
 * across reconnects too.
 *
 * @module
 */

/** @typedef {'accepted' | 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'} Status */
/** @typedef {'api' | 'submit' | 'webhook' | 'poll' | 'push' | 'deadline'} Source */
/** @typedef {'safety' | 'invalid_input' | 'quota' | 'rate_limit' | 'auth' | 'technical' | 'timeout' | 'submission_unknown' | 'result_expired'} ErrorKind */
/**
 * A file that the job produced.
 * @typedef {object} Output
 * @property {string} type `video`, `image`, `audio` or another type name of the provider
 * @property {string} url may be relative to the hub's address
 * @property {number | null} [duration] length in seconds
 * @property {string | null} [expires_at] when the URL stops working; null if it does not expire or the time is unknown
 * @property {string} [watermark_url] the same output with a watermark
 * @property {boolean} [nsfw] whether the provider flagged the output as not safe for work
 * @property {boolean | { bytes?: number }} [archived] whether the archive has a copy; only in responses to HTTP requests, and only
 *   if the hub has an archive
 * @property {string} [archive_error] why the last attempt to copy it failed
 */
/**
 * Why a job failed, why its last attempt failed, or why a succeeded job has no outputs.
 * @typedef {object} JobError
 * @property {ErrorKind} kind
 * @property {string} message
 * @property {string | null} [provider_code] the provider's own error code
 * @property {boolean} retryable whether submitting the same request again can succeed
 */
/**
 * @typedef {object} Cost
 * @property {number} amount
 * @property {string} unit a currency code in lower case, such as `usd`, or the provider's own unit
 */
/**
 * The job document, as the hub stores and sends it. Times are RFC 3339 strings in UTC.
 * @typedef {object} Job
 * @property {string} id
 * @property {number} version starts at 1 and increases by one with every change
 * @property {Status} status
 * @property {boolean} final true once the job is in a terminal state; a final job no longer changes
 * @property {number | null} progress percentage from 0 to 100; null if the provider does not report progress
 * @property {number | null} queue_position
 * @property {string | null} stage
 * @property {string} owner
 * @property {string | null} provider null for a job that your own worker runs
 * @property {string | null} provider_task_id
 * @property {string | null} model
 * @property {Source} source what caused this version
 * @property {string} created_at
 * @property {string} updated_at
 * @property {string | null} started_at
 * @property {string | null} finished_at
 * @property {string | null} deadline_at when the hub fails the job if it is not final by then
 * @property {number | null} eta_seconds estimated time remaining, counted from `updated_at`
 * @property {Output[]} outputs
 * @property {JobError | null} error
 * @property {number} attempt number of the current submission attempt; 0 before the first one
 * @property {string | null} next_attempt_at
 * @property {Cost | null} cost what the provider charged; null if it does not report costs
 * @property {string[]} moderation the provider's moderation messages, verbatim
 * @property {Record<string, unknown>} metadata the object that the caller attached to the job
 */
/**
 * State of a provider. In any state but `available`, requests to it are limited because of `reason`.
 * @typedef {object} Provider
 * @property {string} name the provider's name in the hub's configuration, and in `Job.provider`
 * @property {string} title display name
 * @property {'available' | 'rate_limited' | 'unavailable' | 'suspended'} state
 * @property {ErrorKind | null} reason
 * @property {string | null} since when the provider entered this state
 * @property {string | null} until when the hub sends the next request
 * @property {{ amount: number, unit: string | null } | null} [balance] credit left on the provider account; null if the
 *   provider does not report it, absent unless the token has the scope `admin`
 */
/**
 * One event of a job that the hub sends to a destination.
 * @typedef {object} Delivery
 * @property {string} id also the `webhook-id` of a webhook
 * @property {string} job
 * @property {number} version version of the job that caused it
 * @property {string} event `job.created`, `job.updated`, `job.succeeded`, `job.failed` or `job.cancelled`; `output.<n>` for the archive
 * @property {string} destination name of the destination
 * @property {string} owner
 * @property {string | null} address where it is sent, without secrets; null if the destination is no longer configured
 * @property {'waiting' | 'held' | 'delivered' | 'failed'} state `held`: waits until the destination is enabled or configured again
 * @property {string} created_at
 * @property {string | null} next_attempt_at
 * @property {string | null} ended_at
 * @property {number} attempt_count attempts that used up the schedule
 * @property {DeliveryAttempt[]} attempts the last 16, oldest first
 */
/**
 * @typedef {object} DeliveryAttempt
 * @property {string} at
 * @property {number} duration_ms
 * @property {number | null} status HTTP or SMTP status; null if there was no response
 * @property {string | null} error null if the attempt succeeded
 */
/**
 * A place outside the hub that receives deliveries.
 * @typedef {object} Destination
 * @property {string} name
 * @property {string | null} kind `webhook`, `host`, `email` or `archive`; null if it is no longer configured
 * @property {string | null} address without secrets; null if it is no longer configured
 * @property {'active' | 'paused' | 'disabled' | 'unconfigured'} state
 * @property {number} waiting number of deliveries that wait
 * @property {number} consecutive_failures
 * @property {string | null} failing_since
 * @property {string | null} paused_until
 * @property {{ at: string, reason: 'gone' | 'failing' | 'manual', recheck_at: string | null } | null} disabled
 * @property {string | null} last_success_at
 * @property {string | null} last_error
 */
/** @typedef {{ delivered: boolean, status: number | null, duration_ms: number, error: string | null }} TestResult */
/**
 * State of the connection. `since` and `retryAt` are milliseconds of the local clock.
 *
 * - `connecting`: the first connection is being made.
 * - `live`: connected, updates arrive as they happen.
 * - `reconnecting`: disconnected; the client retries with backoff.
 * - `degraded`: connected, but the hub's storage is unavailable and data may be stale.
 * - `signed_out`: no valid token. This state is terminal.
 * - `closed`: with the reason `idle`, nothing is watched and no connection is open. With any other reason it is terminal.
 *
 * @typedef {object} State
 * @property {'connecting' | 'live' | 'reconnecting' | 'degraded' | 'signed_out' | 'closed'} name
 * @property {number} attempt number of connection attempts since the last stable connection
 * @property {number | null} retryAt when the next attempt starts; null while one is in progress
 * @property {number} since when the client entered this state
 * @property {string | null} reason machine-readable cause, from the hub or from the client
 */
/** @typedef {(job: Job) => void} JobListener */
/** @typedef {(error: HubError) => void} ErrorListener */
/** @typedef {string | (() => string | null | Promise<string | null>)} Token a JWT, or a function that returns a fresh one; null means signed out */
/** @typedef {{ onJob: JobListener, onError?: ErrorListener, isReady: boolean }} Watcher */
/** @typedef {typeof SOCKET_TIMERS[number]} SocketTimer */
/** @typedef {{ job: Job | null, watchers: Set<Watcher>, isInFeed: boolean, isRejected: boolean }} Topic */

const SUBPROTOCOL = 'progress-hub.v1';
const BACKOFF_BASE_MS = 500;
const MAX_BACKOFF_MS = 30_000;
/** A connection that lasts this long resets the backoff. */
const STABLE_AFTER_MS = 10_000;
/** Time limit from opening a socket to the hub's `hello`. */
const HELLO_TIMEOUT_MS = 15_000;
/** Time limit for any frame after a ping that checks whether a socket still works. */
const PONG_TIMEOUT_MS = 5_000;
/** A heartbeat that is this late counts as missing. */
const HEARTBEAT_TOLERANCE_MS = 1_000;
/** A timer that fires this late means that the tab was suspended. */
const SUSPENSION_THRESHOLD_MS = 3_000;
const RENEWAL_RETRY_MS = 5_000;
/** Upper bound on how early a token is renewed. Shorter-lived tokens are renewed when a fifth of their lifetime is left. */
const MAX_RENEWAL_LEAD_MS = 120_000;
/** The longest delay that `setTimeout` supports. */
const MAX_TIMER_MS = 2 ** 31 - 1;
/** Timers that belong to one socket and are cleared with it. */
const SOCKET_TIMERS = /** @type {const} */ (['reconnect', 'hello', 'stable', 'liveness', 'pong', 'renewal', 'resubscribe']);
/** The hub's default limit on subscriptions per socket. A hub with a lower limit answers `too_many`. */
const MAX_SUBSCRIPTIONS = 256;
/** Keeps a frame well below the hub's default limit of 16 KiB. */
const MAX_JOBS_PER_FRAME = 128;
/** How long a socket stays open with nothing to watch. */
const IDLE_TIMEOUT_MS = 30_000;

/** Error of an HTTP call or a subscription. */
export class HubError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ status?: number, retryable?: boolean, retryAfter?: number | null }} [details]
   */
  constructor(code, message, { status = 0, retryable = false, retryAfter = null } = {}) {
    super(message);
    this.name = 'HubError';
    /** The hub's stable error code, or `unreachable`, `signed_out` or `closed` from the client. */
    this.code = code;
    /** HTTP status; 0 if there was no HTTP response. */
    this.status = status;
    /** Whether the same call can succeed later. */
    this.retryable = retryable;
    /** Seconds to wait before retrying, from `Retry-After`; null if the hub did not send it. */
    this.retryAfter = retryAfter;
  }
}

/**
 * Client of one hub.
 *
 * The client connects on the first `watch` and reconnects until `close` is called, the token is rejected, or the hub
 * closes the connection for good. Methods that use HTTP reject with a {@link HubError}.
 */
export class ProgressHub {
  /** @type {URL} */ #baseUrl;
  /** @type {Token} */ #token;
  /** @type {typeof WebSocket} */ #WebSocket;

  /** @type {Map<string, Topic>} */ #topics = new Map();
  /** @type {Set<Watcher>} */ #feedWatchers = new Set();
  /** @type {Set<(state: State) => void>} */ #stateListeners = new Set();
  /** @type {State} */ #state = { name: 'closed', attempt: 0, retryAt: null, since: Date.now(), reason: 'idle' };

  /** @type {WebSocket | null} */ #socket = null;
  /** Incremented for every socket, so that late callbacks of an earlier one are ignored. */
  #generation = 0;
  /** Whether the hub's `hello` has arrived on this socket. */
  #isConnected = false;
  #attempt = 0;
  /** Whether the hub set the time of the next attempt. A tab that wakes up must then not reconnect earlier. */
  #isRetryTimeFixed = false;
  #hasTriedFreshToken = false;
  #hasWarnedOfOrigin = false;
  #isTerminated = false;
  #nextRequestId = 1;
  /** The hub's clock minus the local clock. */
  #clockOffsetMs = 0;
  #heartbeatMs = 25_000;
  #lastFrameAt = 0;

  /** Jobs to subscribe to once the socket is connected and below the limit. @type {Set<string>} */ #pendingSubscribes = new Set();
  /** Jobs subscribed on this socket. @type {Set<string>} */ #subscribed = new Set();
  /** @type {Set<string>} */ #pendingUnsubscribes = new Set();
  #isFeedSubscribed = false;
  #subscriptionLimit = MAX_SUBSCRIPTIONS;
  /** Subscribe requests without a response, by request id. @type {Map<number, string[] | 'mine'>} */ #openSubscribes = new Map();
  #isFlushScheduled = false;

  /** @type {string | null} */ #cachedToken = null;
  /** @type {Promise<string | null> | null} */ #tokenRequest = null;
  /** When the token of this socket expires, by the local clock. @type {number | null} */ #tokenExpiresAt = null;
  #renewAt = 0;
  #isRenewing = false;

  /** @type {Partial<Record<SocketTimer | 'idle', ReturnType<typeof setTimeout>>>} */ #timers = {};

  /**
   * Creates a client. It does not connect before the first `watch`, `watchMine` or `finished`.
   *
   * A token function is called again whenever a fresh token is needed: before the current one expires and after the hub
   * rejected it. A fixed token is used until it expires. The client is then `signed_out`.
   *
   * @param {object} options
   * @param {string} [options.url] address of the hub; by default the origin of the page
   * @param {Token} options.token
   * @param {typeof WebSocket} [options.WebSocket] implementation to use instead of the global one
   * @throws {TypeError} if `url` is not a valid URL
   */
  constructor({ url = '/', token, WebSocket: Socket = globalThis.WebSocket }) {
    const base = new URL(url, globalThis.location?.href);
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    this.#baseUrl = base;
    this.#token = token;
    this.#WebSocket = Socket;
    globalThis.addEventListener?.('online', this.#onWake);
    globalThis.addEventListener?.('offline', this.#checkSocket);
    globalThis.addEventListener?.('pageshow', this.#onWake);
    globalThis.document?.addEventListener('visibilitychange', this.#onWake);
  }

  // ---- public API

  /** Current state of the connection. */
  get state() {
    return this.#state;
  }

  /** Returns the hub's current time in milliseconds. Use it for ages and countdowns, since the local clock may be wrong. */
  now() {
    return Date.now() + this.#clockOffsetMs;
  }

  /**
   * Watches a job: calls `onJob` with its newest document, then with every newer version that arrives.
   *
   * Intermediate versions may be skipped. The final version is always delivered. `onJob` is never called before `watch`
   * returns.
   *
   * @param {string} jobId
   * @param {JobListener} onJob
   * @param {ErrorListener} [onError] called if the hub rejects the subscription (code `not_found`), or if the client is
   *   signed out or closed
   * @returns {() => void} stops watching
   */
  watch(jobId, onJob, onError) {
    const topic = this.#topic(jobId);
    /** @type {Watcher} */
    const watcher = { onJob, onError, isReady: false };
    topic.watchers.add(watcher);
    topic.isRejected = false;
    if (!topic.job?.final && !this.#subscribed.has(jobId)) this.#pendingSubscribes.add(jobId);
    this.#pendingUnsubscribes.delete(jobId);
    queueMicrotask(() => {
      if (!topic.watchers.has(watcher)) return;
      watcher.isReady = true;
      if (topic.job) invokeListener(onJob, topic.job);
    });
    this.#ensureConnected(watcher);
    return () => {
      if (!topic.watchers.delete(watcher) || topic.watchers.size) return;
      this.#unsubscribe(jobId);
      if (!topic.isInFeed || !this.#feedWatchers.size) this.#topics.delete(jobId);
      this.#closeWhenIdle();
    };
  }

  /**
   * Watches all jobs of the token's subject, including jobs created later. Calls `onJob` as {@link ProgressHub.watch} does.
   *
   * @param {JobListener} onJob
   * @param {ErrorListener} [onError] called if the hub rejects the subscription, or if the client is signed out or closed
   * @returns {() => void} stops watching
   */
  watchMine(onJob, onError) {
    /** @type {Watcher} */
    const watcher = { onJob, onError, isReady: false };
    this.#feedWatchers.add(watcher);
    queueMicrotask(() => {
      if (!this.#feedWatchers.has(watcher)) return;
      watcher.isReady = true;
      for (const { job, isInFeed } of [...this.#topics.values()]) if (isInFeed && job) invokeListener(onJob, job);
    });
    this.#ensureConnected(watcher);
    return () => {
      if (!this.#feedWatchers.delete(watcher) || this.#feedWatchers.size) return;
      if (this.#isFeedSubscribed) this.#send({ type: 'unsubscribe', id: this.#nextRequestId++, feed: 'mine' });
      this.#isFeedSubscribed = false;
      for (const [id, topic] of this.#topics) {
        topic.isInFeed = false;
        if (!topic.watchers.size) this.#topics.delete(id);
      }
      this.#closeWhenIdle();
    };
  }

  /**
   * Waits until a job is final. There is no timeout: the hub ends every job at its deadline.
   *
   * @param {string} jobId
   * @returns {Promise<Job>} the final document, whether the job succeeded, failed or was cancelled. Rejects with a
   *   {@link HubError} if the job does not exist, or if the client is signed out or closed
   */
  finished(jobId) {
    return new Promise((resolve, reject) => {
      const stop = this.watch(jobId, job => {
        if (!job.final) return;
        stop();
        resolve(job);
      }, error => {
        stop();
        reject(error);
      });
    });
  }

  /**
   * Submits a job: `POST /v1/videos`.
   *
   * @param {Record<string, unknown>} body request body, as `{ model, prompt, … }`
   * @param {object} [options]
   * @param {string} [options.idempotencyKey] a repeated call with the same key and body returns the same job; random by default
   * @returns {Promise<Job>} the accepted job
   */
  async submit(body, { idempotencyKey = idempotencyKeyOf() } = {}) {
    return this.#applyAndReturn(await this.#request('POST', 'v1/videos', { body, headers: { 'Idempotency-Key': idempotencyKey } }));
  }

  /**
   * Requests cancellation of a job. A job that was not submitted yet is cancelled at once. Otherwise the provider decides,
   * and the outcome arrives as an update.
   *
   * @param {string} jobId
   * @returns {Promise<Job>} the job after the request. Rejects with `not_cancellable` if the job can no longer be
   *   cancelled or its provider does not support cancellation
   */
  async cancel(jobId) {
    return this.#applyAndReturn(await this.#request('POST', `v1/jobs/${encodeURIComponent(jobId)}/cancel`));
  }

  /**
   * Reads whether a job can be cancelled now. The provider can still reject the cancellation.
   *
   * @param {string} jobId
   * @returns {Promise<{ cancellable: boolean, reason: string | null }>} `reason` says why it cannot be cancelled
   */
  async cancellable(jobId) {
    return this.#request('GET', `v1/jobs/${encodeURIComponent(jobId)}/cancel`);
  }

  /**
   * Reads the newest document of a job once.
   *
   * @param {string} jobId
   * @returns {Promise<Job>} rejects with `not_found` if the job does not exist or the token may not read it
   */
  async job(jobId) {
    return this.#applyAndReturn(await this.#request('GET', `v1/jobs/${encodeURIComponent(jobId)}`));
  }

  /**
   * Lists the jobs of the token's subject, newest first.
   *
   * @param {object} [query]
   * @param {number} [query.limit] maximum number of jobs on the page, from 1 to 200
   * @param {string} [query.cursor] `next_cursor` of the previous page
   * @param {Status} [query.status]
   * @returns {Promise<{ jobs: Job[], next_cursor: string | null }>} one page; `next_cursor` is null on the last page
   */
  async jobs(query = {}) {
    return this.#request('GET', `v1/jobs?${searchOf(query)}`);
  }

  /**
   * Reads the state of every configured provider once.
   *
   * @returns {Promise<Provider[]>}
   */
  async providers() {
    const { providers } = await this.#request('GET', 'v1/providers');
    return providers;
  }

  /**
   * Resumes a provider that is not available. The hub sends one queued job as a probe, then the others. Needs the scope
   * `admin`.
   *
   * @param {string} name the provider's name in the hub's configuration
   * @returns {Promise<Provider>} the provider after the request. Rejects with `forbidden` if the token lacks the scope
   */
  async resume(name) {
    return this.#request('POST', `v1/providers/${encodeURIComponent(name)}/resume`);
  }

  /**
   * Lists deliveries of the jobs that the token may read, newest first.
   *
   * @param {object} [query]
   * @param {string} [query.job] id of a job
   * @param {string} [query.destination]
   * @param {Delivery['state']} [query.state]
   * @param {number} [query.limit] maximum number of deliveries on the page, from 1 to 200
   * @param {string} [query.cursor] `next_cursor` of the previous page
   * @returns {Promise<{ deliveries: Delivery[], next_cursor: string | null }>} one page; `next_cursor` is null on the last page
   */
  async deliveries(query = {}) {
    return this.#request('GET', `v1/deliveries?${searchOf(query)}`);
  }

  /**
   * Makes a delivery due now. One that has ended gets a single further attempt, with the same id.
   *
   * @param {string} deliveryId
   * @returns {Promise<Delivery>} the delivery after the request, before the attempt
   */
  async redeliver(deliveryId) {
    return this.#request('POST', `v1/deliveries/${encodeURIComponent(deliveryId)}/redeliver`);
  }

  /**
   * Lists all destinations with their state. Needs the scope `admin`, as do the other methods for destinations.
   *
   * @returns {Promise<Destination[]>}
   */
  async destinations() {
    const { destinations } = await this.#request('GET', 'v1/destinations');
    return destinations;
  }

  /**
   * Sends a test to a destination, which does not change its state.
   *
   * @param {string} name
   * @returns {Promise<TestResult>} rejects with `not_testable` if the destination has no address of its own
   */
  async testDestination(name) {
    return this.#request('POST', `v1/destinations/${encodeURIComponent(name)}/test`);
  }

  /**
   * Makes a destination active: ends a pause, and sends what was held.
   *
   * @param {string} name
   * @returns {Promise<Destination>} the destination after the request
   */
  async enableDestination(name) {
    return this.#request('POST', `v1/destinations/${encodeURIComponent(name)}/enable`);
  }

  /**
   * Holds all deliveries to a destination until it is enabled.
   *
   * @param {string} name
   * @returns {Promise<Destination>} the destination after the request
   */
  async disableDestination(name) {
    return this.#request('POST', `v1/destinations/${encodeURIComponent(name)}/disable`);
  }

  /**
   * Adds a listener for changes of the connection state. `state` is the only event.
   *
   * @param {'state'} _event
   * @param {(state: State) => void} listener
   * @returns {() => void} removes the listener
   */
  on(_event, listener) {
    this.#stateListeners.add(listener);
    return () => void this.#stateListeners.delete(listener);
  }

  /** Reconnects now instead of at the scheduled time. Does nothing unless the client is waiting to reconnect. */
  reconnect() {
    if (this.#state.name === 'reconnecting' && this.#timers.reconnect !== undefined) this.#connect();
  }

  /** Closes the connection for good. Calls every `onError` with `closed`, so that pending `finished` promises reject. */
  close() {
    globalThis.removeEventListener?.('online', this.#onWake);
    globalThis.removeEventListener?.('offline', this.#checkSocket);
    globalThis.removeEventListener?.('pageshow', this.#onWake);
    globalThis.document?.removeEventListener('visibilitychange', this.#onWake);
    this.#terminate('closed', 'closed');
  }

  // ---- topics

  /** @param {string} jobId @returns {Topic} */
  #topic(jobId) {
    let topic = this.#topics.get(jobId);
    if (!topic) this.#topics.set(jobId, topic = { job: null, watchers: new Set(), isInFeed: false, isRejected: false });
    return topic;
  }

  /** @param {Watcher} watcher */
  #ensureConnected(watcher) {
    if (this.#isTerminated) {
      const { name } = this.#state;
      queueMicrotask(() => watcher.onError && invokeListener(watcher.onError, terminalError(name)));
      return;
    }
    clearTimeout(this.#timers.idle);
    if (this.#state.name === 'closed') this.#connect();
    else this.#flush();
  }

  /** Closes the socket after the idle timeout if nothing is watched. */
  #closeWhenIdle() {
    this.#flush();
    if (this.#isTerminated || this.#feedWatchers.size || [...this.#topics.values()].some(topic => topic.watchers.size)) return;
    clearTimeout(this.#timers.idle);
    this.#timers.idle = setTimeout(() => {
      this.#releaseSocket();
      this.#attempt = 0;
      this.#setState('closed', { reason: 'idle' });
    }, IDLE_TIMEOUT_MS);
  }

  /** @param {string} jobId */
  #unsubscribe(jobId) {
    this.#pendingSubscribes.delete(jobId);
    if (this.#subscribed.has(jobId)) this.#pendingUnsubscribes.add(jobId);
  }

  /**
   * Stores a document and notifies the watchers if it is newer. Every document passes here, from the socket or from HTTP.
   * @param {Job} job
   */
  #applyJob(job) {
    if (!this.#feedWatchers.size && !this.#topics.has(job.id)) return;
    const topic = this.#topic(job.id);
    if (topic.job && job.version <= topic.job.version) return;
    topic.job = job;
    // Without an explicit subscription, the document can only come from the feed.
    if (this.#feedWatchers.size) topic.isInFeed ||= !this.#subscribed.has(job.id) || job.owner === claimsOf(this.#cachedToken).sub;
    if (job.final) {
      this.#unsubscribe(job.id);
      this.#flush();
    }
    const watchers = topic.isInFeed ? [...topic.watchers, ...this.#feedWatchers] : [...topic.watchers];
    for (const watcher of watchers) if (watcher.isReady) invokeListener(watcher.onJob, job);
  }

  /** @param {Job} job */
  #applyAndReturn(job) {
    this.#applyJob(job);
    return job;
  }

  /** Reports a rejected subscription to the watchers of the job. @param {string} jobId @param {string} code @param {string} [message] */
  #rejectJob(jobId, code, message) {
    this.#subscribed.delete(jobId);
    this.#pendingSubscribes.delete(jobId);
    const topic = this.#topics.get(jobId);
    if (!topic) return;
    topic.isRejected = true;
    const error = new HubError(code, message ?? (code === 'not_found' ? `job ${jobId} not found` : `subscription to ${jobId} rejected: ${code}`));
    for (const watcher of [...topic.watchers]) if (watcher.onError) invokeListener(watcher.onError, error);
  }

  // ---- subscriptions of the current socket

  /** Schedules the pending subscribes and unsubscribes, so that calls made in one task share as few frames as possible. */
  #flush() {
    if (this.#isFlushScheduled || !this.#isConnected) return;
    this.#isFlushScheduled = true;
    queueMicrotask(() => {
      this.#isFlushScheduled = false;
      if (!this.#isConnected) return;
      if (this.#pendingUnsubscribes.size) {
        const jobs = [...this.#pendingUnsubscribes];
        this.#pendingUnsubscribes.clear();
        for (const id of jobs) this.#subscribed.delete(id);
        for (const chunk of chunksOf(jobs)) this.#send({ type: 'unsubscribe', id: this.#nextRequestId++, jobs: chunk });
      }
      if (this.#feedWatchers.size && !this.#isFeedSubscribed) {
        this.#isFeedSubscribed = true;
        this.#subscribe('mine', { feed: 'mine', jobs: this.#knownVersions() });
      }
      const jobs = [...this.#pendingSubscribes].slice(0, Math.max(0, this.#subscriptionLimit - this.#subscribed.size));
      for (const id of jobs) {
        this.#pendingSubscribes.delete(id);
        this.#subscribed.add(id);
      }
      for (const chunk of chunksOf(jobs)) this.#subscribe(chunk, { jobs: chunk.map(id => subscribeEntry(id, this.#topics.get(id)?.job)) });
    });
  }

  /** Versions that the feed does not need to send again. Only the most recent fit in a frame; the others are dropped on arrival. */
  #knownVersions() {
    return [...this.#topics.values()]
      .flatMap(({ job, isInFeed }) => (job && isInFeed ? [job] : []))
      .sort((a, b) => (a.updated_at < b.updated_at ? 1 : -1))
      .slice(0, MAX_JOBS_PER_FRAME)
      .map(job => subscribeEntry(job.id, job));
  }

  /** @param {string[] | 'mine'} target @param {object} fields */
  #subscribe(target, fields) {
    const id = this.#nextRequestId++;
    this.#openSubscribes.set(id, target);
    this.#send({ type: 'subscribe', id, ...fields });
  }

  /** @param {{ id: number, jobs?: Record<string, string>, feed?: string }} frame */
  #onSubscribed({ id, jobs = {}, feed }) {
    this.#openSubscribes.delete(id);
    const excess = Object.keys(jobs).filter(jobId => jobs[jobId] === 'too_many' && this.#subscribed.delete(jobId));
    if (excess.length) this.#subscriptionLimit = this.#subscribed.size;
    for (const jobId of excess) this.#pendingSubscribes.add(jobId);
    for (const [jobId, result] of Object.entries(jobs)) {
      if (feed === 'mine') {
        const topic = this.#topics.get(jobId);
        if (!topic || topic.isInFeed) continue;
        topic.isInFeed = true;
        if (topic.job) for (const watcher of this.#feedWatchers) if (watcher.isReady) invokeListener(watcher.onJob, topic.job);
      } else if (result !== 'current' && result !== 'sent' && result !== 'too_many') this.#rejectJob(jobId, result);
    }
    this.#flush();
  }

  /** Retries a subscribe that failed as a whole, unless the error is permanent. @param {{ id?: number, code?: string, message?: string, retryable?: boolean }} frame */
  #onError({ id, code = 'error', message, retryable }) {
    const target = id === undefined ? undefined : this.#openSubscribes.get(id);
    if (id === undefined || target === undefined) return;
    this.#openSubscribes.delete(id);
    const isPermanent = retryable === false || code === 'forbidden' || code === 'not_found' || code === 'bad_message' || code.startsWith('too_many');
    if (target === 'mine') {
      if (isPermanent) for (const { onError } of [...this.#feedWatchers]) onError && invokeListener(onError, new HubError(code, message ?? code));
      else this.#isFeedSubscribed = false;
    } else {
      for (const jobId of target) {
        this.#subscribed.delete(jobId);
        if (isPermanent) this.#rejectJob(jobId, code, message);
        else if (this.#topics.get(jobId)?.watchers.size) this.#pendingSubscribes.add(jobId);
      }
    }
    if (isPermanent) return;
    clearTimeout(this.#timers.resubscribe);
    this.#timers.resubscribe = setTimeout(() => this.#flush(), 1_000 + Math.random() * 2_000);
  }

  // ---- socket

  async #connect() {
    const generation = ++this.#generation;
    this.#releaseSocket();
    this.#isRetryTimeFixed = false;
    this.#setState(this.#attempt ? 'reconnecting' : 'connecting', { attempt: this.#attempt, retryAt: null, reason: this.#attempt ? this.#state.reason : null });
    let token;
    try {
      token = await this.#currentToken();
    } catch {
      if (generation === this.#generation) this.#backOff('token_unavailable');
      return;
    }
    if (generation !== this.#generation || this.#isTerminated) return;
    if (!token) return this.#terminate('signed_out', 'no_token');

    const url = new URL('v1/ws', this.#baseUrl);
    url.protocol = url.protocol.replace('http', 'ws');
    const fitsSubprotocol = isHttpToken(token);
    const socket = new this.#WebSocket(url.href, fitsSubprotocol ? [SUBPROTOCOL, `bearer.${token}`] : [SUBPROTOCOL]);
    this.#socket = socket;
    this.#tokenExpiresAt = expiryOf(token);
    socket.onopen = () => {
      if (!fitsSubprotocol) socket.send(JSON.stringify({ type: 'auth', token }));
    };
    socket.onmessage = event => {
      if (this.#socket === socket) this.#onFrame(event.data);
    };
    socket.onclose = event => {
      if (this.#socket === socket) this.#onDisconnect(event.code, event.reason || null);
    };
    this.#timers.hello = setTimeout(() => this.#onDisconnect(1006, 'no_welcome'), HELLO_TIMEOUT_MS);
  }

  /** @param {unknown} data */
  #onFrame(data) {
    this.#lastFrameAt = Date.now();
    clearTimeout(this.#timers.pong);
    this.#timers.pong = undefined;
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return;
    }
    switch (frame.type) {
      case 'hello': return this.#onHello(frame);
      case 'job': return this.#applyJob(frame.job);
      case 'subscribed': return this.#onSubscribed(frame);
      case 'error': return this.#onError(frame);
      case 'heartbeat': return this.#syncClock(frame.now);
      case 'degraded': return this.#setState('degraded', { since: this.#toLocalTime(frame.since) ?? Date.now(), reason: 'store_away' });
      case 'restored':
        this.#setState('live');
        return this.#flush();
      case 'token_expiring': return void this.#renewToken();
      case 'bye': return this.#onDisconnect(frame.code, frame.reason ?? null, frame.retry_after_ms);
    }
  }

  /** @param {{ heartbeat_ms?: number, expires_at?: string, now?: string }} frame */
  #onHello(frame) {
    this.#syncClock(frame.now);
    this.#heartbeatMs = frame.heartbeat_ms ?? this.#heartbeatMs;
    this.#tokenExpiresAt = this.#toLocalTime(frame.expires_at) ?? this.#tokenExpiresAt;
    this.#scheduleRenewal();
    // The hub sends another `hello` after it accepted a renewed token.
    if (this.#isConnected) return;
    this.#isConnected = true;
    clearTimeout(this.#timers.hello);
    this.#timers.stable = setTimeout(() => {
      this.#attempt = 0;
      this.#hasTriedFreshToken = false;
    }, STABLE_AFTER_MS);
    this.#scheduleLivenessCheck();
    for (const [id, topic] of this.#topics) if (topic.watchers.size && !topic.job?.final && !topic.isRejected) this.#pendingSubscribes.add(id);
    this.#setState('live');
    this.#flush();
  }

  /**
   * Handles a closed or unresponsive socket: reconnects, signs out or terminates, depending on the close code.
   * @param {number} code
   * @param {string | null} reason
   * @param {number} [retryAfterMs] delay that the hub requested
   */
  #onDisconnect(code, reason, retryAfterMs) {
    const wasConnected = this.#isConnected;
    this.#generation += 1;
    this.#releaseSocket();
    if (code >= 4000 && code <= 4099) {
      if (code !== 4001 && code !== 4002 && code !== 4003) return this.#terminate('closed', reason ?? `code_${code}`);
      return this.#refreshTokenOrSignOut(code === 4002 ? 'token_expired' : code === 4003 ? 'auth_timeout' : 'unauthorized');
    }
    if (retryAfterMs !== undefined) return this.#scheduleReconnect(retryAfterMs, reason, true);
    if (code >= 4200 && code <= 4299 && wasConnected && !this.#attempt) return this.#scheduleReconnect(0, reason ?? 'moved');
    if (!wasConnected && code === 1006) return void this.#probeFailedHandshake();
    this.#backOff(reason ?? (code === 1012 ? 'restart' : 'connection_lost'));
  }

  /** Sends a plain HTTP request to find out why the handshake failed. Browsers report a 401 and a network error alike. */
  async #probeFailedHandshake() {
    const generation = this.#generation;
    this.#setState('reconnecting', { attempt: this.#attempt || 1, retryAt: null, reason: 'connection_lost' });
    const signal = AbortSignal.timeout(HELLO_TIMEOUT_MS);
    const read = (/** @type {string} */ path, /** @type {RequestInit} */ init) =>
      fetch(new URL(path, this.#baseUrl), { cache: 'no-store', signal, ...init }).then(response => response.status, () => 0);
    const status = await read('v1/jobs?limit=1', { headers: { Authorization: `Bearer ${this.#cachedToken}` } });
    // Without a readable response, the hub is down or does not allow this origin. Every origin may read progress-hub.js.
    const isOriginRefused = !status && (await read('progress-hub.js', { method: 'HEAD' })) === 200;
    if (generation !== this.#generation || this.#isTerminated) return;
    if (status === 401) return this.#refreshTokenOrSignOut('unauthorized');
    if (isOriginRefused) this.#warnOfOrigin();
    this.#backOff(status ? 'refused' : isOriginRefused ? 'origin_refused' : 'unreachable');
  }

  /** Logs the setting that allows this origin, once per client. */
  #warnOfOrigin() {
    if (this.#hasWarnedOfOrigin) return;
    this.#hasWarnedOfOrigin = true;
    console.warn(`progress-hub: ${this.#baseUrl.origin} does not allow pages of ${globalThis.location?.origin}. Add this origin to server.allowed_origins in the hub's configuration.`);
  }

  /** @param {string} reason */
  #refreshTokenOrSignOut(reason) {
    this.#cachedToken = null;
    if (typeof this.#token !== 'function' || this.#hasTriedFreshToken) return this.#terminate('signed_out', reason);
    this.#hasTriedFreshToken = true;
    this.#scheduleReconnect(0, reason);
  }

  /** Schedules a reconnect with exponential backoff and full jitter. @param {string} reason */
  #backOff(reason) {
    this.#scheduleReconnect(Math.random() * Math.min(MAX_BACKOFF_MS, BACKOFF_BASE_MS * 2 ** this.#attempt), reason);
  }

  /** @param {number} delayMs @param {string | null} reason @param {boolean} [isRetryTimeFixed] */
  #scheduleReconnect(delayMs, reason, isRetryTimeFixed = false) {
    clearTimeout(this.#timers.reconnect);
    this.#attempt += 1;
    this.#isRetryTimeFixed = isRetryTimeFixed;
    this.#setState('reconnecting', { attempt: this.#attempt, retryAt: Date.now() + delayMs, reason });
    this.#timers.reconnect = setTimeout(() => this.#connect(), delayMs);
  }

  /** Closes the socket and clears its timers and subscriptions. */
  #releaseSocket() {
    for (const name of SOCKET_TIMERS) {
      clearTimeout(this.#timers[name]);
      this.#timers[name] = undefined;
    }
    const socket = this.#socket;
    this.#socket = null;
    this.#isConnected = false;
    this.#isFeedSubscribed = false;
    this.#subscriptionLimit = MAX_SUBSCRIPTIONS;
    this.#subscribed.clear();
    this.#pendingUnsubscribes.clear();
    this.#openSubscribes.clear();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000);
    } catch {
      // Already closing.
    }
  }

  /** Stops for good and reports the error to every watcher. @param {'signed_out' | 'closed'} name @param {string} reason */
  #terminate(name, reason) {
    if (this.#isTerminated) return;
    this.#isTerminated = true;
    this.#generation += 1;
    clearTimeout(this.#timers.idle);
    this.#releaseSocket();
    this.#setState(name, { reason });
    const error = terminalError(name);
    const watchers = [...this.#feedWatchers, ...[...this.#topics.values()].flatMap(topic => [...topic.watchers])];
    for (const watcher of watchers) if (watcher.onError) invokeListener(watcher.onError, error);
  }

  /** @param {object} frame */
  #send(frame) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** @param {State['name']} name @param {Partial<State>} [fields] */
  #setState(name, { attempt = 0, retryAt = null, since, reason = null } = {}) {
    const before = this.#state;
    this.#state = { name, attempt, retryAt, since: since ?? (before.name === name ? before.since : Date.now()), reason };
    for (const listener of [...this.#stateListeners]) invokeListener(listener, this.#state);
  }

  // ---- liveness

  /** Checks the socket when a heartbeat is missing. A dead TCP connection may not raise `close` for minutes. */
  #scheduleLivenessCheck() {
    const limitMs = this.#heartbeatMs + HEARTBEAT_TOLERANCE_MS;
    const delayMs = this.#timers.pong === undefined ? Math.max(0, this.#lastFrameAt + limitMs - Date.now()) : limitMs;
    const dueAt = Date.now() + delayMs;
    this.#timers.liveness = setTimeout(() => {
      if (Date.now() - dueAt > SUSPENSION_THRESHOLD_MS) this.#onWake();
      else if (Date.now() - this.#lastFrameAt >= limitMs) this.#checkSocket();
      this.#scheduleLivenessCheck();
    }, delayMs);
  }

  /** Sends a ping, and disconnects if no frame follows. */
  #checkSocket = () => {
    if (!this.#isConnected || this.#timers.pong !== undefined) return;
    this.#send({ type: 'ping', id: this.#nextRequestId++ });
    this.#timers.pong = setTimeout(() => this.#onDisconnect(1006, 'silent'), PONG_TIMEOUT_MS);
  };

  /** Handles a tab or network that resumed. Timers did not run in the meantime, so overdue work is done here. */
  #onWake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (!this.#isRetryTimeFixed) this.reconnect();
    if (!this.#isConnected) return;
    if (this.#renewAt && Date.now() >= this.#renewAt) this.#renewToken();
    this.#checkSocket();
  };

  /** @param {string | undefined} now */
  #syncClock(now) {
    const hubTime = Date.parse(now ?? '');
    if (!Number.isNaN(hubTime)) this.#clockOffsetMs = hubTime - Date.now();
  }

  /** Converts a timestamp of the hub to milliseconds of the local clock. @param {string | null | undefined} time */
  #toLocalTime(time) {
    const hubTime = Date.parse(time ?? '');
    return Number.isNaN(hubTime) ? null : hubTime - this.#clockOffsetMs;
  }

  // ---- token

  /** @returns {Promise<string | null>} */
  async #currentToken() {
    if (typeof this.#token !== 'function') return (this.#cachedToken = this.#token || null);
    const expiry = expiryOf(this.#cachedToken);
    if (this.#cachedToken && expiry && expiry - this.now() > 5_000) return this.#cachedToken;
    return this.#fetchToken();
  }

  /** Calls the token function. Concurrent callers share one call. @returns {Promise<string | null>} */
  #fetchToken() {
    const getToken = this.#token;
    if (typeof getToken !== 'function') return Promise.resolve(getToken || null);
    this.#tokenRequest ??= (async () => getToken())()
      .then(token => (this.#cachedToken = token || null))
      .finally(() => (this.#tokenRequest = null));
    return this.#tokenRequest;
  }

  #scheduleRenewal() {
    clearTimeout(this.#timers.renewal);
    this.#renewAt = 0;
    if (typeof this.#token !== 'function' || this.#tokenExpiresAt === null) return;
    const leftMs = this.#tokenExpiresAt - Date.now();
    this.#renewAt = Date.now() + Math.max(0, leftMs - Math.min(leftMs / 5, MAX_RENEWAL_LEAD_MS));
    this.#startRenewalTimer(this.#renewAt - Date.now());
  }

  /** @param {number} delayMs */
  #startRenewalTimer(delayMs) {
    clearTimeout(this.#timers.renewal);
    this.#timers.renewal = setTimeout(() => {
      if (Date.now() < this.#renewAt) this.#startRenewalTimer(this.#renewAt - Date.now());
      else this.#renewToken();
    }, Math.min(delayMs, MAX_TIMER_MS));
  }

  /** Sends a fresh token over the open socket, which extends its lifetime without a reconnect. */
  async #renewToken() {
    if (typeof this.#token !== 'function' || this.#isRenewing) return;
    this.#isRenewing = true;
    const generation = this.#generation;
    try {
      const token = await this.#fetchToken();
      if (generation !== this.#generation || !token) return;
      this.#send({ type: 'auth', token });
      const expiry = expiryOf(token);
      if (expiry !== null) this.#tokenExpiresAt = expiry - this.#clockOffsetMs;
      this.#scheduleRenewal();
    } catch {
      if (generation !== this.#generation || !this.#isConnected) return;
      this.#renewAt = Date.now() + RENEWAL_RETRY_MS;
      this.#startRenewalTimer(RENEWAL_RETRY_MS);
    } finally {
      this.#isRenewing = false;
    }
  }

  // ---- HTTP

  /**
   * Sends a request. A 401 is retried once with a fresh token.
   * @param {string} method
   * @param {string} path
   * @param {{ body?: unknown, headers?: Record<string, string> }} [options]
   * @returns {Promise<any>} the JSON body; rejects with a {@link HubError}
   */
  async #request(method, path, { body, headers = {} } = {}) {
    for (let isRetry = false; ; isRetry = true) {
      const token = isRetry ? await this.#fetchToken() : await this.#currentToken();
      if (!token) throw terminalError('signed_out');
      let response;
      try {
        response = await fetch(new URL(path, this.#baseUrl), {
          method,
          headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
          body: body === undefined ? undefined : JSON.stringify(body),
          cache: 'no-store',
        });
      } catch {
        throw new HubError('unreachable', 'no response from the hub', { retryable: true });
      }
      if (response.ok) return response.json();
      if (response.status !== 401 || isRetry || typeof this.#token !== 'function') throw await toHubError(response);
    }
  }
}

/** Returns a random idempotency key. Unlike `crypto.randomUUID`, it also works on pages served over plain HTTP. */
export function idempotencyKeyOf() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * Decodes the claims of a JWT without verifying the signature. Use them for display and timers, never for authorization.
 *
 * @param {string | null} token
 * @returns {Record<string, unknown>} empty if the token cannot be decoded
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

/** Returns whether `value` is a `token` as defined by RFC 9110. A WebSocket subprotocol allows no other characters. @param {string} value */
function isHttpToken(value) {
  return /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(value);
}

/** @param {string} jobId @param {Job | null | undefined} job the newest document that the client has */
function subscribeEntry(jobId, job) {
  return job ? { job: jobId, version: job.version } : { job: jobId };
}

/** @param {string[]} ids */
function chunksOf(ids) {
  const chunks = [];
  for (let start = 0; start < ids.length; start += MAX_JOBS_PER_FRAME) chunks.push(ids.slice(start, start + MAX_JOBS_PER_FRAME));
  return chunks;
}

/** Returns the query string of the parameters that have a value. @param {object} query */
function searchOf(query) {
  return new URLSearchParams(Object.entries(query).flatMap(([key, value]) => (value == null ? [] : [[key, String(value)]])));
}

/** @param {State['name']} name */
function terminalError(name) {
  return name === 'signed_out' ? new HubError('signed_out', 'not signed in: no valid token', { status: 401 }) : new HubError('closed', 'the client is closed');
}

/** @param {Response} response */
async function toHubError(response) {
  /** @type {{ code?: string, detail?: string, title?: string, retryable?: boolean }} */
  const problem = await response.json().catch(() => ({}));
  const header = response.headers.get('Retry-After');
  const seconds = header === null ? NaN : /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return new HubError(problem.code ?? `http_${response.status}`, problem.detail ?? problem.title ?? response.statusText, {
    status: response.status,
    retryable: problem.retryable ?? false,
    retryAfter: Number.isNaN(seconds) ? null : Math.max(0, seconds),
  });
}

/**
 * Calls a listener. An exception is rethrown in a microtask, so that one faulty listener does not affect the others.
 * @template T
 * @param {(value: T) => void} listener
 * @param {T} value
 */
function invokeListener(listener, value) {
  try {
    listener(value);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
