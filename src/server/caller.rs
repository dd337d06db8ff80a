//! Authentication of HTTP requests.

use std::ops::Deref;
use std::rc::Rc;

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use futures_util::future::LocalBoxFuture;

use super::error::{ErrorCode, Problem};
use super::limits::{ClientAddress, ConnectionLimits};
use progress_hub_auth::jwt::{Principal, TokenError, Verifier};

/// The authenticated caller. A handler with this argument runs only for requests with a valid bearer
/// token, and within `limits.requests_per_second` of its subject.
pub struct Caller(Rc<Principal>);

impl Deref for Caller {
    type Target = Principal;
    fn deref(&self) -> &Principal {
        &self.0
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let verifier = request.app_data::<web::Data<Verifier>>().cloned();
        let address = request.conn_data::<ClientAddress>().cloned();
        let token = bearer_token(request.headers()).map(|token| token.map(str::to_owned));
        let request = request.clone();
        Box::pin(async move {
            let verifier = verifier.ok_or(TokenError::Missing)?;
            let token = token?.ok_or(TokenError::Missing)?;
            let principal = Rc::new(verifier.verify(&token).await?);
            // The security log reads the caller of a forbidden request from the extensions.
            request.extensions_mut().insert(Rc::clone(&principal));
            if let Some(address) = address {
                address.set_authenticated();
            }
            if let Some(limits) = request.app_data::<web::Data<ConnectionLimits>>() {
                limits.charge_request(&principal)?;
            }
            Ok(Self(principal))
        })
    }
}

/// Returns the token of an `Authorization: Bearer …` header, or `None` if there is no such header.
///
/// # Errors
/// `unauthorized` if the header has another form.
pub fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let credentials = value.to_str().ok().and_then(|text| text.split_once(' '));
    match credentials {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        Some(_) | None => Err(Problem::new(
            ErrorCode::Unauthorized,
            "Authorization header must start with 'Bearer '",
        )),
    }
}
