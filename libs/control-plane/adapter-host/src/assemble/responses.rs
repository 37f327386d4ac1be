//! OpenAI's responses: the last event carries the whole answer.

use crate::assemble::members::each;
use crate::assemble::{AssembleError, Step};
use crate::json::Kind;

#[derive(Debug, Default)]
pub(super) struct Responses {
    response: String,
}

impl Responses {
    pub(super) fn event(&mut self, name: &[u8], data: &str) -> Result<Step, AssembleError> {
        let mut kind = String::from_utf8_lossy(name).into_owned();
        let mut response = None;
        each(data, |scanner, key| {
            match key {
                "type" if kind.is_empty() && scanner.kind()? == Kind::String => {
                    kind = scanner.string()?.decode().into_owned();
                }
                "response" if scanner.kind()? == Kind::Object => response = Some(scanner.raw()?),
                "error" if scanner.kind()? != Kind::Null => {
                    scanner.skip(&mut ())?;
                    kind = "error".to_owned();
                }
                _ => {
                    scanner.skip(&mut ())?;
                }
            }
            Ok(())
        })?;
        match kind.as_str() {
            "response.completed" | "response.incomplete" => {
                let response = response.ok_or(AssembleError::Shape("no response"))?;
                response.clone_into(&mut self.response);
                Ok(Step::End)
            }
            "response.failed" | "error" => Ok(Step::Error),
            _ => Ok(Step::More),
        }
    }

    pub(super) fn finish(self) -> String {
        self.response
    }
}
