//! Which path speaks which dialect.

use pool_registry_types::Dialect;

/// The dialect that `path` speaks, if it is one of ours. A trailing slash is not forgiven: clients do not send one.
pub fn dialect_of_path(path: &str) -> Option<Dialect> {
    Some(match path {
        "/v1/chat/completions" => Dialect::ChatCompletions,
        "/v1/completions" => Dialect::Completions,
        "/v1/embeddings" => Dialect::Embeddings,
        "/v1/rerank" => Dialect::Rerank,
        "/v1/responses" => Dialect::Responses,
        "/v1/messages" => Dialect::Messages,
        "/v1/messages/count_tokens" => Dialect::CountTokens,
        _ => return None,
    })
}

/// The path that speaks `dialect`, on our side and on an engine's.
pub const fn path_of_dialect(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::ChatCompletions => "/v1/chat/completions",
        Dialect::Completions => "/v1/completions",
        Dialect::Embeddings => "/v1/embeddings",
        Dialect::Rerank => "/v1/rerank",
        Dialect::Responses => "/v1/responses",
        Dialect::Messages => "/v1/messages",
        Dialect::CountTokens => "/v1/messages/count_tokens",
    }
}

/// Whether an engine can answer `dialect` with a stream.
pub const fn can_stream(dialect: Dialect) -> bool {
    match dialect {
        Dialect::ChatCompletions | Dialect::Completions | Dialect::Responses | Dialect::Messages => true,
        Dialect::Embeddings | Dialect::Rerank | Dialect::CountTokens => false,
    }
}

/// Whether `dialect` is one of Anthropic's: they have an error shape of their own.
pub const fn is_anthropic(dialect: Dialect) -> bool {
    matches!(dialect, Dialect::Messages | Dialect::CountTokens)
}

/// Every dialect, for documents and tests.
pub const DIALECTS: [Dialect; 7] = [
    Dialect::ChatCompletions,
    Dialect::Completions,
    Dialect::Embeddings,
    Dialect::Rerank,
    Dialect::Responses,
    Dialect::Messages,
    Dialect::CountTokens,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_and_its_path_find_each_other() {
        for dialect in DIALECTS {
            assert_eq!(dialect_of_path(path_of_dialect(dialect)), Some(dialect));
        }
        for path in [
            "",
            "/",
            "/v1",
            "/v1/models",
            "/v1/chat/completions/",
            "/v1/chat/completions?x=1",
        ] {
            assert_eq!(dialect_of_path(path), None, "{path}");
        }
    }
}
