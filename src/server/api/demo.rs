//! `/demo/session`: what makes the demo's page signed in. Only there in `progress-hub demo`, which
//! listens on loopback only.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;
use url::{Host, Url};

use crate::server::error::Problem;
use crate::time::Time;
use progress_hub_auth::jwt::Minter;

/// How long a demo token lasts; the page renews it.
const TTL: Duration = Duration::from_secs(15 * 60);

/// What the demo's page needs to know.
#[derive(Clone, Debug, Serialize)]
pub struct Demo {
    /// Who the visitor is.
    pub owner: String,
    /// The simulated provider's name in the configuration.
    pub provider: String,
    /// A model that it has.
    pub model: String,
    /// What it can be made to do.
    pub scenarios: Vec<DemoScenario>,
}

/// Something that the simulated provider can be made to do.
#[derive(Clone, Debug, Serialize)]
pub struct DemoScenario {
    /// Its name in `input.scenario`.
    pub name: String,
    /// A few plain words.
    pub title: String,
    /// What to watch for.
    pub expect: String,
}

/// A fresh token, and what the page can offer. Only for those who call this host by a name of
/// loopback: a page elsewhere whose own name was made to lead here gets nothing.
pub async fn session(
    demo: web::Data<Demo>,
    minter: web::Data<Option<Minter>>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let not_here = || Problem::not_found("resource");
    let host = request.headers().get(header::HOST);
    if !host
        .and_then(|host| host.to_str().ok())
        .is_some_and(is_loopback)
    {
        return Err(not_here());
    }
    let minter = minter.get_ref().as_ref().ok_or_else(not_here)?;
    // An admin too, so that the page can say that the provider is mended.
    let scope = Some("jobs:read jobs:write admin");
    let minted = minter
        .mint(&demo.owner, None, scope, TTL, Time::now().timestamp())
        .map_err(|_| not_here())?;
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
