//! The page and the browser client, which are embedded in the binary.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use actix_web::http::{Method, header};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::compression::{ACCEPT_ENCODING, Effort, Encoding, is_compressible};
use super::error::Problem;

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// Policy of the page: it loads media from other hosts, and everything else from the hub.
const CONTENT_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; media-src * blob:; img-src * data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Compressed files by entity tag, which has the hash of the content and the encoding. A file is
/// compressed when it is first requested.
static COMPRESSED: LazyLock<Mutex<HashMap<String, Bytes>>> = LazyLock::new(Mutex::default);

/// Returns a file of `static/` by its path. `/` is the page.
pub async fn file(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let path = match request.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let file = Files::get(path).ok_or_else(|| Problem::not_found("resource"))?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::method_not_allowed("GET, HEAD"));
    }
    let is_compressible = is_compressible(file.metadata.mimetype(), file.data.len());
    let encoding = Encoding::negotiate(&request).filter(|_| is_compressible);
    let etag = etag(&file, encoding);
    let if_none_match = request.headers().get(header::IF_NONE_MATCH);
    let is_unchanged = if_none_match.is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut response = if is_unchanged {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    response
        .insert_header((header::ETAG, etag.clone()))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    if is_compressible {
        response.insert_header((header::VARY, ACCEPT_ENCODING));
    }
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
    response.content_type(file.metadata.mimetype());
    let compressed = encoding.and_then(|encoding| {
        let body = compressed(&etag, &file, encoding)?;
        response.insert_header((header::CONTENT_ENCODING, encoding.as_str()));
        Some(body)
    });
    Ok(match compressed {
        Some(body) => response.body(body),
        None => response.body(file.data),
    })
}

/// Returns the compressed file, or `None` if it cannot be compressed.
fn compressed(etag: &str, file: &EmbeddedFile, encoding: Encoding) -> Option<Bytes> {
    let cache = || COMPRESSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(body) = cache().get(etag) {
        return Some(body.clone());
    }
    let body = encoding.compress(&file.data, Effort::High).ok()?;
    cache().insert(etag.to_owned(), body.clone());
    Some(body)
}

fn etag(file: &EmbeddedFile, encoding: Option<Encoding>) -> String {
    let hash = file.metadata.sha256_hash();
    let prefix: [u8; 8] = std::array::from_fn(|index| hash[index]);
    let suffix = encoding.map_or(String::new(), |encoding| format!("-{}", encoding.as_str()));
    format!("\"{:016x}{suffix}\"", u64::from_be_bytes(prefix))
}
