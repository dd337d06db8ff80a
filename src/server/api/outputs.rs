//! `/v1/jobs/{id}/outputs/{n}`: results that only a provider's key can read, passed on.
//!
//! Invariant: whoever fetches one sees neither the key nor where it lies; and whatever the provider
//! calls it, a browser never runs it as a page of the hub's.

use actix_web::body::SizedStream;
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;

use super::jobs::load_visible_job;
use crate::job::{Job, JobId};
use crate::links::Links;
use crate::provider::{Body, Download, DownloadError, Providers, RangeRequest};
use crate::server::caller::Caller;
use crate::server::error::Problem;
use crate::store::Store;
use crate::time::Time;

/// Nothing runs, nothing is loaded, but a browser's own player may show what it was given.
const SANDBOX: &str =
    "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'";

/// What an output of this type is called; its last part when it is saved.
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

/// `GET /v1/jobs/{id}/outputs/{n}`: the output's bytes; where they are public, the way to them.
pub async fn fetch(
    caller: Result<Caller, Problem>,
    store: web::Data<dyn Store>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    granted: web::Query<GrantParam>,
) -> Result<HttpResponse, Problem> {
    let (id, n) = path.into_inner();
    let nothing = || Problem::not_found("output");
    let id = JobId::parse(&id).map_err(|_| nothing())?;
    let n: usize = n.parse().map_err(|_| nothing())?;
    let grant = granted.into_inner().grant;
    let is_open = |grant: &String| links.verify_output_link(&id, n, grant, Time::now());
    let job = match (caller, &grant) {
        (_, Some(grant)) if is_open(grant) => store.get(&id).await?.ok_or_else(nothing)?,
        (Ok(caller), _) => load_visible_job(&**store, &caller, id.as_str()).await?,
        (Err(_), Some(_)) => return Err(link_invalid()),
        (Err(stranger), None) => return Err(stranger),
    };
    let output = job.outputs.get(n).ok_or_else(nothing)?;
    let Some(Some(source)) = job.internal.private_urls.get(n) else {
        return redirect_response(&output.url);
    };
    let provider = job.provider.as_ref().and_then(|name| providers.get(name));
    // Without its provider's key nobody can read it any more.
    let provider = provider.ok_or(DownloadError::Gone)?;
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let wanted = RangeRequest {
        range: header(header::RANGE),
        if_range: header(header::IF_RANGE),
    };
    let download = provider.download(&job, source, &wanted).await?;
    Ok(proxy_response(
        &job,
        n,
        download,
        request.method() == Method::HEAD,
    ))
}

fn link_invalid() -> Problem {
    let detail =
        "the link is not for this output, or has run out; the job's document may have a newer one";
    Problem::new(StatusCode::FORBIDDEN, "invalid_grant", detail)
}

/// An output that anybody can read lies where its document says.
fn redirect_response(address: &str) -> Result<HttpResponse, Problem> {
    let is_web = ["https://", "http://"]
        .iter()
        .any(|web| address.starts_with(web));
    if !is_web {
        return Err(Problem::not_found("output"));
    }
    Ok(HttpResponse::TemporaryRedirect()
        .insert_header((header::LOCATION, address))
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
    let name = format!("inline; filename=\"{}-{n}{extension}\"", job.id);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    for (name, value) in headers {
        response.insert_header((name, value));
    }
    response
        .insert_header((header::CONTENT_TYPE, content_type))
        .insert_header((header::CONTENT_DISPOSITION, name))
        .insert_header((header::CACHE_CONTROL, "private"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, SANDBOX))
        .insert_header((header::REFERRER_POLICY, "no-referrer"));
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        return response.finish();
    }
    // Providers sign URLs for GET alone, so the head of an output is that of a GET cut short.
    let body = (!is_head).then_some(body);
    let pieces = stream::unfold(body, |body: Option<Body>| async {
        let mut body = body?;
        match body.next().await? {
            Ok(piece) => Some((Ok(piece), Some(body))),
            Err(broken) => Some((Err(broken), None)),
        }
    });
    match length {
        Some(length) => response.body(SizedStream::new(length, Box::pin(pieces))),
        None => response.streaming(Box::pin(pieces)),
    }
}

/// Media as it is called; anything that a browser could run is bytes.
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
        for (told, shown) in [
            (Some("video/mp4"), "video/mp4"),
            (Some("Image/PNG; charset=x"), "image/png"),
            (Some("audio/mpeg"), "audio/mpeg"),
            (Some("image/svg+xml"), "application/octet-stream"),
            (Some("text/html"), "application/octet-stream"),
            (Some("application/javascript"), "application/octet-stream"),
            (None, "application/octet-stream"),
        ] {
            assert_eq!(safe_content_type(told), shown, "{told:?}");
        }
    }
}
