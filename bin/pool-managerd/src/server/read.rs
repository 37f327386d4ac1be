//! Reading small JSON bodies.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use task_api::ErrorCode;

use super::answer::{ServerBody, error};

/// How long a body may be, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) bytes_max: usize,
    pub(super) timeout: Duration,
}

/// Reads a JSON body. With `may_be_empty` nothing at all stands for the default.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request<Incoming>,
    bounds: Bounds,
    may_be_empty: bool,
) -> Result<T, Box<Response<ServerBody>>> {
    let refuse = |message: String| Box::new(error(ErrorCode::InvalidParams, message));
    let limited = Limited::new(request.into_body(), bounds.bytes_max).collect();
    let body: Bytes = match tokio::time::timeout(bounds.timeout, limited).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(failed)) if failed.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {} bytes", bounds.bytes_max);
            return Err(Box::new(error(ErrorCode::RequestTooLarge, message)));
        }
        Ok(Err(_)) => return Err(refuse("the body broke off".to_owned())),
        Err(_) => return Err(refuse("the body did not arrive in time".to_owned())),
    };
    let text: &[u8] = if body.is_empty() && may_be_empty {
        b"{}"
    } else {
        &body
    };
    serde_json::from_slice(text).map_err(|wrong| refuse(format!("the body: {wrong}")))
}
