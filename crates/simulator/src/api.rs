//! The routes: all dialects, each under its name, the clip under any of their paths, and the inspector.

use actix_web::web::{self, Bytes, Data, Json, Path, PayloadConfig, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

use super::call::Call;
use super::context::Context;
use super::inspector::Inspector;
use super::state::Counts;
use super::task::Task;
use super::{clip, providers, receiver};

/// Maximum size of a body in bytes. Images may be sent as base64.
const MAX_BODY: usize = 16 * 1024 * 1024;

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .app_data(PayloadConfig::new(MAX_BODY))
        .route("/simulator/counts", web::get().to(counts))
        .route("/simulator/counts/{dialect}", web::get().to(counts_in))
        .route("/simulator/tasks", web::get().to(tasks))
        .route("/simulator/received", web::get().to(receiver::received))
        .route("/receiver", web::post().to(receiver::receive))
        .route("/receiver/{name}", web::post().to(receiver::receive))
        .default_service(web::to(answer));
}

/// Adds the route of the clips to another server, for [`Simulator::with_clip_origin`](super::Simulator::with_clip_origin).
pub fn clip_route(config: &mut ServiceConfig) {
    let clip = |request: HttpRequest| async move { clip::serve(&request) };
    let clip = web::resource("/clips/{number:[0-9]+}.mp4")
        .route(web::get().to(clip))
        .route(web::head().to(clip));
    config.service(clip);
}

async fn answer(request: HttpRequest, body: Bytes, context: Data<Context>) -> HttpResponse {
    let (dialect, answer) = providers::find(request.path());
    let call = Call::new(&context, dialect, &request, &body);
    if let ("GET" | "HEAD", ["clips", name]) = call.route()
        && name.ends_with(".mp4")
    {
        call.count(|counts| counts.downloads += 1);
        return clip::serve(&request);
    }
    answer(&call)
        .await
        .unwrap_or_else(|error| (dialect.error)(&error))
}

async fn counts(context: Data<Context>) -> Json<Counts> {
    Json(Inspector(context.state.clone()).calls())
}

async fn counts_in(context: Data<Context>, dialect: Path<String>) -> Json<Counts> {
    Json(Inspector(context.state.clone()).calls_in(&dialect))
}

async fn tasks(context: Data<Context>) -> Json<Vec<Task>> {
    Json(Inspector(context.state.clone()).tasks())
}
