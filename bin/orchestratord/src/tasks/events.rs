//! The events of one task, and reading them as a stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use task_api::{Event, TaskId, ToolEvent};
use tokio::sync::watch;

use super::LiveTask;

/// How many events of a task are kept.
const EVENTS_MAX: usize = 65_536;

/// How many bytes of text in them are kept.
const TEXT_LEN_MAX: usize = 4 * 1024 * 1024;

/// A comment goes out when nothing else does, so that nothing on the way takes the stream for dead.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How many events go out in one piece at the most.
const BATCH_MAX: usize = 256;

/// The events, numbered from 1.
#[derive(Default)]
pub(crate) struct EventLog {
    kept: VecDeque<Event>,
    dropped: u64,
    text_len: usize,
}

impl EventLog {
    pub(crate) fn push(&mut self, event: Event) {
        self.text_len += text_len(&event);
        self.kept.push_back(event);
        while self.kept.len() > EVENTS_MAX || self.text_len > TEXT_LEN_MAX {
            // The last event is never dropped: it says how the task ended.
            if self.kept.len() == 1 {
                break;
            }
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.text_len -= text_len(&oldest);
            self.dropped += 1;
        }
    }

    /// How many events there have been.
    pub(crate) fn seen(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }

    /// The answer so far, as far as its events are kept.
    pub(crate) fn text(&self) -> String {
        self.kept.iter().fold(String::new(), |text, event| match event {
            Event::Token { t, .. } => text + t,
            Event::TextReplaced { t } => t.clone(),
            _ => text,
        })
    }

    /// Whether the last event is there.
    fn is_complete(&self) -> bool {
        self.kept.back().is_some_and(Event::is_last)
    }

    /// Events after the one numbered `after`; None when some of them are no longer kept.
    fn after(&self, after: u64) -> Option<impl Iterator<Item = (u64, &Event)>> {
        let skip = usize::try_from(after.checked_sub(self.dropped)?).ok()?;
        Some((after + 1..).zip(self.kept.iter().skip(skip)))
    }
}

fn text_len(event: &Event) -> usize {
    match event {
        Event::Token { t, .. } => t.len(),
        Event::TextReplaced { t } => t.len(),
        Event::Output { value } => value.to_string().len(),
        Event::Tool(ToolEvent::Started { input: text, .. } | ToolEvent::Finished { output: text, .. }) => {
            text.len()
        }
        Event::Files { paths } => paths.iter().map(String::len).sum(),
        Event::Limit { message: text, .. }
        | Event::EgressDenied { host: text, .. }
        | Event::Raw { line: text, .. } => text.len(),
        Event::Workspace { problem, .. } => problem.as_ref().map_or(0, String::len),
        Event::Queued { .. }
        | Event::Started { .. }
        | Event::Metrics(_)
        | Event::End(_)
        | Event::Error { .. } => 0,
    }
}

/// Reads a task's events from a number on, until the last one.
pub(crate) struct Follower {
    task: Arc<LiveTask>,
    seen: watch::Receiver<u64>,
    after: u64,
    over: bool,
}

/// The reader wants events that are no longer kept.
#[derive(Debug)]
pub(crate) struct TooOld;

impl Follower {
    /// Follows from the event after `after`.
    pub(crate) fn new(task: Arc<LiveTask>, after: u64) -> Result<Self, TooOld> {
        let seen = task.events_seen.subscribe();
        if task.lock().events.after(after).is_none() {
            return Err(TooOld);
        }
        Ok(Self {
            task,
            seen,
            after,
            over: false,
        })
    }

