//! One connection: request after request, each answered as it wants to be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep_until};

use crate::answer::{self, CHUNKS_DEFAULT};
use crate::request::{Asked, Endpoint, Input, Request};
use crate::stats::Ending;
use crate::{Behaviour, Failure, Shared};

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

/// Serves a connection to its end.
pub(crate) async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let _open = shared.counters.connection();
    let mut input = Input::default();
    // Whatever ends the loop ends the connection, and a client that left wants no explanation.
    while let Ok(Some(request)) = input.next(&mut stream).await {
        let close = request.close;
        let mut connection = Connection {
            stream: &mut stream,
            input: &mut input,
            shared: &shared,
        };
        match connection.answer(request).await {
            Ok(Next::Keep) if !close => {}
            _ => return,
        }
    }
}

struct Connection<'a> {
    stream: &'a mut TcpStream,
    input: &'a mut Input,
    shared: &'a Shared,
}

impl<'a> Connection<'a> {
    async fn answer(&mut self, request: Request) -> io::Result<Next> {
        let shared = self.shared;
        let behaviour = shared.behaviour();
        let is_generation = matches!(
            request.endpoint,
            Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings
        );
        if is_generation {
            return self.generate(request, behaviour).await;
        }
        let is_control = matches!(request.endpoint, Endpoint::Stats | Endpoint::Behaviour);
        if behaviour.everywhere
            && !is_control
            && let Some(failure) = behaviour.failure
            && let Some(next) = self.fail_at_once(failure, false).await?
        {
            return Ok(next);
        }
        let message = match request.endpoint {
            Endpoint::Health => answer::json("200 OK", &json!({"status": "ok"})),
            Endpoint::Models => {
                let model = json!({"id": shared.model, "object": "model", "created": 1_700_000_000, "owned_by": "fake"});
                answer::json("200 OK", &json!({"object": "list", "data": [model]}))
            }
            Endpoint::Props => answer::json(
                "200 OK",
                &json!({
                    "total_slots": shared.slots, "model_path": shared.model, "build_info": "fake",
                    "default_generation_settings": {"n_ctx": 4096},
                }),
            ),
            Endpoint::Slots => self.slots(),
            Endpoint::Stats => {
                let stats = serde_json::to_value(shared.counters.read()).expect("numbers are JSON");
                answer::json("200 OK", &stats)
            }
            Endpoint::Behaviour => self.set_behaviour(&request.body),
            _ => answer::error("404 Not Found", 404, "not_found_error", "no such path"),
        };
        self.stream.write_all(&message).await?;
        Ok(Next::Keep)
    }

    fn slots(&self) -> Vec<u8> {
        /// More are not listed: a benchmark's engine has a hundred thousand.
        const LISTED_MAX: u32 = 1024;
        let free = self.shared.free.available_permits();
        let busy = (self.shared.slots as usize).saturating_sub(free);
        let slots = (0..self.shared.slots.min(LISTED_MAX))
            .map(|id| json!({"id": id, "n_ctx": 4096, "is_processing": (id as usize) < busy}))
            .collect();
        answer::json("200 OK", &serde_json::Value::Array(slots))
    }

    fn set_behaviour(&self, body: &[u8]) -> Vec<u8> {
        match std::str::from_utf8(body).unwrap_or("?").parse::<Behaviour>() {
            Ok(behaviour) => {
                *self
                    .shared
                    .behaviour
                    .lock()
                    .expect("nothing panics while it holds this lock") = behaviour;
                answer::json("200 OK", &json!({}))
            }
            Err(error) => answer::error(
                "400 Bad Request",
                400,
                "invalid_request_error",
                &error.to_string(),
            ),
        }
    }

    async fn generate(&mut self, request: Request, mut behaviour: Behaviour) -> io::Result<Next> {
        let shared = self.shared;
        let open = shared.counters.begin();
        let Ok(asked) = serde_json::from_slice::<Asked>(&request.body) else {
            let message = answer::error(
                "400 Bad Request",
                400,
                "invalid_request_error",
                "the body is not JSON",
            );
            self.stream.write_all(&message).await?;
            open.end(Ending::Failed);
            return Ok(Next::Keep);
        };
        behaviour.read_from(&request.body);
        if let Some(words) = &request.words {
            behaviour.read_from(words);
        }
        let streams = asked.stream == Some(true) && request.endpoint != Endpoint::Embeddings;
        let Some(_slot) = self.slot().await else {
            return Ok(Next::Close);
        };
        if behaviour.first_byte_ms > 0 {
            let until = Instant::now() + Duration::from_millis(u64::from(behaviour.first_byte_ms));
            if !self.pause(until, behaviour.deaf && !streams).await {
                return Ok(Next::Close);
            }
        }
        if let Some(failure) = behaviour.failure
            && let Some(next) = self.fail_at_once(failure, streams).await?
        {
            open.end(Ending::Failed);
            return Ok(next);
        }
        let (next, ending) = if streams {
            self.stream_answer(request.endpoint, behaviour, asked.include_usage())
                .await?
        } else {
            self.whole_answer(request.endpoint, behaviour).await?
        };
        open.end(ending);
        Ok(next)
    }

