//! Counts responses with a problem, and logs those that concern security.
//!
//! Clients can repeat requests, so a line is written once a minute for each subject or provider and
//! reason. Its field `suppressed` is the number of lines that were suppressed before it.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix_web::HttpMessage;
use actix_web::dev::ServiceResponse;
use actix_web::http::Method;
use progress_hub_auth::jwt::{MintedToken, Principal};

use super::error::{ErrorCode, Problem};
use super::limits::ConnectionLimits;
use super::router::MatchedPattern;
use crate::protocol::CloseReason;
use crate::telemetry::{LineLimit, Metrics};

/// Writes the log lines that concern security.
pub struct SecurityLog {
    metrics: Arc<Metrics>,
    lines: LineLimit<(String, &'static str)>,
}

/// The logged fields of a request.
pub struct RequestInfo<'r> {
    pub method: &'r Method,
    /// Pattern of the path, without ids and tokens.
    pub route: &'r str,
    pub address: Option<IpAddr>,
    /// The caller, if it was authenticated.
    pub caller: Option<&'r Principal>,
}

impl SecurityLog {
    /// Counts and logs the problem of a response, if it is one.
    pub fn record(&self, limits: &ConnectionLimits, response: &ServiceResponse) {
        let error = response.response().error();
        let Some(problem) = error.and_then(|error| error.as_error::<Problem>()) else {
            return;
        };
        let request = response.request();
        let extensions = request.extensions();
        let route = extensions.get::<MatchedPattern>();
        let caller = extensions.get::<Rc<Principal>>();
        self.problem(
            problem,
            &RequestInfo {
                method: request.method(),
                route: route.map_or("-", |route| route.0),
                address: limits.client_address(request.peer_addr(), request.headers()),
                caller: caller.map(Rc::as_ref),
            },
        );
    }

    /// Creates the log. Problems are counted in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            lines: LineLimit::default(),
        }
    }

    /// Counts a problem. Logs rejected tokens and forbidden requests.
    pub fn problem(&self, problem: &Problem, request: &RequestInfo<'_>) {
        self.metrics.problem(problem.code().as_str());
        if let (ErrorCode::Unauthorized, Some(reason)) = (problem.code(), problem.reason()) {
            self.token_rejected(reason, request.address);
        }
        if let (ErrorCode::Forbidden, Some(caller)) = (problem.code(), request.caller)
            && let Some(suppressed) = self.admit(caller.subject(), "forbidden")
        {
            tracing::info!(
                caller.sub = caller.subject(),
                caller.jti = caller.token_id(),
                client.address = request.address.map(tracing::field::display),
                http.method = request.method.as_str(),
                http.route = request.route,
                reason = problem.detail(),
                suppressed,
                "request forbidden"
            );
        }
    }

    /// Logs a token that failed verification.
    pub fn token_rejected(&self, reason: &'static str, address: Option<IpAddr>) {
        if let Some(suppressed) = self.admit("", reason) {
            tracing::info!(
                reason,
                client.address = address.map(tracing::field::display),
                suppressed,
                "token rejected"
            );
        }
    }

    /// Logs a webhook that failed verification.
    pub fn webhook_rejected(&self, provider: &str, reason: &'static str, address: Option<IpAddr>) {
        if let Some(suppressed) = self.admit(provider, reason) {
            tracing::warn!(
                provider.name = provider,
                reason,
                client.address = address.map(tracing::field::display),
                suppressed,
                "webhook rejected"
            );
        }
    }

    /// Logs a WebSocket that is closed because of its token.
    pub fn connection_closed(
        &self,
        reason: CloseReason,
        caller: Option<&Principal>,
        address: Option<IpAddr>,
    ) {
        let is_about_token = matches!(
            reason,
            CloseReason::Unauthorized | CloseReason::TokenExpired | CloseReason::AuthTimeout
        );
        let (code, name) = reason.code_and_reason();
        let subject = caller.map(Principal::subject);
        if is_about_token && let Some(suppressed) = self.admit(subject.unwrap_or_default(), name) {
            tracing::info!(
                caller.sub = subject,
                caller.jti = caller.and_then(Principal::token_id),
                client.address = address.map(tracing::field::display),
                close.code = code,
                reason = name,
                suppressed,
                "websocket closed without valid token"
            );
        }
    }

    fn admit(&self, who: &str, reason: &'static str) -> Option<u64> {
        self.lines.admit((who.to_owned(), reason), Instant::now())
    }
}

/// Logs a token that was minted for `subject`. Only admins mint tokens, so lines are not
/// suppressed.
pub fn token_minted(
    caller: &Principal,
    address: Option<IpAddr>,
    subject: &str,
    scope: Option<&str>,
    minted: &MintedToken,
) {
    tracing::info!(
        caller.sub = caller.subject(),
        caller.jti = caller.token_id(),
        client.address = address.map(tracing::field::display),
        token.sub = subject,
        token.jti = minted.id,
        token.scope = scope,
        token.expires_at = %minted.expires_at,
        "token minted"
    );
}
