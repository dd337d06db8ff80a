//! The routes, and the data that their handlers use.

use std::sync::Arc;
use std::time::Instant;

use actix_cors::Cors;
use actix_web::http::header::{self, HeaderValue};
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpResponse, web};

use super::api::health::{AdminListener, StartedAt};
use super::api::{
    deliveries, demo, destinations, events, health, jobs, outputs, providers, tokens, videos,
    webhooks, workers,
};
use super::components::Components;
use super::error::{ErrorCode, Problem};
use super::origin::OriginPolicy;
use super::router::{Resource, Router};
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
            .app_data(web::Data::from(components.destinations))
            .app_data(web::Data::from(components.admission))
            .app_data(web::Data::from(components.canceller))
            .app_data(web::Data::from(components.verifier))
            .app_data(web::Data::from(components.minter))
            .app_data(web::Data::from(components.metrics))
            .app_data(web::Data::from(components.security))
            .app_data(web::Data::from(components.drain))
            .app_data(web::Data::from(components.limits))
            .app_data(web::Data::from(components.origins))
            .app_data(web::Data::new(components.links))
            .app_data(web::Data::new(components.downloader))
            .app_data(web::Data::new(components.webhook_hosts))
            .app_data(web::Data::new(components.wakeups))
            .app_data(web::Data::new(StartedAt(started_at)))
            .app_data(web::Data::new(components.config.server.clone()))
            .app_data(web::Data::new(components.config.store.clone()))
            .app_data(web::Data::new(components.config.socket.clone()))
            .app_data(web::Data::new(components.config.defaults.clone()));
        if let Some(archive) = components.archive {
            app.app_data(web::Data::from(archive));
        }
        let mut resources = vec![
            Resource::new("/v1/jobs/{id}/updates").post(workers::push),
            Resource::new("/v1/webhooks/{provider}/{token}").post(webhooks::receive_with_token),
            Resource::new("/v1/webhooks/{provider}").post(webhooks::receive),
            Resource::new("/v1/jobs/{id}").get(jobs::show),
            Resource::new("/v1/videos").post(videos::submit),
            Resource::new("/v1/jobs")
                .get(jobs::list)
                .post(workers::register),
            Resource::new("/v1/jobs/{id}/cancel")
                .get(jobs::cancellable)
                .post(jobs::cancel),
            Resource::new("/v1/jobs/{id}/outputs/{n}").get(outputs::fetch),
            Resource::new("/v1/tokens").post(tokens::mint),
            Resource::new("/v1/providers").get(providers::list),
            Resource::new("/v1/providers/{name}/resume").post(providers::resume),
            Resource::new("/v1/deliveries").get(deliveries::list),
            Resource::new("/v1/deliveries/{id}/redeliver").post(deliveries::redeliver),
            Resource::new("/v1/destinations").get(destinations::list),
            Resource::new("/v1/destinations/{name}/test").post(destinations::test),
            Resource::new("/v1/destinations/{name}/enable").post(destinations::enable),
            Resource::new("/v1/destinations/{name}/disable").post(destinations::disable),
            Resource::new("/v1/events").get(events::open),
            Resource::new("/v1/ws").get(upgrade_required),
        ];
        resources.extend(health_checks());
        if components.config.server.admin_bind.is_none() {
            resources.push(metrics());
        }
        if let Some(demo) = components.demo {
            app.configure(demo.routes).app_data(web::Data::new(demo));
            resources.push(Resource::new("/demo/session").get(demo::session));
        }
        app.default_service(Router::new(resources, web::to(static_files::file)));
    }
}

/// Registers the resources of the admin listener: health checks and metrics. The listener verifies
/// no tokens, and its metrics include all balances and spending.
pub fn configure_admin(
    components: &Components,
    started_at: Instant,
) -> impl FnOnce(&mut web::ServiceConfig) + use<> {
    let components = components.clone();
    move |app| {
        app.app_data(web::Data::<dyn Store>::from(components.store))
            .app_data(web::Data::from(components.hub))
            .app_data(web::Data::from(components.providers))
            .app_data(web::Data::from(components.destinations))
            .app_data(web::Data::from(components.metrics))
            .app_data(web::Data::from(components.security))
            .app_data(web::Data::from(components.limits))
            .app_data(web::Data::from(components.drain))
            .app_data(web::Data::new(AdminListener))
            .app_data(web::Data::new(StartedAt(started_at)));
        let resources = health_checks().into_iter().chain([metrics()]);
        app.default_service(Router::new(resources.collect(), web::to(not_found)));
    }
}

fn health_checks() -> [Resource; 3] {
    [
        Resource::new("/v1/health").get(health::check),
        Resource::new("/v1/health/live").get(health::live),
        Resource::new("/v1/health/ready").get(health::ready),
    ]
}

fn metrics() -> Resource {
    Resource::new("/metrics").get(health::metrics)
}

/// Response of the admin listener to any other path.
async fn not_found() -> Result<HttpResponse, Problem> {
    Err(Problem::not_found("resource"))
}

/// `GET /v1/ws` without an upgrade.
async fn upgrade_required() -> Result<HttpResponse, Problem> {
    let detail = "this resource is a WebSocket; send an upgrade request";
    Err(Problem::new(ErrorCode::UpgradeRequired, detail)
        .with_header(header::UPGRADE, HeaderValue::from_static("websocket")))
}

/// `Strict-Transport-Security`: browsers use only TLS for this host for one year.
const STRICT_TRANSPORT: &str = "max-age=31536000";

/// Returns the headers of every response. If the hub terminates TLS, they include
/// `Strict-Transport-Security`.
pub fn security_headers(server: &ServerConfig) -> DefaultHeaders {
    let headers = DefaultHeaders::new().add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    match server.tls() {
        Some(_) => headers.add((header::STRICT_TRANSPORT_SECURITY, STRICT_TRANSPORT)),
        None => headers,
    }
}

/// Returns the CORS policy: pages of the allowed origins may call the API with tokens, without cookies.
pub fn cors(origins: Arc<OriginPolicy>) -> Cors {
    let cors = Cors::default()
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
    if origins.allows_all() {
        return cors.allow_any_origin().send_wildcard();
    }
    cors.allowed_origin_fn(move |origin, _| {
        origin
            .to_str()
            .is_ok_and(|origin| origins.is_listed(origin))
    })
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
