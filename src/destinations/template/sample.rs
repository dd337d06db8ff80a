//! Documents that templates are tried with.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::job::{Cost, Failure, FailureKind, Job, NewJob, Output, Status};
use crate::outbox::Event;
use crate::time::Time;

/// Returns a document of a job after this event.
pub(in crate::destinations) fn document(event: Event) -> Value {
    let now = Time::now();
    let job = Job {
        status: match event {
            Event::Created => Status::Accepted,
            Event::Updated => Status::Running,
            Event::Succeeded => Status::Succeeded,
            Event::Failed => Status::Failed,
            Event::Cancelled => Status::Cancelled,
        },
        outputs: match event {
            Event::Succeeded => vec![output(now)],
            Event::Created | Event::Updated | Event::Failed | Event::Cancelled => Vec::new(),
        },
        error: (event == Event::Failed).then(|| Failure {
            provider_code: Some("1301".to_owned()),
            ..Failure::new(FailureKind::Safety, "declined by the moderation")
        }),
        finished_at: (event != Event::Created && event != Event::Updated).then_some(now),
        progress: Some(40.0),
        queue_position: Some(2),
        stage: Some("rendering".to_owned()),
        started_at: Some(now),
        eta_seconds: Some(30.0),
        next_attempt_at: Some(now),
        cost: Some(Cost {
            amount: 0.35,
            unit: "usd".to_owned(),
        }),
        internal: Arc::default(),
        ..Job::new(
            NewJob {
                owner: "ada".to_owned(),
                provider: Some("kling".to_owned()),
                provider_task_id: Some("893605946402811985".to_owned()),
                model: Some("kling-v3.0-pro".to_owned()),
                metadata: Map::new(),
                request: None,
                deadline: Duration::from_secs(60),
            },
            now,
        )
    };
    serde_json::to_value(job).unwrap_or_default()
}

fn output(now: Time) -> Output {
    Output {
        kind: "video".to_owned(),
        url: "https://cdn.example.com/video.mp4".to_owned(),
        duration: Some(5.0),
        expires_at: Some(now),
        watermark_url: Some("https://cdn.example.com/watermarked.mp4".to_owned()),
        nsfw: Some(false),
    }
}
