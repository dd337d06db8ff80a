//! The page and the browser client, from within the binary.

use std::fmt::Write;

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::error::Problem;

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// The page loads nothing from elsewhere, except the results it shows.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; media-src * blob:; img-src * data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A file of `static/` by its path; `/` is the page.
pub async fn file(request: HttpRequest) -> Result<HttpResponse, Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::not_found("resource"));
    }
    let path = match request.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let file = Files::get(path).ok_or_else(|| Problem::not_found("resource"))?;
    let etag = tag(&file);
    let known = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut answer = HttpResponse::build(if known {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    });
    answer
        .insert_header((header::ETAG, etag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    match path {
        "index.html" => {
            answer
                .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
                .insert_header((header::REFERRER_POLICY, "no-referrer"));
        }
        // Apps on other origins import the client from here.
        "progress-hub.js" => {
            answer.insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"));
        }
        _ => {}
    }
    if known {
        return Ok(answer.finish());
    }
    Ok(answer
        .content_type(file.metadata.mimetype())
        .body(file.data))
}

fn tag(file: &EmbeddedFile) -> String {
    let mut tag = String::from("\"");
    for byte in &file.metadata.sha256_hash()[..8] {
        // Writing to a string can't fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}
