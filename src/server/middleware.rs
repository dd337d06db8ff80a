//! Middleware around every handler. One function per listener performs all steps, because each
//! middleware of actix-web makes several allocations per request.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::{Error, web};

use super::compression::compress;
use super::limits::ConnectionLimits;
use super::origin::{OriginPolicy, check_preflight};
use super::security_log::SecurityLog;

/// Middleware of the public listener: rejects preflight requests of origins that may not use the API,
/// compresses responses, and records problems.
pub async fn public(
    origins: web::Data<OriginPolicy>,
    log: web::Data<SecurityLog>,
    limits: web::Data<ConnectionLimits>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let response = match check_preflight(&origins, &request) {
        Ok(()) => compress(next.call(request).await?.map_into_boxed_body()),
        Err(problem) => request.error_response(problem),
    };
    log.record(&limits, &response);
    Ok(response)
}

/// Middleware of the admin listener: records problems.
pub async fn admin(
    log: web::Data<SecurityLog>,
    limits: web::Data<ConnectionLimits>,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse, Error> {
    let response = next.call(request).await?;
    log.record(&limits, &response);
    Ok(response)
}
