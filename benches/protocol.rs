//! Cost of applying an update to a job and of encoding its frame.
//!
//! The job has the fields that a provider's webhook sets, and a title in its metadata.

#![expect(
    clippy::unwrap_used,
    reason = "a failed setup must abort the benchmark"
)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use progress_hub::job::{Job, NewJob, Source, Status, StatusReport, Update};
use progress_hub::protocol::Frame;
use progress_hub::time::Time;

fn progress(percent: f64) -> Update {
    let report = StatusReport {
        progress: Some(percent),
        ..StatusReport::with_status(Status::Running)
    };
    report.into_update(Source::Webhook)
}

fn main() {
    let now = Time::now();
    let metadata = [("title".to_owned(), "A paper boat at dawn".into())];
    let new = NewJob {
        owner: "alice".into(),
        provider: Some("kling".into()),
        provider_task_id: Some("817235034244244789".into()),
        model: Some("kling-v3.0-pro".into()),
        metadata: metadata.into_iter().collect(),
        request: None,
        deadline: Duration::from_secs(1800),
    };
    let job = Job::new(new, now).apply(progress(40.0), now).unwrap();
    let next = Arc::new(job.apply(progress(60.0), now).unwrap());
    let mut criterion = Criterion::default().configure_from_args();

    let mut apply = criterion.benchmark_group("apply");
    apply.bench_function("changed", |bencher| {
        bencher.iter_batched(
            || progress(60.0),
            |update| job.apply(update, now),
            BatchSize::SmallInput,
        );
    });
    apply.bench_function("unchanged", |bencher| {
        bencher.iter_batched(
            || progress(20.0),
            |update| job.apply(update, now),
            BatchSize::SmallInput,
        );
    });
    apply.finish();

    let mut frames = criterion.benchmark_group("frame");
    let length = Frame::new(Arc::clone(&next)).websocket().len() as u64;
    frames.throughput(Throughput::Bytes(length));
    frames.bench_function("encode", |bencher| {
        bencher.iter_batched(
            || Frame::new(Arc::clone(&next)),
            |frame| frame.websocket().clone(),
            BatchSize::SmallInput,
        );
    });
    frames.finish();
    criterion.final_summary();
}
