//! The same edge over gRPC, on an address of its own: `vlinders.v1.InferenceService`, health and reflection.
//!
//! A call is read into the request that HTTP would have read; from there on both are one. Every call carries the
//! server's secret, but those that ask for its health.

mod answers;
mod calls;
mod deadline;
mod health;
mod requests;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use crate::config::Config;
use crate::listen::{self, Bounds, Certified, Identity};
use crate::problem::Failure;
use crate::service::{Error, Gateway};
use calls::Calls;
use health::Health;
use proto::inference_service_server::InferenceServiceServer;

/// The messages and services of `schemas/proto`, as they were generated.
#[allow(missing_docs, unreachable_pub, unused_qualifications, dead_code, reason = "generated")]
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated")]
mod proto {
    tonic::include_proto!("vlinders.v1");
}

/// The proto and all it needs, for the reflection service.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vlinders.v1.bin"));

/// Where gRPC is served; none when it is not. Where no address was given it is the port behind HTTP's, and a free one where
/// HTTP took a free one. Somebody else may have that port: then HTTP is served alone.
pub(crate) async fn listen(config: &Config, http: SocketAddr) -> Result<Option<TcpListener>, Error> {
    match config.grpc.as_deref() {
        Some("off") => Ok(None),
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            listener.map(Some).map_err(|source| Error::ListenGrpc { grpc: address.to_owned(), source })
        }
        None => {
            let port = if config.http.ends_with(":0") { 0 } else { http.port().wrapping_add(1) };
            let beside = SocketAddr::new(http.ip(), port);
            match TcpListener::bind(beside).await {
                Ok(listener) => Ok(Some(listener)),
                Err(error) => {
                    tracing::warn!(address = %beside, %error, "gRPC is not served; give it another address with --grpc, or say `--grpc off`");
                    Ok(None)
                }
            }
        }
    }
}

/// Serves until the soft token falls, then lets open calls finish. It is listened as for HTTP, with the same certificates
/// and bounds; tonic's own server would end a call at its deadline by itself, with a code that says something else.
pub(crate) fn serve(gateway: &Arc<Gateway>, listener: TcpListener, identity: Option<Identity>, bounds: Bounds) {
    let (tasks, config) = (&gateway.runtime.tasks, &gateway.config);
    let secret = |gateway: &Arc<Gateway>| {
        let gateway = Arc::clone(gateway);
        move |request: Request<()>| authorise(&gateway, request)
    };
    let calls = InferenceServiceServer::new(Calls { gateway: Arc::clone(gateway) })
        .max_decoding_message_size(config.body_bytes_max);
    let (reflection, older) = reflection();
    let routes = Routes::new(Health::server(Arc::clone(gateway)))
        .add_service(InterceptedService::new(calls, secret(gateway)))
        .add_service(InterceptedService::new(reflection, secret(gateway)))
        .add_service(InterceptedService::new(older, secret(gateway)));
    let app = routes.prepare().into_axum_router();
    tasks.spawn_essential("gRPC", listen::serve(listener, app, identity, bounds, tasks.clone()));
}

/// Both versions of the reflection service: clients ask for the newer or the older.
fn reflection() -> (
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    tonic_reflection::server::v1alpha::ServerReflectionServer<impl tonic_reflection::server::v1alpha::ServerReflection>,
) {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let known = "the descriptors were made by this build";
    (builder().build_v1().expect(known), builder().build_v1alpha().expect(known))
}

/// Nothing of a call is looked at before its secret.
fn authorise(gateway: &Gateway, request: Request<()>) -> Result<Request<()>, Status> {
    let given = secret(request.metadata().as_ref());
    if gateway.secrets.hold(given) || request.extensions().get::<Certified>().is_some() {
        return Ok(request);
    }
    let detail = "the metadata x-internal-auth is missing or wrong";
    let next = "send the secret of this server as x-internal-auth, or as authorization: Bearer …";
    Err(Failure::new(403, "forbidden", detail, next).into())
}

fn secret(headers: &HeaderMap) -> &[u8] {
    let bearer = || {
        let value = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
    };
    headers.get("x-internal-auth").map(HeaderValue::as_bytes).or_else(bearer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_in_either_of_two_ways() {
        let headers =
            |name: &'static str, value: &str| HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        assert_eq!(secret(&headers("x-internal-auth", "hush")), b"hush");
        assert_eq!(secret(&headers("authorization", "Bearer hush")), b"hush");
        assert_eq!(secret(&headers("authorization", "Basic hush")), b"");
        assert_eq!(secret(&HeaderMap::new()), b"");
    }
}
