//! The bodies of webhooks.

use serde_json::json;

use super::super::template::sample;
use crate::job::JobId;
use crate::outbox::{Delivery, DeliveryId, Event, Progress};
use crate::time::Time;

/// Event of a test.
const TEST_EVENT: &str = "webhook.test";

/// Returns the body of Standard Webhooks: the event, the time of the version, and the document.
pub(super) fn body(delivery: &Delivery) -> String {
    let event = json!(delivery.id.event);
    let (timestamp, document) = (delivery.created_at, &delivery.document);
    format!(r#"{{"type":{event},"timestamp":"{timestamp}","data":{document}}}"#)
}

/// Returns a delivery that tests a destination. Its document is a sample.
pub(super) fn test(destination: &str) -> Delivery {
    let now = Time::now();
    let document = sample::document(Event::Succeeded);
    let job = document["id"].as_str().map(JobId::parse);
    Delivery {
        id: DeliveryId {
            job: job.and_then(Result::ok).unwrap_or_else(JobId::new),
            version: 1,
            event: TEST_EVENT.to_owned(),
            destination: destination.to_owned(),
        },
        owner: String::new(),
        target: None,
        document: document.to_string(),
        created_at: now,
        progress: Progress::new(now),
    }
}
