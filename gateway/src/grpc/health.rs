//! The standard health service. `SERVING` means what `ready` means over HTTP: the log can be reached, and there is a
//! model. It needs no secret, because those who ask have none.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health as Service, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::proto::inference_service_server::SERVICE_NAME;
use crate::problem::Failure;
use crate::service::Gateway;

/// How often somebody who watches is told of a change.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Health {
    gateway: Arc<Gateway>,
}

impl Health {
    pub(super) fn server(gateway: Arc<Gateway>) -> HealthServer<Self> {
        HealthServer::new(Self { gateway })
    }
}

/// How a service stands; none for one that is not here. The empty name is the whole server's.
async fn status(gateway: &Gateway, service: &str) -> Option<ServingStatus> {
    if !service.is_empty() && service != SERVICE_NAME {
        return None;
    }
    if gateway.runtime.tasks.soft().is_cancelled() || !gateway.runtime.bus.is_connected() {
        return Some(ServingStatus::NotServing);
    }
    let ready = gateway.directory.models().await.is_ok_and(|models| models.iter().any(|m| m.kind != "embedding"));
    Some(if ready { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[tonic::async_trait]
impl Service for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let Some(status) = status(&self.gateway, service).await else {
            let next = format!("ask for {SERVICE_NAME}, or leave the name empty");
            return Err(Failure::new(404, "unknown_service", format!("there is no service {service:?}"), next).into());
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// How it stands now, and then each change, until the server stops.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (gateway, service) = (Arc::clone(&self.gateway), request.into_inner().service);
        let soft = gateway.runtime.tasks.soft();
        let changes = futures::stream::unfold(None, move |before| {
            let (gateway, service) = (Arc::clone(&gateway), service.clone());
            async move {
                loop {
                    let now = status(&gateway, &service).await.unwrap_or(ServingStatus::ServiceUnknown);
                    if before != Some(now) {
                        return Some((Ok(HealthCheckResponse { status: now.into() }), Some(now)));
                    }
                    tokio::time::sleep(WATCH_EVERY).await;
                }
            }
        });
        Ok(Response::new(changes.take_until(soft.cancelled_owned()).boxed()))
    }
}
