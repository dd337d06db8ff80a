//! The routes, and the data that their handlers use.

use std::time::Instant;

use actix_cors::Cors;
use actix_web::http::header;
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpResponse, web};

use super::api::health::StartedAt;
use super::api::{
    demo, events, health, jobs, outputs, providers, tokens, videos, webhooks, workers,
};
use super::components::Components;
use super::error::{ErrorCode, Problem};
use super::static_files;
use crate::config::ServerConfig;
use crate::store::Store;

/// Registers every resource, and the components as application data. `started_at` is the start time of
/// the node.
pub fn configure(
    components: &Components,
    started_at: Instant,
) -> impl FnOnce(&mut web::ServiceConfig) + use<> {
    let components = components.clone();
    move |app| {
        app.app_data(web::Data::<dyn Store>::from(components.store))
            .app_data(web::Data::from(components.hub))
            .app_data(web::Data::from(components.providers))
            .app_data(web::Data::from(components.tracker))
            .app_data(web::Data::from(components.admission))
            .app_data(web::Data::from(components.canceller))
            .app_data(web::Data::from(components.verifier))
            .app_data(web::Data::from(components.minter))
            .app_data(web::Data::from(components.metrics))
            .app_data(web::Data::from(components.security))
            .app_data(web::Data::from(components.drain))
            .app_data(web::Data::new(components.links))
            .app_data(web::Data::new(components.wakeups))
            .app_data(web::Data::new(StartedAt(started_at)))
            .app_data(web::Data::new(components.config.server.clone()))
            .app_data(web::Data::new(components.config.store.clone()))
            .app_data(web::Data::new(components.config.socket.clone()))
            .app_data(web::Data::new(components.config.defaults.clone()))
            .app_data(
                web::QueryConfig::default()
                    .error_handler(|error, _| Problem::invalid(error.to_string()).into()),
            );
        let resources = [
            ("/v1/videos", vec![web::post().to(videos::submit)]),
            (
                "/v1/jobs",
                vec![web::get().to(jobs::list), web::post().to(workers::register)],
            ),
            (
                "/v1/jobs/{id}",
                vec![web::get().to(jobs::show), web::head().to(jobs::show)],
            ),
            ("/v1/jobs/{id}/updates", vec![web::post().to(workers::push)]),
            ("/v1/jobs/{id}/cancel", vec![web::post().to(jobs::cancel)]),
            (
                "/v1/jobs/{id}/outputs/{n}",
                vec![
                    web::get().to(outputs::fetch),
                    web::head().to(outputs::fetch),
                ],
            ),
            ("/v1/tokens", vec![web::post().to(tokens::mint)]),
            (
                "/v1/webhooks/{provider}",
                vec![web::post().to(webhooks::receive)],
            ),
            (
                "/v1/webhooks/{provider}/{token}",
                vec![web::post().to(webhooks::receive_with_token)],
            ),
            ("/v1/providers", vec![web::get().to(providers::list)]),
            (
                "/v1/providers/{name}/resume",
                vec![web::post().to(providers::resume)],
            ),
            ("/v1/events", vec![web::get().to(events::open)]),
            ("/v1/ws", vec![web::get().to(upgrade_required)]),
            (
                "/v1/health",
                vec![web::get().to(health::check), web::head().to(health::check)],
            ),
            (
                "/v1/health/live",
                vec![web::get().to(health::live), web::head().to(health::live)],
            ),
            (
                "/v1/health/ready",
                vec![web::get().to(health::ready), web::head().to(health::ready)],
            ),
            ("/metrics", vec![web::get().to(health::metrics)]),
        ];
        for (path, routes) in resources {
            let mut resource = web::resource(path).default_service(web::to(method_not_allowed));
            for route in routes {
                resource = resource.route(route);
            }
            app.service(resource);
        }
        if let Some(demo) = components.demo {
            app.app_data(web::Data::new(demo))
                .route("/demo/session", web::get().to(demo::session));
        }
        app.default_service(web::to(static_files::file));
    }
}

/// Response of an existing resource to another method.
async fn method_not_allowed() -> Result<HttpResponse, Problem> {
    let detail = "this resource does not support the method";
    Err(Problem::new(ErrorCode::MethodNotAllowed, detail))
}

/// `GET /v1/ws` without an upgrade.
async fn upgrade_required() -> Result<HttpResponse, Problem> {
    let detail = "this resource is a WebSocket; send an upgrade request";
    Err(Problem::new(ErrorCode::UpgradeRequired, detail))
}

/// Time for which a browser uses TLS only for the hub's host: a year.
const STRICT_TRANSPORT: &str = "max-age=31536000";

/// Returns the headers of every response. With TLS of the hub's own, browsers use no other connection.
pub fn security_headers(server: &ServerConfig) -> DefaultHeaders {
    let headers = DefaultHeaders::new().add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    match server.tls() {
        Some(_) => headers.add((header::STRICT_TRANSPORT_SECURITY, STRICT_TRANSPORT)),
        None => headers,
    }
}

/// Returns the CORS policy: pages of the allowed origins may call the API with tokens, without cookies.
pub fn cors(server: &ServerConfig) -> Cors {
    let mut cors = Cors::default()
        .allow_any_method()
        .allow_any_header()
        .expose_headers([
            "accept-ranges",
            "content-disposition",
            "content-range",
            "etag",
            "location",
            "retry-after",
        ])
        .max_age(3600)
        .block_on_origin_mismatch(false);
    for origin in &server.allowed_origins {
        cors = match origin.as_str() {
            "*" => cors.allow_any_origin().send_wildcard(),
            origin => cors.allowed_origin(origin),
        };
    }
    cors
}

#[cfg(test)]
mod tests {
    use actix_web::{App, test};

    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn hub_with_tls_of_its_own_requires_tls() {
        for (file, expected) in [(None, None), (Some("Cargo.toml"), Some("max-age=31536000"))] {
            let mut server = Config::defaults().server;
            server.tls_cert = file.map(Into::into);
            server.tls_key = file.map(Into::into);
            let app = App::new()
                .wrap(security_headers(&server))
                .default_service(web::to(HttpResponse::Ok));
            let app = test::init_service(app).await;
            let response = test::call_service(&app, test::TestRequest::get().to_request()).await;
            let sent = response.headers().get(header::STRICT_TRANSPORT_SECURITY);
            assert_eq!(sent.map(|value| value.to_str().unwrap()), expected);
            let sent = response.headers().get(header::X_CONTENT_TYPE_OPTIONS);
            assert_eq!(sent.unwrap(), "nosniff");
        }
    }
}