    /// Waits for a slot. None: the client has gone.
    async fn slot(&mut self) -> Option<SemaphorePermit<'a>> {
        let free = &self.shared.free;
        if let Ok(slot) = free.try_acquire() {
            return Some(slot);
        }
        tokio::select! {
            slot = free.acquire() => slot.ok(),
            () = self.input.client_gone(self.stream) => None,
        }
    }

    /// Waits. False: the client has gone. A deaf engine does not look.
    async fn pause(&mut self, until: Instant, deaf: bool) -> bool {
        if deaf {
            sleep_until(until).await;
            return true;
        }
        tokio::select! {
            () = sleep_until(until) => true,
            () = self.input.client_gone(self.stream) => false,
        }
    }

    /// The failures that come instead of an answer. None: `failure` is none of them.
    async fn fail_at_once(&mut self, failure: Failure, streams: bool) -> io::Result<Option<Next>> {
        match failure {
            Failure::Never => {
                self.input.client_gone(self.stream).await;
                Ok(Some(Next::Close))
            }
            Failure::Garbage => {
                self.stream.write_all(answer::GARBAGE).await?;
                Ok(Some(Next::Close))
            }
            Failure::GarbageBody => {
                self.stream.write_all(&answer::garbage_body(streams)).await?;
                Ok(Some(Next::Keep))
            }
            Failure::Error => {
                let text = "failed as it was told to";
                let message = answer::error("500 Internal Server Error", 500, "server_error", text);
                self.stream.write_all(&message).await?;
                Ok(Some(Next::Keep))
            }
            Failure::Loading => {
                let message = answer::error(
                    "503 Service Unavailable",
                    503,
                    "unavailable_error",
                    "Loading model",
                );
                self.stream.write_all(&message).await?;
                Ok(Some(Next::Keep))
            }
            Failure::Stall | Failure::Cut | Failure::Die | Failure::NoDone | Failure::Open => Ok(None),
        }
    }

    async fn whole_answer(&mut self, endpoint: Endpoint, behaviour: Behaviour) -> io::Result<(Next, Ending)> {
        let chunks = behaviour.chunks.unwrap_or(CHUNKS_DEFAULT);
        if behaviour.interval_ms > 0 {
            let time = Duration::from_millis(u64::from(behaviour.interval_ms)) * chunks;
            if !self.pause(Instant::now() + time, behaviour.deaf).await {
                return Ok((Next::Close, Ending::Cancelled));
            }
        }
        let built;
        let message = match endpoint {
            Endpoint::Chat if behaviour.chunks.is_none() => &*self.shared.answer,
            Endpoint::Chat => {
                built = answer::whole(&self.shared.model, behaviour.chunks);
                &built
            }
            Endpoint::Completions => {
                built = answer::whole_completion(&self.shared.model, behaviour.chunks);
                &built
            }
            _ => {
                built = answer::embedding(&self.shared.model);
                &built
            }
        };
        match behaviour.failure {
            Some(Failure::Stall | Failure::Cut | Failure::Die) => {
                self.stream.write_all(&message[..message.len() * 3 / 4]).await?;
                if behaviour.failure == Some(Failure::Stall) {
                    self.input.client_gone(self.stream).await;
                }
                Ok((Next::Close, Ending::Failed))
            }
            Some(Failure::Open) => {
                self.stream.write_all(&answer::never_ended(message)).await?;
                self.input.client_gone(self.stream).await;
                Ok((Next::Close, Ending::Failed))
            }
            _ => {
                self.stream.write_all(message).await?;
                Ok((Next::Keep, Ending::Completed))
            }
        }
    }

    async fn stream_answer(
        &mut self,
        endpoint: Endpoint,
        behaviour: Behaviour,
        with_usage: bool,
    ) -> io::Result<(Next, Ending)> {
        let chunks = behaviour.chunks.unwrap_or(CHUNKS_DEFAULT);
        let interval = Duration::from_millis(u64::from(behaviour.interval_ms));
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(answer::STREAM_HEAD);
        let mut due = Instant::now();
        for index in 0..chunks {
            if index > 0 && behaviour.interval_ms > 0 {
                due += interval;
                if !self.pause(due, false).await {
                    return Ok((Next::Close, Ending::Cancelled));
                }
            }
            if let Some(failure) = behaviour.failure
                && failure != Failure::Open
                && index == behaviour.after
            {
                answer::event(&mut out, endpoint, &self.shared.model, index);
                return self.fail_midway(failure, out).await;
            }
            answer::event(&mut out, endpoint, &self.shared.model, index);
            self.stream.write_all(&out).await?;
            self.shared.counters.chunk();
            out.clear();
        }
        answer::last_events(&mut out, endpoint, &self.shared.model, chunks, with_usage);
        if behaviour.failure == Some(Failure::Open) {
            self.stream.write_all(&out).await?;
            self.input.client_gone(self.stream).await;
            return Ok((Next::Close, Ending::Failed));
        }
        out.extend_from_slice(answer::STREAM_END);
        self.stream.write_all(&out).await?;
        Ok((Next::Keep, Ending::Completed))
    }

    /// Ends a stream as `failure` says; `out` has the chunk that would have come, and before the first one the head.
    async fn fail_midway(&mut self, failure: Failure, mut out: Vec<u8>) -> io::Result<(Next, Ending)> {
        match failure {
            Failure::Stall | Failure::Cut => {
                out.truncate(out.len() - out.len().min(24));
                self.stream.write_all(&out).await?;
                if failure == Failure::Stall {
                    self.input.client_gone(self.stream).await;
                }
                Ok((Next::Close, Ending::Failed))
            }
            Failure::NoDone => {
                let head = if out.starts_with(answer::STREAM_HEAD) {
                    answer::STREAM_HEAD
                } else {
                    b""
                };
                self.stream
                    .write_all(&[head, answer::STREAM_END].concat())
                    .await?;
                Ok((Next::Keep, Ending::Failed))
            }
            // Before the first chunk not even the head comes.
            _ => Ok((Next::Close, Ending::Failed)),
        }
    }
}
