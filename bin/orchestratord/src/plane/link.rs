//! The way to a node's door: a function call in the same process, HTTP/2 otherwise.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use daemon::secret::Secret;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pool_managerd::{Door, DoorBody, DoorError};
use pool_registry_types::{CONTROL_PLANE_HEADER, ControlPlaneId, DOOR_PREFIX, NODE_REFUSAL_HEADER};
use scheduler::ReplicaInfo;
use task_api::ErrorCode;
use upstream::{ConnectOptions, NodeBody, NodeClient, Origin, OriginError, Pieces, SendError};

/// The way to one node. Cheap to clone.
#[derive(Clone)]
pub(crate) enum NodeLink {
    /// The node is in this process.
    Local(Door),
    /// The node is elsewhere.
    Remote(RemoteNode),
}

#[derive(Clone)]
pub(crate) struct RemoteNode {
    client: NodeClient,
    address: String,
    authorization: Option<HeaderValue>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The node has given the slot to somebody else.
    #[error("the node refused the slot")]
    Refused,
    /// The replica cannot be used; the reason is the node's.
    #[error("the replica cannot be used: {0}")]
    ReplicaOut(String),
    /// The node's address makes no sense.
    #[error("the node's address is unusable")]
    Address(#[from] OriginError),
    /// The node or the engine cannot be reached, or went away before it answered.
    #[error("no answer came: {0}")]
    NoAnswer(String),
}

impl NodeLink {
    pub(crate) fn remote(
        address: &str,
        options: &ConnectOptions,
        token: Option<&Secret>,
    ) -> Result<Self, LinkError> {
        let origin: Origin = address.parse()?;
        let authorization = token.and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let client = NodeClient::new(origin, options.clone());
        Ok(Self::Remote(RemoteNode {
            client,
            address: address.to_owned(),
            authorization,
        }))
    }

    /// Whether this is still the way to a node at `address`.
    pub(crate) fn leads_to(&self, address: &str) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Remote(remote) => remote.address == address,
        }
    }

    /// Sends a request to the engine behind the door. Dropping the future, or the body that it gives, cancels.
    pub(crate) async fn send(
        &self,
        info: &ReplicaInfo,
        holder: &ControlPlaneId,
        request: Request<Bytes>,
    ) -> Result<Response<AnswerBody>, LinkError> {
        match self {
            Self::Local(door) => {
                // Pinned where it is made: awaited by value it would be copied into its place.
                let answer = pin!(door.call(&info.pool_id, &info.replica_id, holder, request));
                answer
                    .await
                    .map(|response| response.map(AnswerBody::Local))
                    .map_err(|error| of_door(&error))
            }
            // In a box, so that the way within this process does not carry the room that the other one needs.
            Self::Remote(remote) => Box::pin(remote.send(info, holder, request)).await,
        }
    }
}

fn of_door(error: &DoorError) -> LinkError {
    match error.as_error_code() {
        ErrorCode::ReplicaExhausted => LinkError::Refused,
        ErrorCode::WorkerReset => LinkError::NoAnswer(daemon::exit::chain(error)),
        _ => LinkError::ReplicaOut(daemon::exit::chain(error)),
    }
}

impl RemoteNode {
    async fn send(
        &self,
        info: &ReplicaInfo,
        holder: &ControlPlaneId,
        mut request: Request<Bytes>,
    ) -> Result<Response<AnswerBody>, LinkError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = format!("{DOOR_PREFIX}/{}/{}{path}", info.pool_id, info.replica_id);
        *request.uri_mut() = path
            .parse()
            .map_err(|_| LinkError::NoAnswer("the path is unusable".to_owned()))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            CONTROL_PLANE_HEADER,
            HeaderValue::from_str(holder.as_str()).expect("an identifier is a header value"),
        );
        match &self.authorization {
            Some(authorization) => headers.insert(AUTHORIZATION, authorization.clone()),
            None => headers.remove(AUTHORIZATION),
        };
        let response = self.client.send(request).await.map_err(|error| of_send(&error))?;
        match response
            .headers()
            .get(NODE_REFUSAL_HEADER)
            .map(HeaderValue::as_bytes)
        {
            None => Ok(response.map(AnswerBody::Remote)),
            Some(code) if code == ErrorCode::ReplicaExhausted.as_str().as_bytes() => Err(LinkError::Refused),
            Some(code) if code == ErrorCode::WorkerReset.as_str().as_bytes() => Err(LinkError::NoAnswer(
                "the engine went away before it answered".to_owned(),
            )),
            Some(code) => Err(LinkError::ReplicaOut(String::from_utf8_lossy(code).into_owned())),
        }
    }

    /// Asks the node for one of its pages.
    pub(crate) async fn get(&self, path: &str) -> Result<Response<NodeBody>, SendError> {
        self.order(Method::GET, path, Bytes::new()).await
    }

    /// Asks the node for something about agents, as the control plane that it knows.
    pub(crate) async fn for_agents(
        &self,
        holder: &ControlPlaneId,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<NodeBody>, SendError> {
        let mut request = self.prepared(method, path, body);
        request.headers_mut().insert(
            CONTROL_PLANE_HEADER,
            HeaderValue::from_str(holder.as_str()).expect("an identifier is a header value"),
        );
        self.client.send(request).await
    }

    /// The same as a POST whose body comes in pieces.
    pub(crate) async fn for_agents_in_pieces(
        &self,
        holder: &ControlPlaneId,
        path: &str,
        pieces: Pieces,
    ) -> Result<Response<NodeBody>, SendError> {
        let mut request = self.prepared(Method::POST, path, pieces);
        let headers = request.headers_mut();
        headers.insert(
            CONTROL_PLANE_HEADER,
            HeaderValue::from_str(holder.as_str()).expect("an identifier is a header value"),
        );
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
        self.client.send_pieces(request).await
    }

    /// Tells the node to do something.
    pub(crate) async fn post(&self, path: &str, body: Bytes) -> Result<Response<NodeBody>, SendError> {
        self.order(Method::POST, path, body).await
    }

    /// Tells the node to end something.
    pub(crate) async fn delete(&self, path: &str) -> Result<Response<NodeBody>, SendError> {
        self.order(Method::DELETE, path, Bytes::new()).await
    }

    async fn order(&self, method: Method, path: &str, body: Bytes) -> Result<Response<NodeBody>, SendError> {
        self.client.send(self.prepared(method, path, body)).await
    }

    fn prepared<B>(&self, method: Method, path: &str, body: B) -> Request<B> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(body)
            .expect("the path is made of identifiers");
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        request
    }
}

fn of_send(error: &SendError) -> LinkError {
    LinkError::NoAnswer(daemon::exit::chain(error))
}

/// The body of an engine's answer, over either way.
pub(crate) enum AnswerBody {
    Local(DoorBody),
    Remote(NodeBody),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match self.get_mut() {
            Self::Local(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|e| daemon::exit::chain(&e)))),
            Self::Remote(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|e| daemon::exit::chain(&e)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(body) => body.is_end_stream(),
            Self::Remote(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(body) => body.size_hint(),
            Self::Remote(body) => body.size_hint(),
        }
    }
}
