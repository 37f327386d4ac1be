//! Requests that go on as requests: which headers go along, and the small things around them.

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Version};

use crate::target::Target;

/// Headers that are between two neighbours only (RFC 9110, 7.6.1), and what proxies are told.
const NEIGHBOURS: [&str; 9] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Takes out what is meant for the neighbour. Lengths are left: hyper checks and writes them.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in NEIGHBOURS.iter().filter(|name| **name != "transfer-encoding") {
        headers.remove(*name);
    }
    for name in named
        .iter()
        .filter(|name| !matches!(name.as_str(), "host" | "content-length" | "transfer-encoding"))
    {
        headers.remove(name);
    }
}

/// Makes the request one to the server itself, whose name is `target` whatever the request's `Host` said.
pub(crate) fn to_origin<B>(request: &mut Request<B>, target: &Target) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    strip(request.headers_mut());
    let host = if target.port == 80 {
        target.host.to_string()
    } else {
        target.to_string()
    };
    let host = HeaderValue::try_from(host).expect("a host's name is a header's value");
    request.headers_mut().insert(HOST, host);
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, with padding.
pub(crate) fn base64(bytes: &[u8]) -> zeroize::Zeroizing<String> {
    let mut text = zeroize::Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = usize::try_from(group >> (18 - 6 * place) & 63).expect("six bits");
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[digit])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_everybody_writes_it() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()).as_str(), coded);
        }
    }

    #[test]
    fn what_is_for_the_neighbour_stays_here() {
        let mut request = Request::builder()
            .uri("http://allowed.test:8080/path?q=1")
            .header("host", "other.test")
            .header("connection", "close, x-secret, host")
            .header("x-secret", "1")
            .header("proxy-authorization", "Basic dGFzazo=")
            .header("x-kept", "1")
            .body(())
            .unwrap();
        to_origin(&mut request, &Target::parse("allowed.test:8080", None).unwrap());
        assert_eq!(request.uri(), "/path?q=1");
        let names: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(names.len(), 2);
        assert!(names.contains(&("host", "allowed.test:8080")) && names.contains(&("x-kept", "1")));
    }
}
