//! What this crate promises, each promise a test.
#![allow(unreachable_pub)]

mod authority;
mod bundle;
mod catalogue;
mod certificate;
mod handshake;
mod rules;
mod spiffe;
mod tls;
