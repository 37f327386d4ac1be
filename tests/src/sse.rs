//! Server-sent events, read the plain way.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field, empty without one.
    pub name: String,
    /// The `data` field.
    pub data: String,
    /// The `id` field, empty without one.
    pub id: String,
}

impl SseEvent {
    /// The data as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }
}

/// The complete events in a text.
pub fn sse_events(text: &str) -> Vec<SseEvent> {
    let mut events = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|v| v.trim_start().to_owned())
        };
        if let Some(data) = field("data") {
            let (name, id) = (
                field("event").unwrap_or_default(),
                field("id").unwrap_or_default(),
            );
            events.push(SseEvent { name, data, id });
        }
    }
    events
}
