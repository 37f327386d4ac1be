//! What a failed handshake means, in words of this house.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::UnixTime;

/// What the two sides are called: `Sides { us: "control plane", them: "node" }`.
#[derive(Debug, Clone, Copy)]
pub struct Sides<'a> {
    /// This process.
    pub us: &'a str,
    /// The one at the other end.
    pub them: &'a str,
}

/// Why TLS came to nothing, from whatever error it surfaced in: which side refused whose certificate, and why. Nothing
/// when the error is not about TLS.
///
/// In TLS 1.3 a client learns only with its first read that its certificate was refused, so errors of an established
/// connection are worth explaining, too.
pub fn explain(error: &(dyn Error + 'static), sides: Sides<'_>) -> Option<String> {
    let causes = std::iter::successors(Some(error), |cause: &&(dyn Error + 'static)| (*cause).source());
    causes.filter_map(at).next().map(|error| describe(&error, sides))
}

/// The TLS error in this layer of a chain. An `io::Error` hides what it holds from `source()`, so look inside; HTTP/2
/// keeps nothing of it but the text.
pub(crate) fn at(layer: &(dyn Error + 'static)) -> Option<rustls::Error> {
    if let Some(inner) = layer.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return at(inner);
    }
    match layer.downcast_ref::<rustls::Error>() {
        Some(found) => Some(found.clone()),
        None => alert_told(&layer.to_string()),
    }
}

fn alert_told(text: &str) -> Option<rustls::Error> {
    const ABOUT_CERTIFICATES: [AlertDescription; 8] = [
        AlertDescription::BadCertificate,
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateRequired,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateUnknown,
        AlertDescription::DecryptError,
        AlertDescription::UnknownCA,
        AlertDescription::UnsupportedCertificate,
    ];
    let alerts = ABOUT_CERTIFICATES.into_iter().map(rustls::Error::AlertReceived);
    alerts
        .into_iter()
        .find(|alert| text.ends_with(&alert.to_string()))
}

/// Whether one side did not believe the other; anything else is better told in the error's own words where nobody
/// knows that a connection is what failed.
pub(crate) fn is_refusal(error: &rustls::Error) -> bool {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
    matches!(
        error,
        AlertReceived(_) | InvalidCertificate(_) | NoCertificatesPresented
    )
}

pub(crate) fn describe(error: &rustls::Error, sides: Sides<'_>) -> String {
    let Sides { us, them } = sides;
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            format!(
                "this {us} refused the {them}'s certificate: it {}",
                refused_here(reason)
            )
        }
        rustls::Error::NoCertificatesPresented => {
            format!("this {us} refused the {them}: it showed no certificate, and one of our CA is required")
        }
        rustls::Error::AlertReceived(alert) => refused_there(*alert, sides),
        rustls::Error::InvalidMessage(_) => {
            format!("the {them} does not speak TLS on this port; is its address http:// or https://?")
        }
        other => format!("TLS between this {us} and the {them} failed: {other}"),
    }
}

fn refused_here(reason: &CertificateError) -> String {
    match reason {
        CertificateError::Expired => "has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => format!("expired on {}", day(*not_after)),
        CertificateError::NotValidYet => "is not valid yet; is the clock right?".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is not valid before {}; is the clock right?", day(*not_before))
        }
        CertificateError::UnknownIssuer => "was issued by a CA that is not ours".to_owned(),
        CertificateError::BadSignature => "has a signature that is not that of our CA".to_owned(),
        CertificateError::NotValidForName => "is for another host name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!(
                "is for {}, and not for {}",
                presented.join(", "),
                expected.to_str()
            )
        }
        CertificateError::Revoked => "was revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "was not issued for this use".to_owned()
        }
        other => format!("cannot be used ({other})"),
    }
}

fn refused_there(alert: AlertDescription, sides: Sides<'_>) -> String {
    let Sides { us, them } = sides;
    let reason = match alert {
        AlertDescription::CertificateExpired => "it has expired or is not valid yet",
        AlertDescription::UnknownCA => "it was issued by a CA that the other side does not know",
        AlertDescription::CertificateRequired => {
            return format!(
                "the {them} refused this {us}: it showed no certificate, and the {them} requires one"
            );
        }
        AlertDescription::BadCertificate => "it is for another host name, or damaged",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::UnsupportedCertificate => "it was not issued for this use",
        AlertDescription::CertificateUnknown => "it cannot be used",
        AlertDescription::DecryptError => "its signature is not that of the other side's CA",
        other => return format!("the {them} refused the TLS connection of this {us} ({other:?})"),
    };
    format!("the {them} refused this {us}'s certificate: {reason}")
}

fn day(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(
            || "an unknown day".to_owned(),
            |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        )
}
