//! Between wire messages and domain types; no other module names a message's fields.

/// Generated messages, clients and servers.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("weft.v1alpha1");
}
