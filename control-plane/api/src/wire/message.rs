//! The small messages: what a sidecar says on its stream, and how it gets its certificate.
use std::time::Duration;

use weft_certs::TrustBundle;

use super::proto::sidecar_message::Message;
use super::{WireError, decode, encode, observed, proto};
use crate::observation::Observations;
use crate::resource::is_dns_subdomain;

/// Bytes of a PKCS#10 request.
const MAX_CERTIFICATE_REQUEST_BYTES: usize = 16 << 10;
/// Bytes of a version or an error text; longer ones are cut short when sent and refused when they arrive.
const MAX_WORDS_BYTES: usize = 4 << 10;

/// What a sidecar says on its discovery stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidecarMessage {
    /// The first message.
    Hello {
        /// The workload beside the sidecar, in the namespace of its identity.
        workload: String,
        /// The sidecar's version.
        version: String,
    },
    /// An answer to an update.
    Ack {
        /// The update's version.
        version: u64,
        /// Why it was refused; `None`: it was applied.
        error: Option<String>,
    },
    /// The sidecar is about to stop.
    Draining,
    /// Calls that it judged since it told last: at most [`super::MAX_OBSERVED`] of them in one message.
    Observed(Observations),
}

/// A request for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignRequest {
    /// DER PKCS#10.
    pub certificate_request: Vec<u8>,
    /// Wanted lifetime, in whole seconds; `None`: the control plane's default.
    pub lifetime: Option<Duration>,
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_WORDS_BYTES)].to_owned()
}

fn check_words(text: &str, field: &str) -> Result<(), WireError> {
    if text.len() <= MAX_WORDS_BYTES {
        return Ok(());
    }
    Err(WireError::new(field, format!("more than {MAX_WORDS_BYTES} bytes")))
}

/// To the wire.
pub fn encode_sidecar_message(message: &SidecarMessage) -> proto::SidecarMessage {
    let message = match message {
        SidecarMessage::Hello { workload, version } => {
            Message::Hello(proto::Hello { workload: workload.clone(), version: shortened(version) })
        }
        SidecarMessage::Ack { version, error } => {
            let error = error.as_deref().map(|error| if error.is_empty() { "refused" } else { error });
            Message::Ack(proto::Ack { version: *version, error: error.map(shortened).unwrap_or_default() })
        }
        SidecarMessage::Draining => Message::Draining(proto::Draining {}),
        SidecarMessage::Observed(observations) => Message::Observations(observed::encode(observations)),
    };
    proto::SidecarMessage { message: Some(message) }
}

/// From the wire.
///
/// # Errors
/// The field at fault.
pub fn decode_sidecar_message(message: proto::SidecarMessage) -> Result<SidecarMessage, WireError> {
    match message.message.ok_or_else(|| WireError::new("message", "missing or unknown"))? {
        Message::Hello(hello) => {
            if !is_dns_subdomain(&hello.workload) {
                return Err(WireError::new("hello.workload", "not a valid name"));
            }
            check_words(&hello.version, "hello.version")?;
            Ok(SidecarMessage::Hello { workload: hello.workload, version: hello.version })
        }
        Message::Ack(ack) => {
            check_words(&ack.error, "ack.error")?;
            Ok(SidecarMessage::Ack { version: ack.version, error: Some(ack.error).filter(|error| !error.is_empty()) })
        }
        Message::Draining(_) => Ok(SidecarMessage::Draining),
        Message::Observations(observations) => observed::decode(observations).map(SidecarMessage::Observed),
    }
}

/// To the wire. A lifetime is rounded down to seconds.
pub fn encode_sign_request(request: &SignRequest) -> proto::SignRequest {
    let seconds = request.lifetime.map(|lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX));
    proto::SignRequest {
        certificate_request: request.certificate_request.clone(),
        lifetime_seconds: seconds.unwrap_or(0),
    }
}

/// From the wire.
///
/// # Errors
/// The field at fault.
pub fn decode_sign_request(message: proto::SignRequest) -> Result<SignRequest, WireError> {
    if !(1..=MAX_CERTIFICATE_REQUEST_BYTES).contains(&message.certificate_request.len()) {
        return Err(WireError::new("certificate_request", "not a PKCS#10 request by its size"));
    }
    let lifetime = (message.lifetime_seconds > 0).then(|| Duration::from_secs(message.lifetime_seconds.into()));
    Ok(SignRequest { certificate_request: message.certificate_request, lifetime })
}

/// To the wire. `chain`: DER certificates, leaf first.
pub fn encode_sign_response(chain: &[impl AsRef<[u8]>], bundle: &TrustBundle) -> proto::SignResponse {
    proto::SignResponse {
        chain: chain.iter().map(|certificate| certificate.as_ref().to_vec()).collect(),
        bundle: Some(encode::bundle(bundle)),
    }
}

/// From the wire: the chain (DER, leaf first, at least one) and the bundle. Neither is judged here.
///
/// # Errors
/// The field at fault.
pub fn decode_sign_response(message: &proto::SignResponse) -> Result<(Vec<Vec<u8>>, TrustBundle), WireError> {
    let chain = decode::certificates(&message.chain, "chain")?;
    if chain.is_empty() {
        return Err(WireError::new("chain", "empty"));
    }
    let bundle = message.bundle.as_ref().ok_or_else(|| WireError::new("bundle", "missing"))?;
    Ok((chain, decode::bundle(bundle, "bundle")?))
}
