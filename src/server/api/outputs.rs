//! `/v1/jobs/{id}/outputs/{n}`: streams outputs that only the provider's API key can read.
//!
//! The client sees neither the key nor the provider's URL. No content type makes a browser execute an
//! output in the hub's origin.

use actix_web::body::SizedStream;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use url::Url;

use crate::job::{Job, JobId};
use crate::links::Links;
use crate::provider::{Body, Download, DownloadError, Providers, RangeRequest};
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::request::is_web_url;
use crate::server::subscribe::visible;
use crate::store::Store;
use crate::time::Time;

/// Policy that blocks scripts and requests, but lets the browser's own player show the output.
const CONTENT_POLICY: &str =
    "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'";

/// File extension for each content type.
const EXTENSIONS: [(&str, &str); 14] = [
    ("video/mp4", ".mp4"),
    ("video/webm", ".webm"),
    ("video/quicktime", ".mov"),
    ("image/png", ".png"),
    ("image/jpeg", ".jpg"),
    ("image/webp", ".webp"),
    ("image/gif", ".gif"),
    ("image/avif", ".avif"),
    ("audio/mpeg", ".mp3"),
    ("audio/mp4", ".m4a"),
    ("audio/wav", ".wav"),
    ("audio/x-wav", ".wav"),
    ("audio/ogg", ".ogg"),
    ("audio/flac", ".flac"),
];

#[derive(Deserialize)]
pub struct GrantParam {
    grant: Option<String>,
}

/// `GET /v1/jobs/{id}/outputs/{n}`: streams the output, or redirects to it if its URL is public. The
/// caller needs a token or the grant of a signed link.
pub async fn fetch(
    caller: Result<Caller, Problem>,
    store: web::Data<dyn Store>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    query: web::Query<GrantParam>,
) -> Result<HttpResponse, Problem> {
    let not_found = || Problem::not_found("output");
    let id = JobId::parse(&path.0).map_err(|_| not_found())?;
    let n: usize = path.1.parse().map_err(|_| not_found())?;
    let is_valid = |grant: &str| links.verify_output_link(&id, n, grant, Time::now());
    let job = match (caller, query.grant.as_deref()) {
        (_, Some(grant)) if is_valid(grant) => store.get(&id).await?.ok_or_else(not_found)?,
        (Ok(caller), _) => visible(&**store, &caller, id.as_str()).await?,
        (Err(_), Some(_)) => return Err(link_invalid()),
        (Err(unauthorized), None) => return Err(unauthorized),
    };
    let output = job.outputs.get(n).ok_or_else(not_found)?;
    let Some(Some(source)) = job.internal.private_urls.get(n) else {
        return redirect_response(&output.url);
    };
    let provider = job.provider.as_ref().and_then(|name| providers.get(name));
    // A provider that was removed from the configuration has no key to read the output with.
    let provider = provider.ok_or(DownloadError::Gone)?;
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let range = RangeRequest {
        range: header(header::RANGE),
        if_range: header(header::IF_RANGE),
    };
    let download = provider.download(&job, source, &range).await?;
    Ok(proxy_response(
        &job,
        n,
        download,
        request.method() == Method::HEAD,
    ))
}

fn link_invalid() -> Problem {
    let detail =
        "the link is for another output or has expired; read the job document for a new link";
    Problem::new(ErrorCode::InvalidGrant, detail)
}

/// Redirects to a public output.
fn redirect_response(url: &str) -> Result<HttpResponse, Problem> {
    let url = Url::parse(url).ok().filter(|_| is_web_url(url));
    let url = url.ok_or_else(|| Problem::not_found("output"))?;
    Ok(HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, url.as_str()))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .finish())
}

fn proxy_response(job: &Job, n: usize, download: Download, is_head: bool) -> HttpResponse {
    let Download {
        status,
        content_type,
        length,
        headers,
        body,
    } = download;
    let content_type = safe_content_type(content_type.as_deref());
    let extension = EXTENSIONS.iter().find(|(known, _)| *known == content_type);
    let extension = extension.map_or("", |(_, extension)| extension);
    let disposition = format!("inline; filename=\"{}-{n}{extension}\"", job.id);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    for (name, value) in headers {
        response.insert_header((name, value));
    }
    response
        .insert_header((header::CONTENT_TYPE, content_type))
        .insert_header((header::CONTENT_DISPOSITION, disposition))
        .insert_header((header::CACHE_CONTROL, "private"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return response.finish();
    }
    // Providers sign URLs for GET only, so HEAD is a GET whose body is not sent.
    let body = (!is_head).then_some(body);
    let chunks = stream::unfold(body, |body: Option<Body>| async {
        let mut body = body?;
        match body.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some(body))),
            Err(error) => Some((Err(error), None)),
        }
    });
    match length {
        Some(length) => response.body(SizedStream::new(length, Box::pin(chunks))),
        None => response.streaming(Box::pin(chunks)),
    }
}

/// Returns the content type of media, and `application/octet-stream` for all types that a browser
/// could execute.
fn safe_content_type(content_type: Option<&str>) -> String {
    let name = content_type.unwrap_or_default().split(';').next();
    let name = name.unwrap_or_default().trim().to_ascii_lowercase();
    let is_media = ["video/", "image/", "audio/"]
        .iter()
        .any(|kind| name.starts_with(kind));
    if is_media && name != "image/svg+xml" {
        name
    } else {
        "application/octet-stream".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_media_content_types_become_octet_stream() {
        for (content_type, expected) in [
            (Some("video/mp4"), "video/mp4"),
            (Some("Image/PNG; charset=x"), "image/png"),
            (Some("audio/mpeg"), "audio/mpeg"),
            (Some("image/svg+xml"), "application/octet-stream"),
            (Some("text/html"), "application/octet-stream"),
            (Some("application/javascript"), "application/octet-stream"),
            (None, "application/octet-stream"),
        ] {
            assert_eq!(
                safe_content_type(content_type),
                expected,
                "{content_type:?}"
            );
        }
    }
}
