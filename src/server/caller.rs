//! Who calls: a handler that takes a [`Caller`] is one that only proven callers reach.

use std::ops::Deref;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::future::LocalBoxFuture;

use super::error::Problem;
use progress_hub_auth::jwt::{Principal, TokenError, Verifier};

/// A caller whose bearer token is good.
pub struct Caller(Principal);

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
        let token = bearer(request.headers().get(header::AUTHORIZATION)).map(str::to_owned);
        Box::pin(async move {
            let verifier = verifier.ok_or(TokenError::Missing)?;
            let token = token.ok_or(TokenError::Missing)?;
            Ok(Self(verifier.verify(&token).await?))
        })
    }
}

/// The token of an `Authorization: Bearer …` header.
pub fn bearer(header: Option<&header::HeaderValue>) -> Option<&str> {
    let (scheme, token) = header?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}
