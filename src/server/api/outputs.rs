//! `/v1/jobs/{id}/outputs/{n}`: outputs that clients read through the hub.
//!
//! An output in the archive is read there. Before, or without an archive, the hub streams it from the
//! provider. The client sees neither the provider's key nor its URL. No content type makes a browser
//! execute an output in the hub's origin.

pub mod archived;
mod byte_range;
mod content;
mod response;

use actix_web::http::{Method, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use url::Url;

use self::archived::find_archived;
use self::content::OutputContent;
use self::response::stream_response;
use crate::destinations::archive::{Archive, ReadAccess};
use crate::job::JobId;
use crate::links::Links;
use crate::provider::{DownloadError, Downloader, Providers, RangeRequest};
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::ConnectionLimits;
use crate::server::request::{Query, is_web_url};
use crate::server::router::Segment;
use crate::server::subscribe::visible;
use crate::store::Store;
use crate::time::Time;

#[derive(Deserialize)]
pub struct GrantParam {
    grant: Option<String>,
}

/// `GET /v1/jobs/{id}/outputs/{n}`: streams the output, or redirects to its copy in the archive or to
/// its public URL. The caller needs a token or the grant of a signed link.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn fetch(
    caller: Result<Caller, Problem>,
    store: web::Data<dyn Store>,
    providers: web::Data<Providers>,
    downloader: web::Data<Downloader>,
    archive: Option<web::Data<Archive>>,
    links: web::Data<Links>,
    limits: web::Data<ConnectionLimits>,
    request: HttpRequest,
    Segment(id): Segment<2>,
    Segment(n): Segment<4>,
    Query(query): Query<GrantParam>,
) -> Result<HttpResponse, Problem> {
    let not_found = || Problem::not_found("output");
    let id = JobId::parse(&id).map_err(|_| not_found())?;
    let n: usize = n.parse().map_err(|_| not_found())?;
    let is_valid = |grant: &str| links.verify_output_link(&id, n, grant, Time::now());
    let job = match (caller, query.grant.as_deref()) {
        (_, Some(grant)) if is_valid(grant) => store.get(&id).await?.ok_or_else(not_found)?,
        (Ok(caller), _) => visible(&**store, &caller, id.as_str()).await?,
        (Err(problem), Some(_)) if problem.code() == ErrorCode::Unauthorized => {
            return Err(link_invalid());
        }
        (Err(problem), _) => return Err(problem),
    };
    let output = job.outputs.get(n).ok_or_else(not_found)?;
    let Some(Some(source)) = job.internal.output_sources.get(n) else {
        return redirect_response(&output.url);
    };
    let is_head = request.method() == Method::HEAD;
    let range = requested_range(&request);
    let copy = match &archive {
        Some(archive) => find_archived(&**store, archive, &job, n)
            .await?
            .map(|copy| (archive, copy)),
        None => None,
    };
    if let Some((archive, copy)) = &copy
        && let ReadAccess::Redirect(url) = archive.read_access(copy, is_head).await?
    {
        return redirect_response(url.as_str());
    }
    let permit = limits.open_download(&job.owner, &job.id, n)?;
    let content = match (copy, source.inline()) {
        (Some((archive, copy)), _) => OutputContent::archived(archive, &copy, &range).await?,
        (None, Some(inline)) => OutputContent::inline(inline?, &range),
        (None, None) => {
            match content::download(&providers, &downloader, &job, source, &range).await {
                Ok(content) => content,
                // The client may reach what the hub may not.
                Err(DownloadError::UrlNotAllowed(_))
                    if !source.is_private && is_web_url(&source.url) =>
                {
                    return redirect_response(&source.url);
                }
                Err(error) => {
                    if error == DownloadError::Busy {
                        limits.node_is_downloading();
                    }
                    return Err(error.into());
                }
            }
        }
    };
    Ok(stream_response(&job, n, content, is_head, limits, permit))
}

fn link_invalid() -> Problem {
    let detail =
        "the link is for another output or has expired; read the job document for a new link";
    Problem::new(ErrorCode::InvalidGrant, detail)
}

/// Redirects to a public output, or to a copy with a signed URL, which is a credential.
fn redirect_response(url: &str) -> Result<HttpResponse, Problem> {
    let url = is_web_url(url).then(|| Url::parse(url).ok()).flatten();
    let url = url.ok_or_else(|| Problem::not_found("output"))?;
    Ok(HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, url.as_str()))
        .insert_header((header::CACHE_CONTROL, "private, no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .finish())
}

fn requested_range(request: &HttpRequest) -> RangeRequest {
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    RangeRequest {
        range: header(header::RANGE),
        if_range: header(header::IF_RANGE),
    }
}
