//! The part of the XML API of Google Cloud Storage that fake-gcs-server lacks: uploads of whole objects.

use actix_web::body::SizedStream;
use actix_web::http::{Method, StatusCode, header};
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use futures_util::stream;

/// A server that translates uploads to the JSON API, and passes on everything else. Dropping it stops
/// the server.
pub struct GcsAdapter {
    pub url: String,
    handle: actix_web::dev::ServerHandle,
}

impl GcsAdapter {
    pub async fn start(server: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = server.to_owned();
        let adapter = HttpServer::new(move || {
            let server = server.clone();
            App::new().default_service(web::to(move |request: HttpRequest, body: Bytes| {
                forward(server.clone(), request, body)
            }))
        });
        let adapter = adapter
            .workers(1)
            .disable_signals()
            .listen(listener)
            .unwrap()
            .run();
        let handle = adapter.handle();
        tokio::spawn(adapter);
        Self { url, handle }
    }
}

impl Drop for GcsAdapter {
    fn drop(&mut self) {
        // `stop` sends the command when it is called. The future only waits for the end.
        drop(self.handle.stop(false));
    }
}

async fn forward(server: String, request: HttpRequest, body: Bytes) -> HttpResponse {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = request.path().trim_start_matches('/');
    let upstream = match (request.method(), path.split_once('/')) {
        (&Method::PUT, Some((bucket, name))) => {
            let url =
                format!("{server}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}");
            let content_type = request.headers().get(header::CONTENT_TYPE).unwrap();
            client
                .post(url)
                .header("content-type", content_type.to_str().unwrap())
                .body(body)
        }
        (method, _) => {
            let method = method.as_str().parse().unwrap();
            client.request(method, format!("{server}{}", request.uri()))
        }
    };
    let upstream = upstream.send().await.unwrap();
    let status = StatusCode::from_u16(upstream.status().as_u16()).unwrap();
    let mut response = HttpResponse::build(status);
    for name in ["content-type", "last-modified"] {
        if let Some(value) = upstream.headers().get(name) {
            response.insert_header((name, value.to_str().unwrap()));
        }
    }
    response.insert_header((header::ETAG, "\"tag\""));
    if *request.method() == Method::HEAD {
        let length = upstream.headers().get("content-length");
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let nothing = stream::empty::<Result<Bytes, std::io::Error>>();
        return response.body(SizedStream::new(length.unwrap_or(0), nothing));
    }
    response.body(upstream.bytes().await.unwrap())
}