    /// The next events as they stand in a stream; None after the last one.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            self.seen.mark_unchanged();
            if let Some(bytes) = self.take() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE_INTERVAL, self.seen.changed()).await {
                Ok(_) => {}
                Err(_) => return Some(Bytes::from_static(b": still here\n\n")),
            }
        }
    }

    /// The next events themselves; None after the last one. Those that are no longer kept are passed over.
    pub(crate) async fn next_events(&mut self) -> Option<Vec<Event>> {
        loop {
            if self.over {
                return None;
            }
            self.seen.mark_unchanged();
            let events = self.take_events();
            if !events.is_empty() {
                return Some(events);
            }
            // Fails only when the task's sender is gone, which the task that we hold keeps.
            let _ = self.seen.changed().await;
        }
    }

    fn take_events(&mut self) -> Vec<Event> {
        let state = self.task.lock();
        let first = self.after.max(state.events.dropped);
        let Some(events) = state.events.after(first) else {
            return Vec::new();
        };
        let events: Vec<Event> = events.take(BATCH_MAX).map(|(_, event)| event.clone()).collect();
        self.after = first + events.len() as u64;
        self.over = events.last().is_some_and(Event::is_last);
        events
    }

    fn take(&mut self) -> Option<Bytes> {
        let state = self.task.lock();
        let mut out = BytesMut::new();
        // Whoever has had the last event already wants nothing more.
        self.over = self.after >= state.events.seen() && state.events.is_complete();
        match state.events.after(self.after) {
            Some(events) => {
                for (number, event) in events.take(BATCH_MAX) {
                    write_event(&mut out, number, event);
                    self.after = number;
                    self.over = event.is_last();
                }
            }
            // A reader so slow that the events it wants are gone: it goes on with what there is, and is told.
            None => {
                out.put_slice(b": some events were dropped because they were read too slowly\n\n");
                self.after = state.events.dropped;
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }
}

/// One event as it stands in a stream.
fn write_event(out: &mut BytesMut, number: u64, event: &Event) {
    put(out, format_args!("id: {number}\nevent: {}\ndata: ", event.name()));
    match event {
        // Nearly all events are these, so they are written without a detour.
        Event::Token { t, i } => {
            out.put_slice(b"{\"t\":");
            serde_json::to_writer(out.writer(), t).expect("a text can be written as JSON");
            put(out, format_args!(",\"i\":{i}}}"));
        }
        other => {
            let tagged = serde_json::to_value(other).expect("events can be written as JSON");
            let data = tagged.get("data").unwrap_or(&serde_json::Value::Null);
            serde_json::to_writer(out.writer(), data).expect("a value can be written as JSON");
        }
    }
    out.put_slice(b"\n\n");
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    use std::fmt::Write as _;
    out.write_fmt(text).expect("a buffer grows");
}

/// A task as a stream of server-sent events that ends with the task.
pub(crate) fn stream(
    follower: Follower,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    futures_util::stream::unfold(follower, |mut follower| async move {
        let bytes = follower.next().await?;
        Some((Ok(bytes), follower))
    })
}

/// Why a reader cannot go on where it wants to.
pub(crate) fn too_old(id: &TaskId, after: u64) -> task_api::ApiError {
    task_api::ApiError::new(
        task_api::ErrorCode::Conflict,
        format!("the events of task {id} after number {after} are no longer all kept"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(i: u32) -> Event {
        Event::Token {
            t: "x".repeat(1024),
            i,
        }
    }

    #[test]
    fn old_events_go_and_numbers_stay() {
        let mut log = EventLog::default();
        for i in 0..5000 {
            log.push(token(i));
        }
        assert_eq!(log.seen(), 5000);
        assert!(log.after(0).is_none(), "the first are gone");
        let (number, event) = log.after(4999).unwrap().next().unwrap();
        assert_eq!((number, event), (5000, &token(4999)));
        assert!(log.after(5000).unwrap().next().is_none());
        assert!(log.text_len <= TEXT_LEN_MAX);
    }

    #[test]
    fn an_event_reads_as_an_event_source_expects() {
        let mut out = BytesMut::new();
        write_event(
            &mut out,
            7,
            &Event::Token {
                t: "a\nb".to_owned(),
                i: 3,
            },
        );
        assert_eq!(
            &out[..],
            b"id: 7\nevent: token\ndata: {\"t\":\"a\\nb\",\"i\":3}\n\n"
        );
    }
}
