//! Settings and state that all requests and tasks share.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::scenario::Scenario;
use super::signing::SigningKeys;
use super::state::SimulatorState;

/// Settings of the simulator.
#[derive(Clone)]
pub struct Settings {
    /// API key that every request must carry.
    pub api_key: String,
    /// `whsec_` and the base64 key for Standard Webhooks. `None`: these webhooks are not signed.
    pub webhook_secret: Option<String>,
    /// Duration of one step of a task, and initial delay before a webhook is retried.
    pub pace: Duration,
    /// Scenario of submits that do not select one.
    pub default_scenario: Scenario,
}

/// Settings and state that all requests and tasks share.
pub(super) struct Context {
    pub settings: Settings,
    /// URL for webhooks of dialects that have one per account.
    pub project: Option<Url>,
    /// Base URL of clips, if they are not requested from the simulator.
    pub clip_origin: Option<String>,
    pub keys: SigningKeys,
    /// Keys for forged signatures, which receivers do not have.
    pub forged_keys: SigningKeys,
    /// Sends webhooks.
    pub client: Client,
    pub state: Arc<SimulatorState>,
    /// Tasks whose work is not done.
    pub running: TaskTracker,
    /// Ends the work on all tasks.
    pub stop: CancellationToken,
}
