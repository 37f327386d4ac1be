//! Addresses and codes in what a CLI says while somebody logs in.

use pool_registry_types::LoginEvent;

/// The longest line that is told.
const LINE_BYTES_MAX: usize = 4096;

/// What the person was told.
#[derive(Default)]
pub(super) struct Told {
    url: Option<String>,
    code: Option<String>,
    /// Whether the person was asked for what the page shows.
    pub(super) asked: bool,
    /// What was said last.
    pub(super) last: String,
}

impl Told {
    /// Whether it is time to ask for what the page shows.
    pub(super) fn may_ask(&self) -> bool {
        self.url.is_some() && !self.asked
    }

    /// What a line of the CLI tells the person.
    pub(super) fn events(&mut self, line: &str) -> Vec<LoginEvent> {
        let line = plain(line);
        let line = line.trim();
        if line.is_empty() {
            return Vec::new();
        }
        let line = &line[..line.floor_char_boundary(LINE_BYTES_MAX)];
        self.last = line.to_owned();
        let mut events = vec![LoginEvent::Output {
            line: line.to_owned(),
        }];
        let mut words = line.split_whitespace();
        if self.url.is_none()
            && let Some(url) = words.find(|word| word.starts_with("https://") || word.starts_with("http://"))
        {
            self.url = Some(url.to_owned());
            events.push(LoginEvent::Open { url: url.to_owned() });
        }
        if self.code.is_none()
            && let Some(code) = line.split_whitespace().find(|word| is_code(word))
        {
            self.code = Some(code.to_owned());
            events.push(LoginEvent::Code {
                code: code.to_owned(),
            });
        }
        events
    }
}

/// Whether a word looks like a device code: groups of capitals and digits with dashes between them.
fn is_code(word: &str) -> bool {
    let groups: Vec<&str> = word.split('-').collect();
    let is_group = |group: &&str| {
        (3..=8).contains(&group.len())
            && group
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    (2..=4).contains(&groups.len()) && groups.iter().all(is_group)
}

/// A line without the colours of a terminal.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            text.push(c);
            continue;
        }
        // ESC [ ... letter
        if rest.next() == Some('[') {
            for c in rest.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_codes_are_found_in_what_a_cli_says() {
        let mut told = Told::default();
        let mut events = Vec::new();
        for line in [
            "Welcome to Codex",
            "\u{1b}[94m   https://auth.openai.com/codex/device\u{1b}[0m",
            "",
            "   \u{1b}[94mABCD-12345\u{1b}[0m",
            "https://second.example",
        ] {
            events.extend(told.events(line));
        }
        let found: Vec<_> = events
            .iter()
            .filter(|event| !matches!(event, LoginEvent::Output { .. }))
            .collect();
        let url = "https://auth.openai.com/codex/device".to_owned();
        let code = "ABCD-12345".to_owned();
        assert_eq!(found, [&LoginEvent::Open { url }, &LoginEvent::Code { code }]);
        for word in ["re-use", "A-B", "2026-11", "ABCD", "HTTP-", "ABC-DEF-"] {
            assert!(!is_code(word), "{word}");
        }
    }
}
