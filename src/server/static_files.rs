//! The page and the browser client, which are embedded in the binary.

use actix_web::http::{Method, header};
use actix_web::{HttpRequest, HttpResponse};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::error::Problem;

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// Policy of the page: it loads media from other hosts, and everything else from the hub.
const CONTENT_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; media-src * blob:; img-src * data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Returns a file of `static/` by its path. `/` is the page.
pub async fn file(request: HttpRequest) -> Result<HttpResponse, Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::not_found("resource"));
    }
    let path = match request.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let file = Files::get(path).ok_or_else(|| Problem::not_found("resource"))?;
    let etag = etag(&file);
    let if_none_match = request.headers().get(header::IF_NONE_MATCH);
    let is_unchanged = if_none_match.is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut response = if is_unchanged {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::ETAG, etag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    match path {
        "index.html" => {
            response
                .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_POLICY))
                .insert_header((header::REFERRER_POLICY, "no-referrer"));
        }
        // Pages of other origins import the client from here.
        "progress-hub.js" => {
            response.insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"));
        }
        _ => {}
    }
    if is_unchanged {
        return Ok(response.finish());
    }
    Ok(response
        .content_type(file.metadata.mimetype())
        .body(file.data))
}

fn etag(file: &EmbeddedFile) -> String {
    let hash = file.metadata.sha256_hash();
    let prefix: [u8; 8] = std::array::from_fn(|index| hash[index]);
    format!("\"{:016x}\"", u64::from_be_bytes(prefix))
}
