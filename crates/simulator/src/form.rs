//! Parser of `multipart/form-data` bodies.

use std::convert::Infallible;

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::Bytes;
use aws_lc_rs::digest;
use futures_util::stream;
use multer::{Field, Multipart};
use serde_json::{Map, Value, json};

use super::api_error::ApiError;

/// Maximum number of fields.
const MAX_FIELDS: usize = 100;

/// Reads the fields of a form as a JSON object. A file becomes an object with its size and digest. Returns `None` if
/// the body has another format.
///
/// # Errors
/// The body is not a valid form, or a text is not UTF-8.
pub(super) async fn read(request: &HttpRequest, body: &[u8]) -> Result<Option<Value>, ApiError> {
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let boundary = match content_type.map(multer::parse_boundary) {
        None | Some(Err(multer::Error::NoMultipart | multer::Error::DecodeContentType(_))) => {
            return Ok(None);
        }
        Some(boundary) => boundary.map_err(malformed)?,
    };
    let body = Ok::<_, Infallible>(Bytes::copy_from_slice(body));
    let mut form = Multipart::new(stream::iter([body]), boundary);
    let mut fields = Map::new();
    while let Some(field) = form.next_field().await.map_err(malformed)? {
        if fields.len() == MAX_FIELDS {
            let why = format!("the form has more than {MAX_FIELDS} fields");
            return Err(ApiError::Malformed(why));
        }
        let name = field.name().unwrap_or_default().to_owned();
        if fields.contains_key(&name) {
            return Err(ApiError::Malformed(format!("duplicate field {name}")));
        }
        fields.insert(name, value(field).await?);
    }
    Ok(Some(Value::Object(fields)))
}

async fn value(field: Field<'_>) -> Result<Value, ApiError> {
    let file_name = field.file_name().map(str::to_owned);
    let is_steps = field.name() == Some("steps");
    let content = field.bytes().await.map_err(malformed)?;
    if let Some(file_name) = file_name {
        let digest = hex::encode(digest::digest(&digest::SHA256, &content));
        return Ok(json!({"filename": file_name, "bytes": content.len(), "sha256": digest}));
    }
    let text = String::from_utf8(content.to_vec());
    let text =
        text.map_err(|_| ApiError::Malformed("a field of the form is not UTF-8".to_owned()))?;
    // The fields of a form are texts. `steps` is a number in JSON.
    Ok(match text.parse::<u64>() {
        Ok(steps) if is_steps => json!(steps),
        Ok(_) | Err(_) => Value::String(text),
    })
}

fn malformed(error: impl std::fmt::Display) -> ApiError {
    ApiError::Malformed(error.to_string())
}
