//! The body of an engine's answer, and the lease that lives exactly as long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pool_registry_types::ControlPlaneId;
use upstream::EngineBody;

use crate::replica::Replica;
use crate::slots::{End, LeaseId, Refusal};

/// A held slot. Dropping it gives the slot back once the engine says that it is idle.
pub(super) struct Lease {
    replica: Arc<Replica>,
    /// None once it has been given back.
    id: Option<LeaseId>,
}

impl Lease {
    pub(super) fn grant(replica: Arc<Replica>, holder: &ControlPlaneId) -> Result<Self, Refusal> {
        let id = replica.grant(holder)?;
        Ok(Self {
            replica,
            id: Some(id),
        })
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(super) fn answered(&self) {
        if let Some(id) = self.id {
            self.replica.answered(id);
        }
    }

    /// The engine never had the task, or is done with it.
    pub(super) fn release(mut self) {
        self.complete();
    }

    fn complete(&mut self) {
        if let Some(id) = self.id.take() {
            self.replica.end(id, End::Complete);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.replica.end(id, End::Abandoned);
        }
    }
}

/// The body of an engine's answer. Read to its end, or dropped, it gives the slot back.
pub struct DoorBody {
    inner: EngineBody,
    lease: Lease,
}

/// The engine's connection broke in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the engine's answer broke off")]
pub struct DoorBodyError(#[source] pub(crate) upstream::EngineBodyError);

impl DoorBody {
    pub(super) fn new(inner: EngineBody, lease: Lease) -> Self {
        let mut body = Self { inner, lease };
        if body.inner.is_end_stream() {
            body.lease.complete();
        }
        body
    }
}

impl Body for DoorBody {
    type Data = Bytes;
    type Error = DoorBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DoorBodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => this.lease.complete(),
            // A reader that knows the length does not ask for the end any more.
            Poll::Ready(Some(Ok(_))) if this.inner.is_end_stream() => this.lease.complete(),
            Poll::Ready(Some(Err(_))) => this.lease.replica.probe.notify_one(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(DoorBodyError)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
