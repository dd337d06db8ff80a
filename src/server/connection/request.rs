//! Records the start and end of each request of a connection, and rejects requests over capacity.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_http::{ConnectionType, Request, Response};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, apply_fn_factory};
use actix_web::ResponseError;
use actix_web::body::{BodySize, EitherBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::web::Bytes;

use super::stream::{ClientConnection, RequestInProgress};

/// Wraps a service so that each connection records the start and end of its requests. A connection
/// over capacity answers every request except a health check with 503, and closes after the first one.
pub fn track<I, F, B>(
    service: I,
) -> impl ServiceFactory<
    Request,
    Config = F::Config,
    Response = Response<TrackedBody<EitherBody<B>>>,
    Error = F::Error,
    InitError = F::InitError,
    Service: Service<Request, Future: 'static>,
    Future: 'static,
>
where
    I: IntoServiceFactory<F, Request>,
    F: ServiceFactory<Request, Response = ServiceResponse<B>, Future: 'static> + 'static,
    F::Service: Service<Request, Future: 'static>,
    B: MessageBody + 'static,
{
    apply_fn_factory(service, |request: Request, service: &F::Service| {
        let client = request.conn_data::<Rc<ClientConnection>>().cloned();
        let is_health_check = request.path().starts_with("/v1/health");
        let over_capacity = client.as_ref().filter(|client| client.is_over_capacity());
        let is_over_capacity = over_capacity.is_some();
        let rejecting = over_capacity.filter(|_| !is_health_check);
        let rejected = rejecting.map(|client| client.over_capacity());
        let mut in_progress = client.map(ClientConnection::begin_request);
        let call = rejected.map_or_else(|| Ok(service.call(request)), Err);
        async move {
            let mut response = match call {
                Ok(call) => Response::from(call.await?).map_body(|_, body| EitherBody::left(body)),
                Err(problem) => Response::from(problem.error_response())
                    .map_body(|_, body| EitherBody::right(body)),
            };
            if is_over_capacity {
                response
                    .head_mut()
                    .set_connection_type(ConnectionType::Close);
            }
            if let Some(in_progress) = &mut in_progress
                && response.head().connection_type() == ConnectionType::Close
            {
                in_progress.set_last();
            }
            Ok(response.map_body(|_, body| TrackedBody {
                body,
                _in_progress: in_progress,
            }))
        }
    })
}

/// The body of a response. The request ends when it is dropped.
pub struct TrackedBody<B> {
    body: B,
    _in_progress: Option<RequestInProgress>,
}

impl<B: MessageBody + Unpin> MessageBody for TrackedBody<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}
