//! Routes requests to resources by comparing the segments of their paths.
//!
//! The router of actix-web matches paths with parameters by regular expressions. For a small
//! request, this takes as much CPU time as parsing its JSON.

use std::future::{Ready, ready};

use actix_web::dev::{Payload, Service, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::{Error, FromRequest, Handler, HttpMessage, HttpRequest, Responder, Route, web};
use futures_util::future::{LocalBoxFuture, try_join_all};
use percent_encoding::percent_decode_str;

use super::error::Problem;

/// A path pattern with a handler for each allowed method. The response to any other method is 405.
pub struct Resource {
    /// Segments in braces are parameters, which match any segment that is not empty.
    pattern: &'static str,
    get: Option<Route>,
    post: Option<Route>,
}

impl Resource {
    /// Creates a resource without methods.
    pub fn new(pattern: &'static str) -> Self {
        Self {
            pattern,
            get: None,
            post: None,
        }
    }

    /// Handles GET and HEAD. The server does not send the body of a response to HEAD.
    pub fn get<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.get = Some(web::to(handler));
        self
    }

    /// Handles POST.
    pub fn post<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.post = Some(web::to(handler));
        self
    }
}

/// Routes to the first resource whose pattern matches, or else to the fallback.
pub struct Router {
    resources: Vec<Resource>,
    fallback: Route,
}

impl Router {
    /// Creates a router. Frequent resources should come first.
    pub fn new(resources: Vec<Resource>, fallback: Route) -> Self {
        Self {
            resources,
            fallback,
        }
    }
}

type RouteService = <Route as ServiceFactory<ServiceRequest>>::Service;

impl ServiceFactory<ServiceRequest> for Router {
    type Response = ServiceResponse;
    type Error = Error;
    type Config = ();
    type Service = RouterService;
    type InitError = ();
    type Future = LocalBoxFuture<'static, Result<RouterService, ()>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let fallback = self.fallback.new_service(());
        let resources = try_join_all(self.resources.iter().map(|resource| {
            let new = |route: &Option<Route>| route.as_ref().map(|route| route.new_service(()));
            let (pattern, get, post) = (resource.pattern, new(&resource.get), new(&resource.post));
            async move {
                Ok::<_, ()>(ResourceService {
                    pattern,
                    get: start(get).await?,
                    post: start(post).await?,
                })
            }
        }));
        Box::pin(async move {
            Ok(RouterService {
                resources: resources.await?,
                fallback: fallback.await?,
            })
        })
    }
}

async fn start<S>(
    service: Option<LocalBoxFuture<'static, Result<S, ()>>>,
) -> Result<Option<S>, ()> {
    match service {
        Some(service) => service.await.map(Some),
        None => Ok(None),
    }
}

/// The pattern of the resource that a request was routed to, in the extensions of the request.
#[derive(Clone, Copy)]
pub struct MatchedPattern(pub &'static str);

/// The services of a [`Router`].
pub struct RouterService {
    resources: Vec<ResourceService>,
    fallback: RouteService,
}

struct ResourceService {
    pattern: &'static str,
    get: Option<RouteService>,
    post: Option<RouteService>,
}

impl ResourceService {
    /// Returns the service of a method, or `None` if the resource does not allow it.
    fn service(&self, method: &Method) -> Option<&RouteService> {
        match *method {
            Method::GET | Method::HEAD => self.get.as_ref(),
            Method::POST => self.post.as_ref(),
            _ => None,
        }
    }

    /// Returns the value of the `Allow` header.
    fn allowed_methods(&self) -> &'static str {
        match (&self.get, &self.post) {
            (Some(_), Some(_)) => "GET, HEAD, POST",
            (Some(_), None) => "GET, HEAD",
            (None, _) => "POST",
        }
    }
}

impl Service<ServiceRequest> for RouterService {
    type Response = ServiceResponse;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<ServiceResponse, Error>>;

    actix_web::dev::forward_ready!(fallback);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let mut resources = self.resources.iter();
        let Some(resource) = resources.find(|it| matches(it.pattern, request.path())) else {
            return self.fallback.call(request);
        };
        let pattern = MatchedPattern(resource.pattern);
        request.extensions_mut().insert(pattern);
        if let Some(service) = resource.service(request.method()) {
            return service.call(request);
        }
        let problem = Problem::method_not_allowed(resource.allowed_methods());
        Box::pin(ready(Ok(request.error_response(problem))))
    }
}

/// Returns whether the segments of a path match those of a pattern.
fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    let is_match = |expected: &str| {
        let segment = segments.next();
        segment.is_some_and(|segment| match expected.starts_with('{') {
            true => !segment.is_empty(),
            false => segment == expected,
        })
    };
    pattern.split('/').all(is_match) && segments.next().is_none()
}

/// Percent-decoded segment of a request path, by its index from 0.
///
/// The response is `not_found` if the path has no such segment, or if the segment is not UTF-8.
pub struct Segment<const INDEX: usize>(pub String);

impl<const INDEX: usize> FromRequest for Segment<INDEX> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let segment = request.path().split('/').nth(INDEX + 1);
        let decoded = segment.and_then(|segment| percent_decode_str(segment).decode_utf8().ok());
        let segment = decoded.map(|segment| Self(segment.into_owned()));
        ready(segment.ok_or_else(|| Problem::not_found("resource")))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn parameters_match_one_segment() {
        for (pattern, path, expected) in [
            ("/v1/jobs", "/v1/jobs", true),
            ("/v1/jobs", "/v1/jobs/", false),
            ("/v1/jobs", "/v1", false),
            ("/v1/jobs/{id}", "/v1/jobs/job_1", true),
            ("/v1/jobs/{id}", "/v1/jobs/{id}", true),
            ("/v1/jobs/{id}", "/v1/jobs/", false),
            ("/v1/jobs/{id}", "/v1/jobs/job_1/", false),
            ("/v1/jobs/{id}/updates", "/v1/jobs/job_1/updates", true),
            ("/v1/jobs/{id}/updates", "/v1/jobs//updates", false),
            ("/v1/jobs/{id}/updates", "/v1/jobs/job_1/cancel", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[tokio::test]
    async fn segments_are_decoded() {
        let request = TestRequest::with_uri("/v1/jobs/a%20b%2Fc/%ff").to_http_request();
        let segment = Segment::<2>::extract(&request).await;
        assert_eq!(segment.ok().map(|it| it.0).as_deref(), Some("a b/c"));
        assert!(Segment::<3>::extract(&request).await.is_err());
        assert!(Segment::<4>::extract(&request).await.is_err());
    }
}
