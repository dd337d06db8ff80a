//! `GET /demo/session`: signs in the page of `progress-hub demo`. Other hubs do not have this
//! resource.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;
use url::{Host, Url};

use crate::server::error::Problem;
use crate::time::Time;
use progress_hub_auth::jwt::Minter;

/// Lifetime of a demo token. The page renews it.
const TOKEN_TTL: Duration = Duration::from_secs(15 * 60);

/// Data for the page of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    /// The subject of the visitor's token.
    pub owner: String,
    /// Name of the simulated provider in the configuration.
    pub provider: String,
    /// A model of the simulated provider.
    pub model: String,
    /// The scenarios of the simulated provider.
    pub scenarios: Vec<DemoScenario>,
    /// Adds the routes of the simulated outputs.
    #[serde(skip)]
    pub routes: fn(&mut web::ServiceConfig),
}

/// A scenario of the simulated provider.
#[derive(Clone, Debug, Serialize)]
pub struct DemoScenario {
    /// Value of `input.scenario` that selects it.
    pub name: String,
    /// Short title.
    pub title: String,
    /// Expected course of the job.
    pub expect: String,
}

/// Returns a new token and the data for the page. The `Host` header must be a loopback name or address:
/// this prevents DNS rebinding, by which a foreign page could read the token.
pub async fn session(
    demo: web::Data<Demo>,
    minter: web::Data<Option<Minter>>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let not_found = || Problem::not_found("resource");
    let host = request.headers().get(header::HOST);
    if !host
        .and_then(|host| host.to_str().ok())
        .is_some_and(is_loopback)
    {
        return Err(not_found());
    }
    let minter = minter.get_ref().as_ref().ok_or_else(not_found)?;
    // `admin` lets the page resume a suspended provider.
    let scope = Some("jobs:read jobs:write admin");
    let minted = minter
        .mint(&demo.owner, None, scope, TOKEN_TTL, Time::now().timestamp())
        .map_err(|_| not_found())?;
    let mut session = json!(&**demo);
    session["token"] = minted.token.into();
    session["expires_at"] = json!(Time::from(minted.expires_at));
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(session))
}

fn is_loopback(host: &str) -> bool {
    let url = Url::parse(&format!("http://{host}"));
    url.is_ok_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}
