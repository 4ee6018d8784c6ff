//! What a failure of hyper or h2 means for a request: who failed, and whether it may have been processed.

use std::{error::Error as StdError, io};

use rustls::AlertDescription;

use crate::{
    body::BodyError,
    outcome::{Error, ErrorKind},
};

/// Finds a cause of one type.
fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An io::Error's own source() leaves out the error that it was made of.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

/// Of a request that hyper gave back, or whose connection was never ready: it was not sent.
pub(super) fn unsent(error: &hyper::Error, who: &str) -> Error {
    if let Some(error) = cause::<h2::Error>(error).filter(|error| error.is_library()) {
        return Error::new(ErrorKind::UpstreamProtocol, format!("{who}: {error}"));
    }
    Error::new(ErrorKind::UpstreamReset, format!("{who} closed the connection before the request was sent: {error}"))
}

/// Of a request that was sent, at least in part, and not answered.
pub(super) fn sent(error: &hyper::Error, who: &str) -> Error {
    if let Some(error) = cause::<BodyError>(error) {
        return match error {
            BodyError::GivenUp(error) => error.clone(),
            BodyError::Broken(_) | BodyError::Superseded => {
                Error::new(ErrorKind::ClientGone, "the caller broke off its request").after_send()
            }
        };
    }
    if let Some(error) = cause::<h2::Error>(error) {
        // REFUSED_STREAM, or a GOAWAY that the stream is beyond (RFC 9113, sections 6.8 and 8.7).
        let unprocessed = error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR));
        if unprocessed {
            return Error::new(ErrorKind::UpstreamRefused, format!("{who}: {error}"));
        }
        // Our side reset it, which is what hyper does with a body that breaks off.
        if error.is_reset() && !error.is_remote() && !error.is_library() {
            return Error::new(ErrorKind::ClientGone, "the caller broke off its request").after_send();
        }
        // What it sent was against the protocol, so that our side ended it.
        let kind = if error.is_library() { ErrorKind::UpstreamProtocol } else { ErrorKind::UpstreamReset };
        return Error::new(kind, format!("{who}: {error}")).after_send();
    }
    // With TLS 1.3 a client hears only after its own handshake that the server refuses its certificate;
    // such a server has read nothing else.
    if let Some(rustls::Error::AlertReceived(alert)) = cause::<rustls::Error>(error)
        && is_about_certificates(*alert)
    {
        return Error::new(ErrorKind::TlsFailed, format!("{who} refused this proxy's certificate: {alert:?}"));
    }
    if error.is_parse() || error.is_parse_too_large() {
        return Error::new(ErrorKind::UpstreamProtocol, format!("{who}: {error}")).after_send();
    }
    Error::new(ErrorKind::UpstreamReset, format!("{who}: {}", crate::control_plane::causes(error))).after_send()
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            | A::HandshakeFailure
    )
}
